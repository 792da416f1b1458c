"""MAML: a few gradient steps of a whole network on the support; its start is what tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.errors import UserError
from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart
from guides.tasks.unrolled import Evidence, Reduction, UnrolledGuide
from inference.meta.choices import read_given
from inference.meta.settings import NETWORK, GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import CategoricalLikelihood, TemperedCategorical
from models.networks.backbones import build_backbone
from models.networks.feature_network import FeatureNetwork
from models.networks.functional import FunctionalNetwork, split_weights
from models.networks.norms import with_norm
from models.tasks.model import EmpiricalBayesModel
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.priors import GaussianPrior

EARLIER = 0.0
"""Weight in the loss of steps before the last: the loss is the adapted network's alone."""
FIXED_WAY = True


@dataclass(frozen=True, kw_only=True)
class MamlOptions(Options):
    """What may stand behind ``maml``.

    Args:
        steps: K, gradient steps on the support.
        size: α, of the steps.
        learned: learn one α for each step.
        per_feature: learn one for each step and weight, as Meta-SGD does.
        first_order: no second derivatives.
        norm: whose statistics batch norm takes: running (of pre-training), task (of the task's items: transductive, as in the
            original code) or group (group norm).
    """

    steps: PositiveInt = 5
    size: PositiveNumber = 0.01
    learned: bool = False
    per_feature: bool = False
    first_order: bool = False
    norm: Literal["running", "task", "group"] = "running"


OPTIONS = MamlOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One, with K steps: a point for each task."""
    own = read_given(MamlOptions, swept.given)
    return [Variant("maml", NETWORK, Family.DELTA.value, None, own.steps, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """φ ← φ − α ∇_φ mean_{i∈support} −log p(y_i given x_i, φ), K times, of all weights φ of backbone and linear head.

    Source: Finn et al. 2017, algorithm 2; α and K as for mini-ImageNet there. With ``per_feature`` α is a vector, learned with
    the start: Li et al. 2017, "Meta-SGD", algorithm 1, there with one step, and with elements of any sign, where ours are
    learned on the log scale and stay positive.

    Args:
        means: of the base classes: not needed.

    Raises:
        UserError: there are no images.
    """
    own = read_given(MamlOptions, variant.given)
    predictor = network_predictor(settings, own.norm, "maml")
    functional = predictor.network
    one = torch.zeros(functional.num_weights)
    prior = GaussianPrior(one, torch.ones(1).expand_as(one), learned=False)  # of a point it says nothing
    start = LearnedStart.from_network(functional)
    start.log_scale.requires_grad_(False)  # nor has a point a scale
    rule = GradientStep(
        own.steps,
        functional.num_weights,
        size=own.size,
        learned=own.learned or own.per_feature,
        per_feature=own.per_feature,
        point=True,
    )
    guide = UnrolledGuide(
        prior,
        predictor,
        start,
        ExactGradient(CategoricalLikelihood()),
        rule,
        steps=own.steps,
        on=Evidence.SUPPORT,
        beta=0.0,
        family=Family.DELTA,
        first_order=own.first_order,
        reduction=Reduction.MEAN,
    )
    return EmpiricalBayesModel(prior, predictor, TemperedCategorical()), guide


def network_predictor(settings: GuideSettings, norm: str, method: str) -> NetworkPredictor:
    """ŷ of all weights of backbone and linear head, under a ``norm`` of :class:`MamlOptions`.

    Args:
        method: named where there are no images.

    Raises:
        UserError: there are none.
    """
    if settings.image_shape is None:
        raise UserError(f"{method} adapts a network for images: start from images, not from features")
    backbone: Any = build_backbone(settings.backbone, settings.image_shape)
    network = nn.Sequential(backbone, nn.Linear(backbone.num_features, settings.way))
    return NetworkPredictor(FunctionalNetwork(with_norm(network, norm)), settings.way, settings.image_shape)


@torch.no_grad()
def start_from(guide: Any, network: FeatureNetwork) -> None:
    """Let the start of an untrained ``guide`` of :func:`build` be a pre-trained ``network``, with a head of its own."""
    functional, trained = guide.predictor.network, dict(network.backbone.named_parameters())
    own = split_weights(guide.start.loc[0], functional.shapes)
    known = {f"0.{name}": value for name, value in trained.items()}
    guide.start.loc.copy_(torch.cat([known.get(name, value).flatten() for name, value in own.items()]))
    statistics = {name: value for name, value in network.backbone.state_dict().items() if name not in trained}
    functional.network[0].load_state_dict(statistics, strict=False)  # of batch norm, where that has any
