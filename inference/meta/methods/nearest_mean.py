"""Nearest class mean: a query belongs to the class whose support mean is nearest; nothing is latent, the scale is learned."""

from __future__ import annotations

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from guides.empty import EmptyGuide
from inference.meta.named import find_predictor
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from models.likelihoods import TemperedCategorical
from models.networks.feature_space import class_means
from models.plates import num_classes, task_plate
from models.tasks.predictors import Predictor


class NearestMeanModel(PyroModule):
    """y ~ Categorical(softmax ŷ(x, class means of the support)): p(y given x, support) written down directly.

    Site: ``labels`` in ``tasks`` × ``queries``. Source: Snell et al. 2017, equation 2, on features that are given.

    Args:
        predictor: ŷ, whose scale is learned.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor, self.likelihood = predictor, TemperedCategorical()

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> Tensor:
        """Run the program; shapes as in :class:`~models.tasks.model.EmpiricalBayesModel`."""
        way = num_classes(support_y) if way is None else way
        likelihood = self.likelihood.given(support_y.shape[-1] / way, way)
        means = class_means(support_x, support_y, way)
        with task_plate(query_x, None), pyro.plate("queries", query_x.shape[1], dim=-1):
            return pyro.sample("labels", likelihood(self.predictor(query_x, means)), obs=query_y)


def variants(swept: VariantSettings) -> list[Variant]:
    """One for each predictor."""
    return [Variant("nearest-mean", predictor, None, None, 0) for predictor in swept.predictor]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """The program and an empty guide; ``means``, of the base classes, are not needed."""
    return NearestMeanModel(find_predictor(variant.predictor)()), EmptyGuide()
