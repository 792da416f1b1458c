"""MAML: a few gradient steps of a whole network on the support; its start is what tasks share."""

from __future__ import annotations

from collections import OrderedDict
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
from models.networks.backbones import Backbone, build_backbone
from models.networks.feature_network import FeatureNetwork
from models.networks.functional import FunctionalNetwork, flat_weights, split_weights
from models.networks.norms import with_norm
from models.tasks.model import EmpiricalBayesModel
from models.tasks.network_predictor import EncodedPredictor, NetworkPredictor
from models.tasks.priors import GaussianPrior
from models.tasks.regularised import RegularisedModel

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
        adapted: what of the network the steps adapt: all, its head, or its last block of convolutions too; the other layers are
            the same for all tasks.
        norm: whose statistics batch norm takes: running (of pre-training), task (of the task's items: transductive, as in the
            original code) or group (group norm).
    """

    steps: PositiveInt = 5
    size: PositiveNumber = 0.01
    learned: bool = False
    per_feature: bool = False
    first_order: bool = False
    adapted: Literal["all", "block", "head"] = "all"
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
    guide = descent(settings, read_given(MamlOptions, variant.given), "maml")
    return EmpiricalBayesModel(guide.prior, guide.predictor, TemperedCategorical()), guide


def descent(settings: GuideSettings, own: MamlOptions, method: str) -> UnrolledGuide:
    """The steps of a method's ``own`` options, from the weights of an untrained network.

    Args:
        method: its name.

    Raises:
        UserError: there are no images.
    """
    predictor = network_predictor(settings, own.norm, method, own.adapted)
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
    return UnrolledGuide(
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


def network_predictor(settings: GuideSettings, norm: str, method: str, adapted: str = "all") -> NetworkPredictor:
    """ŷ of the ``adapted`` weights of backbone and linear head, under a ``norm``, both of :class:`MamlOptions`.

    Args:
        method: named where there are no images.

    Raises:
        UserError: there are none, or a last block is to be adapted of a network that has no such blocks.
    """
    if settings.image_shape is None:
        raise UserError(f"{method} adapts a network for images: start from images, not from features")
    backbone: Any = build_backbone(settings.backbone, settings.image_shape)
    head = nn.Linear(backbone.num_features, settings.way)
    whole = with_norm(nn.Sequential(backbone, head), norm)
    if adapted == "all":
        return NetworkPredictor(FunctionalNetwork(whole), settings.way, settings.image_shape)
    check_blocks(adapted, settings.backbone, method)
    encoder, last = parted(whole[0], adapted)
    functional = FunctionalNetwork(nn.Sequential(last, whole[1]))
    return EncodedPredictor(encoder, functional, settings.way, settings.image_shape)


def check_blocks(adapted: str, backbone: str, method: str) -> None:
    """Refuse to have the last block ``adapted`` of a network, by the name of its ``backbone``, that has no such blocks, and a
    ``method`` of which the other layers are random where there are no layers.

    Raises:
        UserError: in one line.
    """
    if method == "mr-maml" and backbone == Backbone.PIXELS:
        raise UserError(
            f"{method} has random weights below those it adapts, and `backbone={backbone}` has none: choose conv4-64"
        )
    if adapted == "block" and not backbone.startswith("conv4-"):
        raise UserError(
            f"`adapted=block` is about networks conv4-…, not `backbone={backbone}`: choose `adapted=head`, or conv4-64"
        )


def parted(backbone: nn.Module, adapted: str) -> tuple[nn.Module, nn.Module]:
    """The layers of a ``backbone`` that are not ``adapted``, and those that are; all keep their names."""
    if adapted == "head":
        return backbone, nn.Sequential()
    layers = list(backbone.named_children())
    first = max(number for number, (_, layer) in enumerate(layers) if isinstance(layer, nn.Conv2d))
    return nn.Sequential(OrderedDict(layers[:first])), nn.Sequential(OrderedDict(layers[first:]))


@torch.no_grad()
def start_from(model: Any, guide: Any, network: FeatureNetwork) -> None:
    """Let what an untrained ``model`` and ``guide`` of a whole network start from be a pre-trained ``network``, with a head of
    its own."""
    random = isinstance(model, RegularisedModel)
    steps: Any = model.scorer.guide if random else guide
    predictor, known = steps.predictor, network.backbone.state_dict()
    own = split_weights(steps.start.loc[0], predictor.network.shapes)
    parts = [known.get(name.removeprefix("0."), value) if name.startswith("0.") else value for name, value in own.items()]
    steps.start.loc.copy_(torch.cat([part.flatten() for part in parts]))
    trained = dict(network.backbone.named_parameters())
    statistics = {name: value for name, value in known.items() if name not in trained}
    predictor.network.network[0].load_state_dict(statistics, strict=False)  # of batch norm, where that has any
    if isinstance(predictor, EncodedPredictor):
        predictor.encoder.load_state_dict(known, strict=False)
    if random:
        guide.loc.copy_(flat_weights(model.scorer, model.shapes))
