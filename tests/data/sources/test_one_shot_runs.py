"""Lake's one-shot runs, in the layout of his archive: which drawing is of which class, and lists that do not fit."""

import shutil
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.sources.one_shot_runs import one_shot_runs
from tests.data.conftest import save_image


def draw_runs(folder: Path, runs: int = 3, way: int = 4) -> Path:
    """``runNN/{training,test}`` and ``class_labels.txt``: test drawing i of run r is of class i + r, and 1 brighter than it."""
    for r in range(1, runs + 1):
        run = folder / f"run{r:02d}"
        lines = []
        for i in range(way):
            of = (i + r) % way
            save_image(run / "training" / f"class{i + 1:02d}", 40 * r + 8 * i, mode="L")
            save_image(run / "test" / f"item{i + 1:02d}", 40 * r + 8 * of + 1, mode="L")
            lines.append(f"run{r:02d}/test/item{i + 1:02d}.png run{r:02d}/training/class{of + 1:02d}.png")
        (run / "class_labels.txt").write_text("\n".join(reversed(lines)) + "\n")
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_runs_are_tasks(tmp_path, zipped):
    root = draw_runs(tmp_path / "all_runs")
    if zipped:
        root = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", root))
    tasks = one_shot_runs(root, 16)
    assert tasks.support_x.shape == tasks.query_x.shape == (3, 4, 1, 16, 16)
    assert tasks.support_x.dtype == torch.uint8
    assert tasks.way == 4
    assert tasks.support_y.tolist() == [[0, 1, 2, 3]] * 3
    ink = 255 - tasks.support_x[:, :, 0, 8, 8].int()
    assert ink.tolist() == [[40 * r + 8 * i for i in range(4)] for r in (1, 2, 3)]
    assert (255 - tasks.query_x[:, :, 0, 8, 8].int()).tolist() == (ink.gather(1, tasks.query_y) + 1).tolist()
    assert tasks.query_y.tolist() == [[(i + r) % 4 for i in range(4)] for r in (1, 2, 3)]


def rewrite(change):
    """Change the list of labels of the second run."""

    def apply(root: Path) -> None:
        file = root / "run02" / "class_labels.txt"
        file.write_text(change(file.read_text()))

    return apply


DAMAGE = {
    "no lists": (
        lambda root: [file.unlink() for file in root.rglob("*.txt")],
        "holds no runs: expected runNN/class_labels.txt",
    ),
    "no folder": (lambda root: shutil.rmtree(root / "run02" / "training"), "training"),
    "a word": (rewrite(lambda text: text + "one\n"), "line 5: expected a test drawing and its training drawing, as in run01/"),
    "no drawing": (
        rewrite(lambda text: text.replace("item03", "item09")),
        "line 2: there is no drawing run02/test/item09.png in",
    ),
    "no class": (rewrite(lambda text: text.replace("class02", "class09")), "there is no drawing run02/training/class09.png in"),
    "exchanged": (rewrite(lambda text: " ".join(reversed(text.split()))), "line 1: expected"),
    "elsewhere": (rewrite(lambda text: text.replace("run02/test", "/etc")), "there is no drawing /etc/item04.png"),
    "twice": (rewrite(lambda text: text.replace("item03", "item04")), "line 2: item04.png is there twice"),
    "left out": (rewrite(lambda text: text.partition("\n")[2]), "says nothing of item04.png: name each test drawing once"),
    "one less": (lambda root: (root / "run02" / "training" / "class01.png").unlink(), "class01.png in"),
    "no text": (lambda root: (root / "run02" / "class_labels.txt").write_bytes(b"\xff\xfe\xfa"), "cannot be read as text"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=list(DAMAGE))
def test_what_does_not_fit_is_one_line(tmp_path, damage, message):
    damage(root := draw_runs(tmp_path / "all_runs"))
    with pytest.raises(UserError, match=message) as error:
        one_shot_runs(root, 16)
    assert "\n" not in str(error.value)


def test_runs_of_different_sizes_are_refused(tmp_path):
    root = draw_runs(tmp_path / "all_runs", runs=1)
    draw_runs(tmp_path / "other", runs=2, way=3)
    shutil.move(tmp_path / "other" / "run02", root / "run02")
    with pytest.raises(
        UserError, match=r"run02 has 3 training and 3 test drawings: all runs have as many of both, and as .*run01"
    ):
        one_shot_runs(root)
