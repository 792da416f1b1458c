"""NIL: trained as ANIL, and then without the head: labels of the support, by likeness of features. No inner loop."""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn

from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.methods import anil, matching
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from models.likelihoods import Likelihood

EARLIER = anil.EARLIER
OPTIONS = anil.AnilOptions


class TrainedAs(PyroModule):
    """One program in training mode, another one in evaluation mode: what is learned by one is read by the other.

    Args:
        trained, tested: the programs; both models, or both guides.
    """

    tested: Any

    def __init__(self, trained: nn.Module, tested: nn.Module) -> None:
        super().__init__()
        self.trained, self.tested = trained, tested

    @property
    def likelihood(self) -> Likelihood:
        """That of predictions."""
        return self.tested.likelihood

    def forward(self, *episode: Any, **named: Any) -> Any:
        """Run the program of this mode."""
        return (self.trained if self.training else self.tested)(*episode, **named)


def variants(swept: VariantSettings) -> list[Variant]:
    """One; nothing is latent in what predicts. Options are those of ``anil``, of its training."""
    read_given(anil.AnilOptions, swept.given)
    return [Variant("nil", "cosine", None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """The features that ANIL trains, and on new tasks the rule of matching networks: cosines with the support items weight
    their labels. What ANIL's head has learned is then not read.

    Source: Raghu et al. 2020, "Rapid learning or feature reuse?", section 5.1, the NIL algorithm after ANIL training.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    model, guide = anil.build(settings, variant, means)
    tested = matching.build(settings, Variant("matching", "cosine", None, None, 0), means)[0].requires_grad_(False)
    return TrainedAs(model, tested), TrainedAs(guide, EmptyGuide())
