"""Lake's one-shot classification runs: tasks within alphabets of Omniglot that people, too, were asked to solve.

``runNN/training`` has one drawing of each class, ``runNN/test`` drawings by somebody else, and ``runNN/class_labels.txt`` says
which belong together. There are 20 runs of 20 characters, of ten alphabets of ``images_evaluation``. Source: Lake et al. 2015.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from data.arguments import as_path, as_whole
from data.episodes import Episode
from data.errors import UserError
from data.files import files_below
from data.sources.folder import SUFFIXES, read_images, unpacked

LABELS, TRAINING, TEST = "class_labels.txt", "training", "test"
"""What stands in the folder of a run."""
EXAMPLE = "run01/test/item01.png run01/training/class08.png"


class Run(NamedTuple):
    """One run.

    Attributes:
        training: a drawing of each class.
        items: drawings to classify.
        labels: of which class each is.
    """

    training: list[Path]
    items: list[Path]
    labels: list[int]


def one_shot_runs(root: str | Path, image_size: int = 28) -> Episode:
    """The runs of a folder or zip archive (Lake's ``all_runs.zip``) as tasks, in the order of their names. Ink is bright.

    Of each task the support is the training drawings, and the queries are the test drawings; there are as many of both, and
    of each class there is one in the support.

    Args:
        image_size: height and width in pixels; the drawings have 105.

    Returns:
        uint8 images ``[runs, classes, 1, image_size, image_size]`` of the support and of the queries, and their labels
        ``[runs, classes]``.

    Raises:
        UserError: no runs, runs of different sizes, or lists that do not fit their drawings.
    """
    size, folder = as_whole(image_size, "image_size", 1), unpacked(as_path(root, "root"))
    lists = sorted(file for file in files_below(folder, {".txt"}) if file.name == LABELS)
    if not lists:
        raise UserError(f"{root} holds no runs: expected runNN/{LABELS} beside runNN/{TRAINING}/ and runNN/{TEST}/")
    runs = [read_run(file) for file in lists]
    way = len(runs[0].training)
    for file, run in zip(lists, runs, strict=True):
        if {len(run.training), len(run.items)} != {way}:
            sizes = f"{len(run.training)} training and {len(run.items)} test drawings"
            raise UserError(f"{file.parent} has {sizes}: all runs have as many of both, and as {lists[0].parent}")
    images = 255 - read_images([path for run in runs for path in (*run.training, *run.items)], size, channels=1)
    support, queries = images.unflatten(0, (len(runs), 2, way)).unbind(1)
    labels = torch.tensor([run.labels for run in runs])
    return Episode(support, torch.arange(way).expand(len(runs), -1).contiguous(), queries, labels, way)


def read_run(file: Path) -> Run:
    """The run of a list of labels, a ``file`` beside its drawings.

    Raises:
        UserError: the list names a drawing that is not there, or does not name each test drawing once.
    """
    training, items = (drawings(file.parent / part) for part in (TRAINING, TEST))
    number = {name: i for i, name in enumerate(training)}
    label: dict[str, int] = {}
    for line, words in enumerate(read_lines(file), start=1):
        if len(words) != 2:
            raise UserError(f"{file}, line {line}: expected a test drawing and its training drawing, as in {EXAMPLE}")
        for path, part, known in zip(words, (TEST, TRAINING), (items, training), strict=True):
            if Path(path).parent.name != part or Path(path).name not in known:
                raise UserError(f"{file}, line {line}: there is no drawing {path} in {file.parent / part}")
        if (name := Path(words[0]).name) in label:
            raise UserError(f"{file}, line {line}: {name} is there twice: name each test drawing once")
        label[name] = number[Path(words[1]).name]
    if missing := [name for name in items if name not in label]:
        raise UserError(f"{file} says nothing of {missing[0]}: name each test drawing once")
    return Run(list(training.values()), list(items.values()), [label[name] for name in items])


def drawings(folder: Path) -> dict[str, Path]:
    """The images of a folder by name.

    Raises:
        UserError: there are fewer than two, or there is no such folder.
    """
    found = {file.name: file for file in sorted(files_below(folder, SUFFIXES)) if file.parent == folder}
    if len(found) < 2:
        raise UserError(f"{folder} holds {len(found)} drawings: a run has two at least")
    return found


def read_lines(file: Path) -> list[list[str]]:
    """The words of each line of a ``file``.

    Raises:
        UserError: it cannot be read as text.
    """
    try:
        return [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from error
