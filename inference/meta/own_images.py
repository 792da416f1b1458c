"""One's own images: a task made of image files, its features, and the table of what is predicted."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from data.errors import UserError, readable
from data.files import there
from data.gather import gather
from data.inputs import as_tensor, image_files
from data.sources.folder import find_classes
from inference.evaluation.predictions import LEVEL
from inference.meta.learner import FittedLearner
from inference.meta.methods import METHODS
from inference.meta.options import SibOptions
from inference.meta.prediction import TaskPredictions, predict_features
from inference.meta.settings import GuideSettings, VariantSettings, settings
from inference.runs.files import write_atomically
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace

FILES_AT_ONCE = 256


@dataclass(frozen=True)
class OwnTask:
    """A task of image files.

    Attributes:
        support: labelled files, class by class.
        labels: ``[support]`` int64, their classes.
        class_names: the classes' folders.
        queries: files to predict.
        truth: class of each query where its folder is named as one of the classes, else ``None``.
    """

    support: list[Path]
    labels: Tensor
    class_names: tuple[str, ...]
    queries: list[Path]
    truth: list[int | None]

    @classmethod
    def find(cls, support: str, queries: Sequence[str]) -> OwnTask:
        """The files of a folder with one folder per class, and of folders, files or patterns (``photos/*.jpg``) of queries.

        Raises:
            UserError: nothing is there, or there is one class.
        """
        folders = find_classes(support)
        names = tuple(readable("/".join(parts)) for parts in folders)
        if len(names) < 2:
            raise UserError(f"{support} holds one class ({names[0]}): give a folder of images for each of at least two classes")
        files = [file for several in folders.values() for file in several]
        counts = torch.tensor([len(several) for several in folders.values()])
        labels = torch.repeat_interleave(torch.arange(len(names)), counts)
        found = [(file, base) for place in queries for base in matching(place) for file in image_files(base)]
        return cls(files, labels, names, [file for file, _ in found], [class_of(file, base, names) for file, base in found])

    @property
    def known(self) -> Tensor:
        """Which queries have a class: indices ``[m]``."""
        return torch.tensor([i for i, label in enumerate(self.truth) if label is not None], dtype=torch.long)

    @property
    def known_labels(self) -> Tensor:
        """Their classes, ``[m]``."""
        return torch.tensor([label for label in self.truth if label is not None], dtype=torch.long)


def matching(place: str) -> list[Path]:
    """The path that ``place`` is, or all that match it as a pattern.

    Raises:
        UserError: nothing does, or it is no pattern.
    """
    path = Path(place)
    if there(path) or not any(sign in place for sign in "*?["):
        return [path]
    root = Path(path.anchor or ".")
    try:
        found = sorted(root.glob(str(path.relative_to(path.anchor)) if path.anchor else place))
    except ValueError as error:
        raise UserError(f"{place} is no pattern of files: {error}") from error
    if not found:
        raise UserError(f"nothing matches {place}")
    return found


def class_of(file: Path, base: Path, names: Sequence[str]) -> int | None:
    """The class, of these ``names``, whose folder a query ``file``, found at ``base``, stands in."""
    inner = file.relative_to(base).parts[:-1] if base.is_dir() else ()
    for parts in (inner, file.parent.parts[-1:]):
        if (name := readable("/".join(parts))) in names:
            return names.index(name)
    return None


def features_of(learner: FittedLearner, files: Sequence[Path], *, invert: bool, what: str, progress: bool) -> Tensor:
    """Features ``[n, D]`` of image files in the learner's space, read a few hundred at a time.

    Args:
        invert: whether dark and bright are exchanged.
        what: for the progress bar.
    """
    assert learner.network is not None
    shape = learner.network.image_shape

    def parts() -> Iterator[Tensor]:
        with tqdm(total=len(files), desc=what, unit="image", disable=not progress or len(files) <= FILES_AT_ONCE) as bar:
            for start in range(0, len(files), FILES_AT_ONCE):
                images = as_tensor(files[start : start + FILES_AT_ONCE], image_shape=shape)
                yield learner.features(255 - images if invert else images)
                bar.update(len(images))

    return gather(parts())


def gaussian_classes(network: FeatureNetwork, dataset: str) -> FittedLearner:
    """A learner of a feature network alone: the method ``gaussian-classes``, which has nothing to train.

    Args:
        network: as it is.
        dataset: what it was trained on.
    """
    options = SibOptions(methods="gaussian-classes", progress=False)  # type: ignore[arg-type]
    (variant,) = METHODS["gaussian-classes"].variants(settings(VariantSettings, options))
    means = torch.eye(2, network.num_features)
    space = FeatureSpace(network.num_features)
    return FittedLearner.build(variant, settings(GuideSettings, options), options.spec(), space, means, network, dataset)


def classify(
    learner: FittedLearner,
    task: OwnTask,
    *,
    steps: int | None = None,
    num_samples: int,
    batch: int | None = None,
    invert: bool = False,
    progress: bool = True,
) -> TaskPredictions:
    """Predict the queries of a task of files.

    Args:
        steps, num_samples, batch: see :func:`~inference.meta.prediction.predict`.
        invert: whether dark and bright are exchanged, as where the network was trained on bright ink.
        progress: whether many files have a progress bar.
    """
    support = features_of(learner, task.support, invert=invert, what="support", progress=progress)
    queries = features_of(learner, task.queries, invert=invert, what="queries", progress=progress)
    with tqdm(total=len(queries), desc="posterior", unit="image", disable=not progress or len(queries) <= FILES_AT_ONCE) as bar:
        return predict_features(
            learner,
            support,
            task.labels,
            queries,
            task.class_names,
            steps=steps,
            num_samples=num_samples,
            batch=batch,
            watch=bar.update,
        )


def write_table(path: Path, task: OwnTask, predicted: TaskPredictions) -> Path:
    """A CSV file with one line per query: file, predicted class, true class where it is known, then for each class its
    probability and interval, then entropy, mutual information (nats) and distance."""
    low, high = f"p{50 * (1 - LEVEL):g}", f"p{50 * (1 + LEVEL):g}"
    columns = [column for name in task.class_names for column in (f"p({name})", f"{low}({name})", f"{high}({name})")]
    header = ["file", "predicted", "true", *columns, "entropy", "mutual_information", "distance"]
    numbers = torch.stack([predicted.probabilities, predicted.lower, predicted.upper], dim=-1).flatten(1)
    last = torch.stack([predicted.entropy, predicted.mutual_information, predicted.distance], dim=-1)

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header)
            for i, (name, query) in enumerate(zip(predicted.names, task.queries, strict=True)):
                label = task.truth[i]
                true = "" if label is None else task.class_names[label]
                values = (f"{value:.6g}" for value in (*numbers[i].tolist(), *last[i].tolist()))
                table.writerow([readable(str(query)), name, true, *values])

    return write_atomically(path, write)


def summary(task: OwnTask, predicted: TaskPredictions) -> str:
    """Accuracy with a 95 % interval (Wilson's) and NLL, where classes of queries are known; else an empty text."""
    known, labels = task.known, task.known_labels
    if not len(known):
        return ""
    right = int((predicted.labels[known] == labels).sum())
    interval = binomtest(right, len(known)).proportion_ci(method="wilson")
    nll = -predicted.probabilities[known, labels].log().mean()
    return (
        f"accuracy {100 * right / len(known):.1f} % ({right} of {len(known)}; 95 % interval {100 * interval.low:.1f} to "
        f"{100 * interval.high:.1f} %), NLL {float(nll):.3f} nats per query"
    )


def first_lines(task: OwnTask, predicted: TaskPredictions, count: int = 10) -> str:
    """The ``count`` least certain queries as lines of text."""
    chosen = predicted.entropy.argsort(descending=True)[:count].tolist()
    files = {i: readable(task.queries[i].name) for i in chosen}
    width = max(map(len, (*files.values(), "least certain")))
    wide = max(len("predicted"), *(len(predicted.names[i]) for i in chosen))
    lines = [f"{'least certain':{width}}  {'predicted':{wide}}  probability (90 % interval)  entropy  distance"]
    for i in chosen:
        c = int(predicted.labels[i])
        interval = f"{predicted.probabilities[i, c]:.2f} ({predicted.lower[i, c]:.2f} to {predicted.upper[i, c]:.2f})"
        numbers = f"{predicted.entropy[i]:7.2f}  {predicted.distance[i]:8.2f}"
        lines.append(f"{files[i]:{width}}  {predicted.names[i]:{wide}}  {interval:27}  {numbers}")
    return "\n".join(lines)
