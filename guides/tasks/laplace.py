"""Laplace's approximation of every task's posterior, at the weights that a few steps of descent end at."""

from __future__ import annotations

from functools import singledispatch

import pyro
import torch
from torch import Tensor, nn

from guides.tasks.families import Family, PosteriorParameters
from guides.tasks.gate import PriorGate
from guides.tasks.rules import Rule
from guides.tasks.starts import Start
from guides.tasks.unrolled import Evidence, UnrolledGuide
from models.distributions.support_gaussian import SupportGaussian
from models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    Likelihood,
    PoissonLikelihood,
    TemperedCategorical,
)
from models.plates import num_classes, task_plate
from models.sites import Site
from models.tasks.predictors import Predictor
from models.tasks.priors import GaussianPrior


class PriorStart(Start):
    """λ: the prior itself, for descent from where the prior is centred.

    Args:
        prior: the model's own module.
    """

    def __init__(self, prior: GaussianPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.prior.moments(self.prior.hyperparameters())  # [1, D]
        shape = (query_x.shape[0], rows, loc.shape[-1])
        return loc.expand(shape), log_scale.expand(shape)


class LaplaceGuide(UnrolledGuide):
    """q(w_t) = N(φ, (diag σ⁻² + Jᵀ Λ J / β)⁻¹): descent as in :class:`~guides.tasks.unrolled.UnrolledGuide` says where, the
    support's curvature how wide.

    φ is the mean after K steps, σ the prior's scale, J the slopes of the support's outputs at φ, and Λ the likelihood's
    curvature there: the generalised Gauss–Newton matrix, which for outputs that are natural parameters does not depend on the
    labels. Nothing is factorised further (the paper's curvature is Kronecker-factored), and rate, draws and log-determinant are
    exact, since few items make a low rank; see :class:`~models.distributions.support_gaussian.SupportGaussian`. J has support ×
    outputs × weights numbers a task.

    With a delta ``family`` the steps descend the distortion alone, as in MAML, and stop early; with a Gaussian one the prior
    pulls too, towards the mode of the posterior.

    Source: Grant et al. 2018, "Recasting gradient-based meta-learning as hierarchical Bayes" (LLAMA), subroutine ML-LAPLACE.

    Args:
        prior, predictor: the model's own modules.
        start: λ; :class:`PriorStart` is theirs.
        gradient, rule, steps, on, inner_samples, first_order, gate: of the descent, see
            :class:`~guides.tasks.unrolled.UnrolledGuide`. ``first_order`` leaves the curvature's own gradient as it is.
        likelihood: of the support's labels, whose curvature is taken; the model's own module.
        beta: weight of the rate, in the objective and so in the posterior: β > 0.
        family: what the steps descend as.

    Raises:
        ValueError: β is not positive.
    """

    correlated = True  # a posterior that is no product over weights
    prior: GaussianPrior

    def __init__(
        self,
        prior: GaussianPrior,
        predictor: Predictor,
        start: nn.Module,
        gradient: nn.Module,
        rule: Rule,
        likelihood: Likelihood,
        *,
        steps: int = 1,
        on: Evidence | str = Evidence.SUPPORT,
        beta: float = 1.0,
        inner_samples: int = 0,
        family: Family | str = Family.DELTA,
        first_order: bool = False,
        gate: PriorGate | None = None,
    ) -> None:
        if not beta > 0:
            raise ValueError(f"beta = {beta}: without a rate there is no posterior, β must be positive")
        super().__init__(
            prior,
            predictor,
            start,
            gradient,
            rule,
            steps=steps,
            on=on,
            beta=beta,
            inner_samples=inner_samples,
            family=family,
            first_order=first_order,
            gate=gate,
        )
        self.likelihood = likelihood

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> PosteriorParameters:
        """Sample the site ``weights`` (event ``[rows, D]``) in the plate ``tasks``; shapes as in the model."""
        way = num_classes(support_y) if way is None else way
        parameters = self.read(self.unroll(support_x, support_y, query_x, query_y, way))
        with task_plate(query_x, None):
            pyro.sample("weights", self.posterior(parameters.loc, support_x, way))
        return parameters

    def sites(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> dict[str, Site]:
        """What a call samples, by name; arguments as of the call."""
        way = num_classes(support_y) if way is None else way
        parameters = self.read(self.unroll(support_x, support_y, query_x, query_y, way))
        return {"weights": Site(self.posterior(parameters.loc, support_x, way), plates=(query_x.shape[0], 1))}

    def posterior(self, loc: Tensor, support_x: Tensor, way: int) -> SupportGaussian:
        """Laplace's approximation around φ = ``loc`` ``[..., tasks, rows, D]``: batch_shape ``[..., tasks, 1]``, the plates."""
        likelihood = self.likelihood.given(support_x.shape[1] / way, way)
        factor = curvature_factor(self.predictor, likelihood, support_x, loc) * self.beta**-0.5
        _, log_scale = self.prior.moments(self.prior.hyperparameters())
        return SupportGaussian(loc.unsqueeze(-3), (-2 * log_scale).exp(), factor.unsqueeze(-3))

    def log_evidence(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None, way: int | None = None
    ) -> Tensor:
        """Laplace's estimate of log ∫ p(y given w)^(1/β) p(w) dw over the support, nats: ``[tasks]``, or in front of it
        ``steps + 1`` where the guide is read after every step. Arguments as of a call.

        Exact at the mode of linear regression. Source: Grant et al. 2018, section 4.1.
        """
        way = num_classes(support_y) if way is None else way
        loc = self.read(self.unroll(support_x, support_y, query_x, query_y, way)).loc
        outputs = self.predictor(support_x, loc)
        fit = self.likelihood.given(support_x.shape[1] / way, way)(outputs).log_prob(support_y).sum(-1)
        centre, log_scale = self.prior.moments(self.prior.hyperparameters())
        distance = ((loc - centre) * (-log_scale).exp()).square().sum((-2, -1))
        told = self.posterior(loc, support_x, way).white.half_log_det()  # ½ log |I + σ Jᵀ Λ J σ / β|, [..., tasks, 1, 1]
        return fit / self.beta - 0.5 * distance - told[..., 0, 0]


def curvature_factor(predictor: Predictor, likelihood: Likelihood, items: Tensor, weights: Tensor) -> Tensor:
    """F with Fᵀ F = Jᵀ Λ J, the generalised Gauss–Newton matrix of −Σ_i log p(y_i given ŷ_i): ``[..., tasks, n · m, rows · D]``
    for ``items`` ``[tasks, n, *item]`` at ``weights`` ``[..., tasks, rows, D]``, m being the columns of R in Λ = R Rᵀ.

    Row (i, k) is the pull-back of R_i's column k: of all tasks at once, for they never mix. Differentiable.
    """
    outputs, pull_back = predictor.linearised(predictor.prepare(items), weights)
    root = curvature_root(likelihood, outputs).movedim(-1, 0)  # [m, ..., tasks, n, outputs]
    each = torch.eye(outputs.shape[-2], dtype=outputs.dtype, device=outputs.device)
    each = each.view(len(each), *[1] * (root.dim() - 2), len(each), 1)  # [n, 1, ..., 1, n, 1]
    rows = torch.func.vmap(pull_back)((each * root).flatten(0, 1))  # [n · m, ..., tasks, rows, D]
    return rows.flatten(-2).movedim(0, -2)


@singledispatch
def curvature_root(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """R with R Rᵀ = E_y[∂²(−log p(y given ŷ))/∂ŷ²], of each item: ``[..., n, outputs]`` to ``[..., n, outputs, m]``.

    For a ``likelihood`` of your own, ``curvature_root.register`` a function of it and its ``outputs``.
    """
    raise NotImplementedError(
        f"the curvature of {type(likelihood).__name__} is not known: give a function of it to "
        "guides.tasks.laplace.curvature_root.register"
    )


@curvature_root.register
def _categorical_root(likelihood: CategoricalLikelihood, outputs: Tensor) -> Tensor:
    """diag(√p) − p √pᵀ, whose square is diag(p) − p pᵀ."""
    log_p = outputs.log_softmax(-1)
    root = (0.5 * log_p).exp()
    return torch.diag_embed(root) - log_p.exp().unsqueeze(-1) * root.unsqueeze(-2)


@curvature_root.register
def _tempered_root(likelihood: TemperedCategorical, outputs: Tensor) -> Tensor:
    """Of ŷ / T, by the chain rule."""
    return likelihood.inverse * _categorical_root(likelihood, outputs * likelihood.inverse)


@curvature_root.register
def _gaussian_root(likelihood: GaussianLikelihood, outputs: Tensor) -> Tensor:
    """1 / noise."""
    return torch.diag_embed((-likelihood.log_noise).exp().expand_as(outputs))


@curvature_root.register
def _bernoulli_root(likelihood: BernoulliLikelihood, outputs: Tensor) -> Tensor:
    """√(p (1 − p)), written in logarithms."""
    return torch.diag_embed((0.5 * (nn.functional.logsigmoid(outputs) + nn.functional.logsigmoid(-outputs))).exp())


@curvature_root.register
def _poisson_root(likelihood: PoissonLikelihood, outputs: Tensor) -> Tensor:
    """√rate."""
    return torch.diag_embed((0.5 * outputs).exp())
