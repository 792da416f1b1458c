"""Distil a teacher into a student: ``VID.fit(student, teacher, x, y)``."""

from __future__ import annotations

import copy
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.augmentation import CROPS, LETTERS
from data.errors import UserError
from data.items import LabelledItems
from data.seeding import seeded
from guides.empty import EmptyGuide
from inference.elbo import RateDistortionELBO
from inference.evaluation.metrics import predictive_scores
from inference.runs.checks import check_items
from inference.runs.commands import options_to_yaml
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state, save_tensors
from inference.runs.training import train
from inference.vid.methods import Method
from inference.vid.options import VidOptions
from inference.vid.training import DistillationTraining
from models.distillation.decoders import information_bound, marginal_entropy, surprise_map
from models.distillation.losses import Transfer
from models.distillation.model import DistillationModel
from models.networks.layers import embed, features, layer_outputs

EXAMPLES = 256  # items that decoders start from


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
            options: fields of :class:`~inference.vid.options.VidOptions`; ``out`` keeps the run folder. Images are augmented
                only where they are uint8.

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
        with tempfile.TemporaryDirectory() as scratch:
            run = RunFolder.create(chosen.out or Path(scratch) / "run", "vid", options_to_yaml(chosen))
            return fit_student(
                student, teacher, data if y is not None else None, chosen, run, "student",
                method=method, strength=strength, everything=everything, mirror=mirror,
            )  # fmt: skip

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

    def information(self, x: Tensor) -> dict[str, float]:
        """The bound on I(t; s) of each decoded teacher layer on ``x``, nats; see
        :func:`~models.distillation.decoders.information_bound`."""
        decoded = self.decoded(x)
        return {layer: float(information_bound(self.model.decoders[layer], s, t)) for layer, (s, t) in decoded.items()}

    def entropies(self, x: Tensor) -> dict[str, float]:
        """Ĥ(t) of each decoded teacher layer, nats; see :func:`~models.distillation.decoders.marginal_entropy`."""
        return {layer: float(marginal_entropy(t)) for layer, (_, t) in self.decoded(x).items()}

    def surprise(self, x: Tensor) -> dict[str, Tensor]:
        """−log q(t given s) over space, nats a position: teacher layer -> ``[n, height, width]`` on the CPU, for maps."""
        decoded = {layer: pair for layer, pair in self.decoded(x).items() if pair[1].dim() == 4}
        return {layer: surprise_map(self.model.decoders[layer], s, t).cpu() for layer, (s, t) in decoded.items()}

    def decoded(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Teacher layer -> (s, t) of the pairs that have decoders, in evaluation mode."""
        if not self.model.decoders:
            return {}
        self.model.eval()
        pairs = {pair.teacher: pair.student for pair in self.model.pairs if pair.transfer is Transfer.VID}
        taught, learned = features(self.teacher, x, list(pairs)), features(self.student, x, list(pairs.values()))
        return {t: (learned[s], taught[t].to(learned[s].device)) for t, s in pairs.items()}


def fit_student(
    student: nn.Module,
    teacher: nn.Module,
    data: LabelledItems | None,
    options: VidOptions,
    run: RunFolder,
    stage: str,
    *,
    method: str = "student",
    strength: float = 1.0,
    everything: LabelledItems | None = None,
    mirror: bool = False,
    seed: int | None = None,
    updates: int | None = None,
) -> VID:
    """Train ``student`` in place by one method in ``run``, or read it back where it is finished; it is left in evaluation mode.

    Args:
        teacher: read only.
        data: items with labels; ``None`` trains on the teacher's layers alone.
        stage: name of its checkpoints and logs.
        everything: all items, where not all have labels.
        mirror: whether augmentation may mirror images.
        seed: of order and augmentation; the options' when not given.
        updates: optimiser steps; the options' when not given.

    Raises:
        UserError: layers that cannot be found or compared, labels the student has no output for, or a loss that is not finite.
    """
    source = data if data is not None else everything
    assert source is not None
    check_items(student, source, classes=data is not None)
    if data is None and not Method.parse(method).terms:
        raise UserError(f"{method} learns from labels alone, and there are none")
    example = source.choose(min(EXAMPLES, len(source)), 0).items
    seed = options.seed if seed is None else seed
    with seeded(seed):
        models = build_models(student, teacher, example, method, strength, options)
    finished = run.checkpoints / f"{stage}.safetensors"
    augmentation = (CROPS if mirror else LETTERS) if options.augment and example.dtype == torch.uint8 else None
    for name, model in zip((f"{stage}-hint", stage)[-len(models) :], models, strict=True):
        if finished.exists():
            break
        is_hint = model is not models[-1]
        module = DistillationTraining(
            RateDistortionELBO()(model.train(), EmptyGuide()),
            teacher,
            None if is_hint else data,
            source if is_hint and everything is None else everything,
            updates=updates or options.updates,
            batch=options.batch,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            augmentation=augmentation,
            seed=seed,
        )
        with run.timed(name), seeded(seed):
            train(module, options.loop, run, name, epochs=module.epochs)
    if not finished.exists():
        save_tensors(finished, models[-1].state_dict(), {"method": method, "strength": strength})
    load_state(models[-1], finished)
    return VID(models[-1].eval(), teacher, method, strength)


def build_models(
    student: nn.Module, teacher: nn.Module, example: Tensor, method: str, strength: float, options: VidOptions
) -> list[DistillationModel]:
    """The Pyro model of each stage of training: one, or a hint stage before it.

    Raises:
        UserError: layers that cannot be found or compared.
    """
    way = Method.parse(method)
    where = (teacher, student, example, strength, options.layer_pairs)
    try:
        layer_outputs("teacher", teacher, example[:2], [])
        stages = ([way.hint_pairs(*where)] if way.stages else []) + [way.pairs(*where)]
        return [
            DistillationModel(student, teacher, pairs, example, heteroscedastic=options.heteroscedastic) for pairs in stages
        ]
    except ValueError as error:
        raise UserError(f"{method}: {error}") from None
