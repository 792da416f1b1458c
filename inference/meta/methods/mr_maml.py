"""MR-MAML: MAML of a whole network whose unadapted weights are costly, so that tasks are not learned by heart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from data.errors import UserError
from guides.tasks.adapted import AdaptedScorer
from guides.tasks.regularised import EncoderGuide
from inference.meta.choices import read_given
from inference.meta.methods.maml import MamlOptions, descent
from inference.meta.settings import NETWORK, GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.values import PositiveNumber, plain
from models.likelihoods import TemperedCategorical
from models.tasks.regularised import RegularisedModel

EARLIER = 0.0
"""Weight in the loss of steps before the last: the loss is the adapted network's alone."""
FIXED_WAY = True
ENCODER = "guide.predictor.encoder."
"""What the names of the weights that are random begin with, in the scorer."""


@dataclass(frozen=True, kw_only=True)
class MrMamlOptions(MamlOptions):
    """What may stand behind ``mr-maml``: as behind ``maml``, and

    Args:
        size: α, of the steps.
        adapted: what of the network the steps adapt: its head, or its last block of convolutions too. The weights of the other
            layers are random.
        penalty: of the random weights: their rate (the paper's W), or, decay, ½‖θ‖² of weights that are a point.
        scale: standard deviation of the random weights at first.
        tested: whether test tasks see draws of these weights, as many as there are predictions to average, or their means.
    """

    size: PositiveNumber = 0.1
    adapted: Literal["block", "head"] = "head"
    penalty: Literal["weights", "decay"] = "weights"
    scale: PositiveNumber = 0.01
    tested: Literal["draws", "means"] = "draws"

    def check(self) -> None:
        super().check()
        for name in ("scale", "tested"):
            if self.penalty == "decay" and getattr(self, name) != getattr(MrMamlOptions, name):
                given = f"`{name}={plain(getattr(self, name))}`"
                raise UserError(f"{given} is about random weights: choose `penalty=weights`, or leave it out")


OPTIONS = MrMamlOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One for each β above 0."""
    own = read_given(MrMamlOptions, swept.given)
    betas = [beta for beta in swept.beta if beta > 0]
    return [Variant("mr-maml", NETWORK, None, beta, own.steps, given=swept.given) for beta in betas]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.regularised.RegularisedModel` of a network: MAML's steps adapt its last layers, and the weights θ
    of those below cost KL(q(θ) ‖ N(0, I)), once for all training tasks.

    Source: Yin et al. 2020, section 4.2, equation 5: the β of a mean over n tasks and K queries that they have is β / n K of
    ours. The authors' code has no image classification; of poses it adapts layers behind a convolutional encoder too, and draws
    its weights in tests.

    Args:
        means: of the base classes: not needed.

    Raises:
        UserError: there are no images, or a network without blocks whose last could be adapted.
    """
    own = read_given(MrMamlOptions, variant.given)
    scorer = AdaptedScorer(descent(settings, own, "mr-maml"), way=settings.way)
    model = RegularisedModel(
        scorer,
        TemperedCategorical(),
        random=lambda name: name.startswith(ENCODER),
        num_tasks=settings.tasks,
        draws_at_once=1,
    )
    scale = own.scale if own.penalty == "weights" else None
    return model, EncoderGuide(model.start, scale, at_mean=own.tested == "means")
