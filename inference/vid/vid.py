"""Distil a teacher into a student: ``VID.fit(student, teacher, x, y)``, ``save``, ``load``, ``to``, ``predict``."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data.arguments import as_number, as_path, as_truth, as_whole, check_kind
from data.errors import UserError
from data.gather import gather
from data.inputs import as_items, as_tensor
from data.items import LabelledItems
from inference.evaluation.metrics import predictive_scores
from inference.evaluation.predictions import ClassPredictions
from inference.runs.checks import check_place, read_items
from inference.runs.commands import options_to_yaml
from inference.runs.folder import RunFolder
from inference.runs.interruptions import working_in
from inference.vid.export import NUM_SAMPLES, student_to_arviz
from inference.vid.load import OWN, Loaded, load_saved, load_student, save_student
from inference.vid.methods import Method, few_layers
from inference.vid.options import VidOptions
from inference.vid.settings import StudentSettings
from inference.vid.student import ItemKind, fit_student
from models.distillation.information import DecodingGain, Entropy, Moments, surprise_map
from models.distillation.losses import Transfer
from models.distillation.model import DistillationModel
from models.networks.layers import embed, evaluating, features, placed

AT_ONCE = 256  # items whose layers are in memory together


def read_classes(x: Any, y: Any) -> tuple[LabelledItems, bool]:
    """Items with classes, and whether they have any: without, all are of the first.

    Args:
        x, y: as for :meth:`VID.fit`.

    Raises:
        UserError: no items, unequal lengths, or targets that are no classes.
    """
    if y is None and not isinstance(x, LabelledItems | Dataset | DataLoader):
        items = as_tensor(x)
        data, labelled = LabelledItems(items, torch.zeros(len(items), dtype=torch.long), ()), False
    else:
        data, labelled = as_items(x, y), True
    if not len(data):
        raise UserError("x has no items: give one at least")
    if data.labels.is_floating_point():
        raise UserError("y holds real numbers: classes are whole numbers 0, 1, …, or names")
    return data, labelled


def without_classes(data: LabelledItems, more: Any) -> LabelledItems:
    """All items, those of ``data`` first, as if they had no classes.

    Args:
        more: other items, as ``x`` of :meth:`VID.fit`; ``None`` for none.

    Raises:
        UserError: these are of another kind.
    """
    items = data.items if more is None else gather((data.items, as_tensor(more)))
    return LabelledItems(items, torch.zeros(len(items), dtype=torch.long), data.class_names)


@torch.no_grad()
def predict_classes(network: nn.Module, x: Tensor, class_names: tuple[str, ...] = ()) -> ClassPredictions:
    """What one network says of items ``[n, *item]``, on the CPU.

    Args:
        network: to logits.
        x: on any device.
        class_names: of the first classes; the others have numbers.
    """
    parts = []
    with evaluating(network):
        for batch in x.split(AT_ONCE):
            logits = network(placed(network, batch))
            parts.append(ClassPredictions.from_draws(logits.softmax(-1)[None], class_names))
    return ClassPredictions.concatenate(parts)


class Frozen(nn.Module):
    """A network that stays in evaluation mode and takes no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@dataclass(frozen=True)
class VID:
    """A trained student with its decoders q(t given s).

    :meth:`fit` it, or :meth:`load` one that :meth:`save` or a run of ``svi_vid`` left; then :meth:`predict`. It is frozen:
    :meth:`to` gives another.

    Attributes:
        model: student, pairs of layers and decoders.
        teacher: as it was; ``None`` where a file was read without one, which is enough to predict.
        method: what it was trained by.
        strength: factor on the method's λ.
        kind: of its items and classes.
        network: arguments of :func:`~models.networks.classifiers.build_network`, where the student was built by name.
    """

    model: DistillationModel
    teacher: nn.Module | None
    method: str = "vid"
    strength: float = 1.0
    kind: ItemKind | None = None
    network: dict[str, Any] | None = None

    @property
    def student(self) -> nn.Module:
        """The student network, taught."""
        return self.model.student

    @classmethod
    def fit(
        cls,
        student: nn.Module,
        teacher: nn.Module,
        x: Any,
        y: Any = None,
        *,
        method: str = "vid",
        strength: float = 1.0,
        unlabelled: Any = None,
        mirror: bool = False,
        **options: Any,
    ) -> VID:
        """Train ``student`` in place; it is left in evaluation mode.

        Args:
            student, teacher: any modules from ``[n, *item]`` to logits; the teacher does not change.
            x: a tensor or array ``[n, *item]``; a list of arrays, PIL images or image files of one shape; or a ``Dataset`` or
                ``DataLoader`` of (item, class) pairs, without ``y``, which is read once and may be larger than memory.
            y: ``[n]`` classes, as whole numbers or names; beside a tensor, an array or a list ``None`` trains on the teacher's
                layers alone.
            method: see :mod:`inference.vid.methods`.
            strength: factor on the method's λ.
            unlabelled: more inputs, as ``x``, of which classes are not looked at.
            mirror: the images are photographs: they are shifted and mirrored, instead of warped a little.
            options: fields of :class:`~inference.vid.options.VidOptions`; ``out`` keeps the run folder, for :meth:`load`.
                Images are augmented only where they are uint8.

        Raises:
            UserError: bad data or options, layers that cannot be found or compared, or a loss that is not finite.
        """
        for name, network in (("student", student), ("teacher", teacher)):
            check_kind(name, network, nn.Module, "a module")
        strength, mirror = as_number(strength, "strength", zero=True), as_truth(mirror, "mirror")
        chosen = VidOptions(**{"progress": False, **options, "methods": method})
        data, labelled = read_classes(x, y)
        everything = without_classes(data, unlabelled) if unlabelled is not None or not labelled else None
        settings = StudentSettings.of(chosen)
        with tempfile.TemporaryDirectory() as scratch:
            run = RunFolder.create(chosen.out or Path(scratch) / "run", "vid", options_to_yaml(chosen))
            with working_in(run, new=True, resumes=False):
                model = fit_student(
                    student, teacher, data if labelled else None, settings, chosen.loop, run, OWN,
                    method=method, strength=strength, everything=everything, mirror=mirror, seed=chosen.seed,
                )  # fmt: skip
        if settings.pairs is None and (note := few_layers(Method.parse(method), teacher, student, data.items)):
            warnings.warn(note, stacklevel=2)
        return cls(model, teacher, method, strength, ItemKind.of(data))

    def save(self, path: str | Path) -> Path:
        """Write student and decoders into one file; neither the teacher nor the student's architecture is in it.

        Args:
            path: ends in .safetensors.

        Returns:
            the path.

        Raises:
            UserError: another suffix, a place that cannot be written to, or a student that was not fitted to items.
        """
        if self.kind is None:
            raise UserError("this VID does not know its items: fit or load one")
        return save_student(
            as_path(path), Loaded(self.model, self.teacher, self.method, self.strength, self.kind, self.network)
        )

    @classmethod
    def load(
        cls,
        run: RunFolder | str | Path,
        method: str = "vid",
        per_class: int | str | None = None,
        labels: int | None = None,
        number: int = 0,
        *,
        student: nn.Module | None = None,
        teacher: nn.Module | None = None,
    ) -> VID:
        """Read what :meth:`save` wrote, or a trained student of a run of ``svi_vid``, or of :meth:`fit` with ``out``.

        Args:
            run: the file, or the run folder, to which the next four arguments belong.
            method: as the run names it.
            per_class, labels: the student's number of images, or ``"all"``, and of labels per class; where several fit, or
                none is given, the one with the most images.
            number: of the run's repetitions, from 0.
            student: of the architecture that was trained, with any weights; copied, not changed. What ``svi_vid`` trained
                needs none.
            teacher: with its weights. To predict, none is needed; what the student knows of the teacher is asked of both.
                The command's is read where it is in the run folder or the cache.

        Raises:
            UserError: no such run or student, a damaged file, one of something else, or another network.
        """
        for name, network in (("student", student), ("teacher", teacher)):
            check_kind(name, network, nn.Module | None, "a module")
        if not isinstance(run, RunFolder) and not os.path.isdir(path := as_path(run, "run")):
            return cls(*load_saved(path, student, teacher))
        check_kind("method", method, str, "a name")
        number = as_whole(number, "number")
        per_class = per_class if per_class is None or isinstance(per_class, str) else as_whole(per_class, "per_class", 1)
        labels = None if labels is None else as_whole(labels, "labels")
        return cls(*load_student(run, method, per_class, labels, number, student=student, teacher=teacher))

    @classmethod
    def probe(cls, student: nn.Module, teacher: nn.Module, x: Tensor, **options: Any) -> VID:
        """Train decoders alone, for a copy of ``student`` as it is: what any student knows of a teacher.

        Args:
            x: ``[n, *item]``.
            options: as for :meth:`fit`.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # which is meant here
            return cls.fit(Frozen(copy.deepcopy(student)), teacher, x, None, **options)

    def to(self, *place: torch.device | torch.dtype | str) -> VID:
        """A copy, teacher included, on another device, in another floating-point type, or both: ``vid.to("cuda")``.

        This one stays as it is.

        Args:
            place: a device, a type, or one of each.

        Raises:
            UserError: neither, or a device that is not there.
        """
        check_place(*place)
        model, teacher = copy.deepcopy((self.model, self.teacher))
        model.to(*place)  # type: ignore[call-overload]
        return replace(self, model=model, teacher=None if teacher is None else teacher.to(*place))  # type: ignore[call-overload]

    def predict(self, x: Any) -> ClassPredictions:
        """Predictive distribution of each item, one or a hundred thousand: a batch of them is in memory at a time.

        The student's weights are points, so that intervals have no width, and mutual information is 0.

        Args:
            x: as for :meth:`fit`; classes of pairs are not looked at.

        Returns:
            probabilities, labels and entropy (nats), on the CPU.

        Raises:
            UserError: items of another shape than those it was trained on, or numbers that are not finite.
        """
        items = read_items(x, None if self.kind is None else self.kind.shape)
        return predict_classes(self.student, items, () if self.kind is None else self.kind.class_names)

    def probabilities(self, x: Tensor) -> Tensor:
        """Predictive probabilities ``[n, classes]``, on the CPU."""
        return embed(self.student, x).softmax(-1)

    def scores(self, items: LabelledItems) -> dict[str, float]:
        """``accuracy``, ``nll``, ``ece`` and ``brier``."""
        return predictive_scores(self.probabilities(items.items), items.labels)

    def to_arviz(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        train: LabelledItems | None = None,
        num_samples: int = NUM_SAMPLES,
        seed: int = 0,
        attributes: Mapping[str, Any] | None = None,
    ):
        """ArviZ ``InferenceData``; :mod:`inference.evaluation.arviz` says what each group means. All weights are points: what
        is stochastic are predictions of labels and of the teacher's layers, see :mod:`inference.vid.export`.

        Args:
            x, y: held-out inputs ``[n, *item]`` and, where they are known, labels ``[n]``.
            train: training items; a seeded choice of 100 where there are more.
            num_samples: draws, rounded up to a multiple of four.
            seed: of draws and choices.
            attributes: of the whole, such as command, method and data set.
        """
        return student_to_arviz(self, x, y, train=train, num_samples=num_samples, seed=seed, attributes=attributes)

    def decoding_gain(self, x: Tensor, *, entropy: Entropy | str = Entropy.DIAGONAL) -> dict[str, float]:
        """How much better each decoded teacher layer is known with the student than without, nats per item, over the items
        ``x``: the variational bound on I(t; s) plus a constant of the teacher, at least 0; see
        :class:`~models.distillation.information.DecodingGain`.

        Args:
            entropy: ``diagonal``, or ``full`` to count copies among a layer's units once.

        Raises:
            UserError: too few items for ``full``, or no teacher.
        """
        gains = {layer: DecodingGain(decoder, entropy) for layer, decoder in self.model.decoders.items()}
        for pairs in self.decoded(x):
            for layer, pair in pairs.items():
                gains[layer].add(*pair)
        try:
            return {layer: gain.value() for layer, gain in gains.items()}
        except ValueError as error:
            raise UserError(str(error)) from None

    def entropies(self, x: Tensor) -> dict[str, float]:
        """Ĥ(t) of each decoded teacher layer, nats per item; see :func:`~models.distillation.information.marginal_entropy`."""
        moments = {layer: Moments() for layer in self.model.decoders}
        for pairs in self.decoded(x):
            for layer, (_, t) in pairs.items():
                moments[layer].add(t)
        return {layer: float(summed.entropy()) for layer, summed in moments.items()}

    def surprise(self, x: Tensor) -> dict[str, Tensor]:
        """−log q(t given s) over space, nats per position: teacher layer -> ``[n, height, width]`` on the CPU, for maps."""
        maps: dict[str, list[Tensor]] = {}
        for pairs in self.decoded(x):
            for layer, (s, t) in pairs.items():
                if t.dim() == 4:
                    maps.setdefault(layer, []).append(surprise_map(self.model.decoders[layer], s, t).cpu())
        return {layer: torch.cat(parts) for layer, parts in maps.items()}

    def decoded_shapes(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        """Teacher layer -> its shape, of the pairs that have decoders."""
        return {layer: tuple(t.shape[1:]) for pairs in self.decoded(x[:1]) for layer, (_, t) in pairs.items()}

    def decoded(self, x: Tensor) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Teacher layer -> (s, t) of the pairs that have decoders, in evaluation mode, for a few hundred items at a time.

        Raises:
            UserError: the teacher is not there.
        """
        if self.teacher is None:
            raise UserError("the student was read without its teacher: give `teacher` to `VID.load`")
        self.model.eval()
        pairs = {pair.teacher: pair.student for pair in self.model.pairs if pair.transfer is Transfer.VID}
        for part in x.split(AT_ONCE) if pairs else ():
            taught, learned = features(self.teacher, part, list(pairs)), features(self.student, part, list(pairs.values()))
            yield {t: (learned[s], taught[t].to(learned[s].device)) for t, s in pairs.items()}
