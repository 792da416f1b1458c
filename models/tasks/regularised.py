"""Few-shot programs whose tasks cannot be learned by heart for free: what is read of an input besides the support costs nats.

Source: Yin et al. 2020, "Meta-learning without memorization", equations 4 (codes) and 5 (weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.likelihoods import Likelihood
from models.networks.frozen import freeze
from models.networks.functional import flat_weights, split_weights
from models.plates import task_plate
from models.sites import Site
from models.tasks.scorers.base import Scorer

LEAST = 1e-6
"""Of a code's standard deviation."""


class EncodedScorer(Scorer):
    """ŷ(f(x), f(S)): items go through an encoder f before another scorer sees them.

    Args:
        encoder: f, ``[..., n, D]`` to ``[..., n, codes]``.
        scorer: ŷ of what it gives.
    """

    def __init__(self, encoder: nn.Module, scorer: Scorer) -> None:
        super().__init__()
        self.encoder, self.scorer = encoder, scorer
        self.way, self.transductive = scorer.way, scorer.transductive

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        return self.scorer(self.encoder(support_x), support_y, self.encoder(query_x), way)


def of_encoder(name: str) -> bool:
    """Whether a parameter of an :class:`EncodedScorer`, by its ``name``, is the encoder's."""
    return name.startswith("encoder.")


class Scored(PyroModule):
    """A program that says its sites where there are labels to score."""

    def says_sites(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None, way: int = 1
    ) -> bool:
        """Whether ``sites`` says all of a call."""
        return query_y is not None


class RegularisedModel(Scored):
    """Labels y_ti ~ p(y given ŷ(x_ti, S_t; θ)), where θ, some weights of the scorer, are random and shared by all tasks:
    θ ~ N(0, I). What the guide's θ know of the training tasks is its rate, which is counted once for all of them.

    Sites: ``encoder`` (event ``[P]``) outside the plate ``tasks``, ``labels`` in ``tasks`` × ``queries``. Support and queries,
    and all tasks, see one draw of θ.

    Source: Yin et al. 2020, section 4.2, equation 5: θ are the weights that are not adapted. Their objective is a mean over
    n tasks and K queries each, and this one a sum over them: β is n K times theirs. Where their loss is a squared error and
    ours −log N(y; ŷ, σ²), it is n K / 2σ² times theirs. β = 1 is the evidence bound of all training tasks.

    Args:
        scorer: ŷ; its random weights become constants, of which the guide makes its start.
        likelihood: p(y given ŷ).
        random: which parameters of the scorer are in θ, by name; all of them are Bayes by backprop (Blundell et al. 2015).
        num_tasks: n; in training mode the labels of a batch are scaled up to it. ``None``: the batch is the data set.
        draws_at_once: how many draws of θ the scorer runs under at once, which bounds the memory; all when not given.

    Raises:
        ValueError: no parameter is random.

    Attributes:
        shapes: of the random parameters, by name.
    """

    def __init__(
        self,
        scorer: Scorer,
        likelihood: Likelihood,
        *,
        random: Callable[[str], bool] = of_encoder,
        num_tasks: int | None = None,
        draws_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.scorer, self.likelihood, self.num_tasks, self.draws_at_once = scorer, likelihood, num_tasks, draws_at_once
        self.shapes = {name: p.shape for name, p in scorer.named_parameters() if random(name)}
        if not self.shapes:
            raise ValueError("no parameter of the scorer is random")
        self.start = flat_weights(scorer, self.shapes)
        freeze(scorer, self.shapes.__contains__)

    def prior(self, like: Tensor) -> dist.TorchDistribution:
        """N(0, I) over θ, event_shape ``[P]``, with dtype and device of ``like``."""
        return dist.Normal(like.new_zeros(self.start.shape), like.new_ones(())).to_event(1)

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int = 1,
    ) -> Tensor:
        """Run the program: it scores the query labels, or draws them where there are none.

        Args:
            support_x: ``[tasks, support, *item]``.
            support_y: ``[tasks, support]``.
            query_x: ``[tasks, query, *item]``.
            query_y: ``[tasks, query]`` or ``None``.
            way: classes per task; 1 in regression.

        Returns:
            The labels, as given or drawn, ``[..., tasks, query]``.
        """
        weights = pyro.sample("encoder", self.prior(query_x))
        labels = self.labels(weights, support_x, support_y, query_x, way)
        with task_plate(query_x, self.num_tasks if self.training else None), pyro.plate("queries", query_x.shape[1], dim=-1):
            return pyro.sample("labels", labels, obs=query_y)

    def labels(
        self, weights: Tensor, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int
    ) -> dist.TorchDistribution:
        """p(y given x, S, θ) of all queries, batch_shape ``[..., tasks, query]``, for ``weights`` θ, ``[P]`` or under a plate
        of draws ``[draws, 1, 1, P]``; the rest as of the call."""
        scorer, shapes = self.scorer, self.shapes  # read here, for Pyro's store cannot be asked inside vmap

        def outputs(theta: Tensor) -> Tensor:
            return torch.func.functional_call(scorer, split_weights(theta, shapes), (support_x, support_y, query_x, way))

        rows = weights.reshape(-1, weights.shape[-1])
        found = outputs(rows[0])[None] if len(rows) == 1 else torch.func.vmap(outputs, chunk_size=self.draws_at_once)(rows)
        found = found.unflatten(0, weights.shape[:-3]) if weights.dim() > 1 else found[0]
        return self.likelihood.given(support_y.shape[-1] / way, way)(found)

    def sites(
        self,
        drawn: Mapping[str, Tensor],
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int = 1,
    ) -> dict[str, Site]:
        """What a call samples, by name, at the guide's weights, ``drawn``; arguments as of the call."""
        labels = self.labels(drawn["encoder"], support_x, support_y, query_x, way)
        scale = self.num_tasks / len(query_x) if self.training and self.num_tasks is not None else 1.0
        return {
            "encoder": Site(self.prior(query_x)),
            "labels": Site(labels, query_y, scale=scale, plates=tuple(query_x.shape[:2])),
        }


class GaussianEncoder(nn.Module):
    """q(z given x) = N(m(x), diag s(x)²), m and s by one network.

    Args:
        layers: ``[..., n, D]`` to ``[..., n, 2 · codes]``: m, and what softplus makes s of.
        codes: numbers of z.
    """

    def __init__(self, layers: nn.Module, codes: int) -> None:
        super().__init__()
        self.layers, self.codes = layers, codes

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """``[..., n, D]`` to batch_shape ``[..., n]``, event_shape ``[codes]``."""
        mean, scale = self.layers(x).chunk(2, dim=-1)
        return dist.Normal(mean, LEAST + F.softplus(scale)).to_event(1)


class CodedModel(Scored):
    """Labels y_ti ~ p(y given ŷ(z_ti, S_t)) of codes z_ti ~ N(0, I): all that is read of a query is its code, and what its code
    tells of the query is its rate.

    Sites: ``support_codes`` in ``tasks`` × ``support`` and ``codes`` in ``tasks`` × ``queries`` (events ``[codes]``),
    ``labels`` in ``tasks`` × ``queries``. The support's codes are given x: p is q, so that they have no rate.

    Source: Yin et al. 2020, section 4.1, equation 4; the prior is their r(z). Their objective is a mean over n tasks and K
    queries, as are the rates in it, and this one a sum over both: β is theirs. Where their loss is a squared error and ours
    −log N(y; ŷ, σ²), it is theirs / 2σ². That the rate bounds what predictions owe to the support is not so: it is a penalty.

    Args:
        encoder: q(z given x), the guide's own.
        scorer: ŷ of codes.
        likelihood: p(y given ŷ).
    """

    def __init__(self, encoder: GaussianEncoder, scorer: Scorer, likelihood: Likelihood) -> None:
        super().__init__()
        self.encoder, self.scorer, self.likelihood = encoder, scorer, likelihood

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int = 1,
    ) -> Tensor:
        """Run the program; arguments and what it returns as of :class:`RegularisedModel`."""
        with task_plate(query_x, None):
            with pyro.plate("support", support_x.shape[1], dim=-1):
                support = pyro.sample("support_codes", self.encoder(support_x))
            with pyro.plate("queries", query_x.shape[1], dim=-1):
                codes = pyro.sample("codes", self.prior(query_x))
                return pyro.sample("labels", self.labels(support, support_y, codes, way), obs=query_y)

    def prior(self, query_x: Tensor) -> dist.TorchDistribution:
        """N(0, I) over the code of each query, batch_shape ``[tasks, query]``."""
        shape = (*query_x.shape[:2], self.encoder.codes)
        return dist.Normal(query_x.new_zeros(shape), query_x.new_ones(())).to_event(1)

    def labels(self, support: Tensor, support_y: Tensor, codes: Tensor, way: int) -> dist.TorchDistribution:
        """p(y given z, S) of all queries, batch_shape ``[..., tasks, query]``, of codes ``[..., tasks, n, codes]``."""
        draws = codes.shape[:-3]  # which are more tasks, for the scorer
        known = support_y.expand(*draws, *support_y.shape).flatten(0, -2)
        outputs = self.scorer(support.flatten(0, -3), known, codes.flatten(0, -3), way)
        return self.likelihood.given(support_y.shape[-1] / way, way)(outputs.unflatten(0, codes.shape[:-2]))

    def sites(
        self,
        drawn: Mapping[str, Tensor],
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int = 1,
    ) -> dict[str, Site]:
        """What a call samples, by name, at the guide's codes, ``drawn``; arguments as of the call."""
        labels = self.labels(drawn["support_codes"], support_y, drawn["codes"], way)
        return {
            "support_codes": Site(self.encoder(support_x), plates=tuple(support_x.shape[:2])),
            "codes": Site(self.prior(query_x), plates=tuple(query_x.shape[:2])),
            "labels": Site(labels, query_y, plates=tuple(query_x.shape[:2])),
        }
