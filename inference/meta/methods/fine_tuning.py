"""Fine-tuning: many gradient steps of a new linear head on the support, and no meta-training: what every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from guides.tasks.families import Family
from inference.meta.choices import read_given
from inference.meta.methods import anil
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import NonNegativeNumber, PositiveInt, PositiveNumber


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions(Options):
    """What may stand behind ``fine-tuning``.

    Args:
        steps: gradient steps on the support.
        size: of the steps.
        weight_decay: λ, which adds λ w to the gradient of a head w; the authors' code has 0.001 beside steps of 0.01.
    """

    steps: PositiveInt = 50
    size: PositiveNumber = 1.0
    weight_decay: NonNegativeNumber = 0.0


OPTIONS = FineTuningOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One."""
    own = read_given(FineTuningOptions, swept.given)
    return [Variant("fine-tuning", "linear", Family.DELTA.value, None, own.steps, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """As :func:`inference.meta.methods.anil.build`, with nothing to learn: a head of zeros, steps of one size.

    Source: Chen et al. 2019, "A closer look at few-shot classification", section 3.1 (Baseline), by plain gradient descent on
    the whole support, where the authors' code has momentum, and batches of four in 100 passes.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own = read_given(FineTuningOptions, variant.given)
    steps = anil.AnilOptions(steps=own.steps, size=own.size, learned=False)
    model, guide = anil.adapted_head(steps, means.shape[-1], decay=own.weight_decay)
    for parameter in (*model.parameters(), *guide.parameters()):
        parameter.requires_grad_(False)
    return model, guide
