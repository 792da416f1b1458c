"""Distil a teacher into a student: ``VID.fit(student, teacher, x, y)``."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.items import LabelledItems
from inference.evaluation.metrics import predictive_scores
from inference.runs.commands import options_to_yaml
from inference.runs.folder import RunFolder
from inference.vid.export import NUM_SAMPLES, student_to_arviz
from inference.vid.load import OWN, load_student
from inference.vid.methods import Method, few_layers
from inference.vid.options import VidOptions
from inference.vid.settings import StudentSettings
from inference.vid.student import fit_student
from models.distillation.information import DecodingGain, Entropy, Moments, surprise_map
from models.distillation.losses import Transfer
from models.distillation.model import DistillationModel
from models.networks.layers import embed, features

AT_ONCE = 256  # items whose layers are in memory together


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

    Attributes:
        model: student, pairs of layers and decoders.
        teacher: as it was.
        method: what it was trained by.
        strength: factor on the method's λ.
    """

    model: DistillationModel
    teacher: nn.Module
    method: str = "vid"
    strength: float = 1.0

    @property
    def student(self) -> nn.Module:
        """The student network, taught."""
        return self.model.student

    @classmethod
    def fit(
        cls,
        student: nn.Module,
        teacher: nn.Module,
        x: Tensor,
        y: Tensor | None,
        *,
        method: str = "vid",
        strength: float = 1.0,
        unlabelled: Tensor | None = None,
        mirror: bool = False,
        **options: Any,
    ) -> VID:
        """Train ``student`` in place; it is left in evaluation mode.

        Args:
            student, teacher: any modules from ``[n, *item]`` to logits; the teacher does not change.
            x: ``[n, *item]``.
            y: ``[n]`` int64; ``None`` trains on the teacher's layers alone.
            method: see :mod:`inference.vid.methods`.
            strength: factor on the method's λ.
            unlabelled: more inputs, ``[m, *item]``.
            mirror: the images are photographs: they are shifted and mirrored, instead of warped a little.
            options: fields of :class:`~inference.vid.options.VidOptions`; ``out`` keeps the run folder, for :meth:`load`.
                Images are augmented only where they are uint8.

        Raises:
            UserError: bad data or options, layers that cannot be found or compared, or a loss that is not finite.
        """
        chosen = VidOptions(**{"progress": False, **options, "methods": method})
        labels = y if y is not None else torch.zeros(len(x), dtype=torch.long)
        names = tuple(map(str, range(int(labels.max()) + 1)))
        data = LabelledItems(x, labels, names)
        everything = None
        if unlabelled is not None or y is None:
            items = x if unlabelled is None else torch.cat([x, unlabelled])
            everything = LabelledItems(items, torch.zeros(len(items), dtype=torch.long), names)
        settings = StudentSettings.of(chosen)
        with tempfile.TemporaryDirectory() as scratch:
            run = RunFolder.create(chosen.out or Path(scratch) / "run", "vid", options_to_yaml(chosen))
            model = fit_student(
                student, teacher, data if y is not None else None, settings, chosen.loop, run, OWN,
                method=method, strength=strength, everything=everything, mirror=mirror, seed=chosen.seed,
            )  # fmt: skip
        if settings.pairs is None and (note := few_layers(Method.parse(method), teacher, student, x)):
            warnings.warn(note, stacklevel=2)
        return cls(model, teacher, method, strength)

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
        """A trained student of a run of ``svi_vid``, or of :meth:`fit` with ``out``.

        Args:
            run: the run folder.
            method: as the run names it.
            per_class, labels: the student's number of images, or ``"all"``, and of labels per class; where several fit, or
                none is given, the one with the most images.
            number: of the run's repetitions, from 0.
            student, teacher: networks like those that were trained (``teacher`` with its weights), for :meth:`fit`; the
                command's networks are built and read without them.

        Raises:
            UserError: no such run or student, a damaged file, or a teacher that is nowhere.
        """
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
            UserError: too few items for ``full``.
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
        """Teacher layer -> (s, t) of the pairs that have decoders, in evaluation mode, for a few hundred items at a time."""
        self.model.eval()
        pairs = {pair.teacher: pair.student for pair in self.model.pairs if pair.transfer is Transfer.VID}
        for part in x.split(AT_ONCE) if pairs else ():
            taught, learned = features(self.teacher, part, list(pairs)), features(self.student, part, list(pairs.values()))
            yield {t: (learned[s], taught[t].to(learned[s].device)) for t, s in pairs.items()}
