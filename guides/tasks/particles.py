"""Particles: a task's posterior as M points that a kernel holds apart, moved by Stein variational gradient descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from guides.tasks.families import Family, PosteriorParameters
from guides.tasks.rules import GradientStep, Pull
from guides.tasks.starts import Start
from guides.tasks.unrolled import Evidence, Part, Reduction, UnrolledGuide
from models.likelihoods import GaussianLikelihood
from models.networks.feature_space import class_means
from models.tasks.predictors import Predictor
from models.tasks.priors import Prior

CLOSEST = 1e-6
"""Least median of squared distances, in units of what is expected of two draws of the prior."""


class ParticleStart(Start):
    """λ: M learned points, whatever the task: of a network its one row of weights, of a head one row for every class, so that
    nothing depends on how classes are numbered.

    Args:
        loc: initial points ``[M, D]``; they have to differ, for what starts alike stays alike.
    """

    def __init__(self, loc: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.clone())

    @property
    def particles(self) -> int:
        """M."""
        return len(self.loc)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """(loc, log_scale), ``[M, tasks, rows, D]`` each; a point has no scale."""
        loc = self.loc[:, None, None].expand(-1, query_x.shape[0], rows, -1)
        return loc, torch.zeros_like(loc)


class ParticleMeans(ParticleStart):
    """λ(dˡ): class means of the support's features, of which each particle scales every dimension by learned numbers of its
    own; a class without items starts at 0.

    Under a linear head particles of :class:`ParticleStart` have the same gradients at first, for all of them say that classes
    are equally probable, and after any number of steps the rows of each differ along the same directions. These do not.

    Args:
        loc: the numbers at first, ``[M, D]``; they have to differ.
    """

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        loc = self.loc[:, None, None] * class_means(support_x, support_y, rows)
        return loc, torch.zeros_like(loc)


class SteinStep(GradientStep):
    """θ_m ← θ_m + η/M Σ_l [k(θ_l, θ_m) ∇ log p(θ_l, D) + β ∇_{θ_l} k(θ_l, θ_m)]: particles go to where the posterior is dense,
    and keep their distance from each other; those of one task alone see each other.

    ∇ log p is −(data + β · prior), so that β weighs the posterior's entropy and its prior alike; with β = 1, and the sum over
    items for data, the particles' limit is the posterior. k is a Gaussian kernel on all weights of a task, see
    :func:`kernel_between`. One particle does plain descent. Numbers of a step are those of
    :class:`~guides.tasks.rules.GradientStep`.

    Sources: Liu and Wang 2016, "Stein variational gradient descent"; Kim et al. 2018, "Bayesian model-agnostic meta-learning",
    whose released code leaves out the 2 of ∇k = 2/h (θ_m − θ_l) k.

    Args:
        steps: K.
        size: initial η.
        learned: learn one η per step, on the log scale.
        width: of the kernel, see :func:`kernel_between`.

    Raises:
        ValueError: a ``size`` that is not positive.
    """

    def __init__(self, steps: int, *, size: float = 1e-3, learned: bool = False, width: float = 1.0) -> None:
        super().__init__(steps, 1, size=size, learned=learned, point=True)
        self.width = width

    def forward(self, index: int, parameters: PosteriorParameters, pull: Pull) -> PosteriorParameters:
        """θ after step ``index``, of particles ``[M, tasks, rows, D]``; the pull's rate is the gradient of −log p(θ)."""
        index, share = self.taken(index)
        loc, gradient = parameters.loc, pull.data[0]
        if pull.rate is not None:
            gradient = gradient + pull.beta * pull.rate[0]
        spread = 2 * loc.shape[-2] * pull.variance.sum(-1).squeeze(-1)  # E ‖θ − θ'‖² of two draws of the prior
        points, gradients = (part.flatten(-2).movedim(0, -2) for part in (loc, gradient))  # [tasks, M, rows · D]
        direction = stein_direction(points, gradients, pull.beta, CLOSEST * spread, self.width)
        direction = direction.movedim(-2, 0).unflatten(-1, loc.shape[-2:])
        return PosteriorParameters(loc + share * self.log_size[index].exp() * direction, parameters.log_scale)


def stein_direction(
    points: Tensor, gradients: Tensor, beta: Tensor | float, closest: Tensor | float = 1e-12, width: float = 1.0
) -> Tensor:
    """1/M Σ_l [−k(θ_l, θ_m) g_l + β ∇_{θ_l} k(θ_l, θ_m)] for each m: ``[..., M, P]``.

    Args:
        points: θ, ``[..., M, P]``.
        gradients: g, what is descended, of the same shape.
        beta: weight of the entropy that keeps particles apart.
        closest, width: of the kernel, see :func:`kernel_between`.
    """
    centred = points - points.mean(-2, keepdim=True)
    kernel, bandwidth = kernel_between(centred, closest, width)
    apart = kernel.sum(-1, keepdim=True) * centred - kernel @ centred  # Σ_l k(θ_l, θ_m) (θ_m − θ_l)
    return (2 * beta / bandwidth * apart - kernel @ gradients) / points.shape[-2]


def kernel_between(points: Tensor, closest: Tensor | float = 1e-12, width: float = 1.0) -> tuple[Tensor, Tensor]:
    """k(θ_l, θ_m) = exp(−‖θ_l − θ_m‖² / h), and h, no gradient of which is taken: ``[..., M, M]`` and ``[..., 1, 1]``.

    h is the median of the pairs' squared distances over log M: at the median distance k is 1/M, and a particle weighs its own
    gradient and all others' about alike, however many weights there are. Few particles end too close: 50 have a tenth less
    than a Gaussian's covariance in two dimensions, and a twentieth less with twice that h. With M = 2 there is one pair, which
    is its own median: k is ½ at whatever distance, and what drives the two apart grows as they meet; hence the least h.
    Without it particles that are equal would have no kernel; with it they have k = 1 and do not part.

    Source of the median over log M, and of its constant gradient: Kim et al. 2018, released code, whose median has each pair
    twice and the zeros of the diagonal.

    Args:
        points: θ, ``[..., M, P]``, best with a mean near 0, for distances are taken as differences of squares.
        closest: least h, ``[...]``, before it is divided by log M.
        width: what h is multiplied by.
    """
    particles = points.shape[-2]
    squares = points.square().sum(-1)
    distances = squares[..., None] + squares[..., None, :] - 2 * points @ points.mT
    if particles == 1:
        return torch.ones_like(distances), torch.ones_like(distances)
    first, second = torch.triu_indices(particles, particles, 1, device=points.device)
    median = distances.detach()[..., first, second].median(-1).values
    least = torch.as_tensor(closest, dtype=median.dtype, device=median.device)
    bandwidth = (width / math.log(particles) * torch.maximum(median, least))[..., None, None]
    return (-distances / bandwidth).exp(), bandwidth


class SteinGuide(UnrolledGuide):
    """q(w_t) = 1/M Σ_m δ(w_t − θ_tm), with M particles that start where all tasks start and take K steps of Stein variational
    gradient descent on the task's support.

    The site ``weights`` has batch_shape ``[M, tasks, 1]``: Pyro's vectorised particles are the posterior's, so that
    ``num_particles=M, vectorize_particles=True, max_plate_nesting=2`` is the objective's plate with the scale 1/M, and the
    evaluator's draws are these M, each once (:attr:`particles`). A mixture of points has no rate: β weighs prior and entropy in
    the steps alone, and the objective's is 0.

    Source: Kim et al. 2018, "Bayesian model-agnostic meta-learning"; the M starts are learned, as in their released code.

    Args:
        prior: p(w), Gaussian, the model's own module; it pulls in every step.
        predictor: the model's own module.
        start: λ of M particles, a :class:`ParticleStart`.
        gradient: of −log p of the support, see :mod:`guides.tasks.gradient_networks`.
        rule: :class:`SteinStep`.
        steps: K.
        beta: weight of prior and entropy in the steps: 1 is that of the posterior, and 0 is descent that the kernel smooths.
        first_order: see :class:`~guides.tasks.unrolled.UnrolledGuide`.
        reduction: with ``mean`` everything, prior and entropy too, is divided by the number of items: the same posterior, and
            steps as long whatever their number.
        leader_steps: s, what a leader is ahead by, see :meth:`lead`.
        likelihood: of regression whose ``gradient`` is that of the squared error: its noise is what β is in units of, 2 noise²,
            so that the posterior is this likelihood's, and steps as long whatever the noise.

    Raises:
        ValueError: negative ``steps`` or ``leader_steps``.
    """

    start: ParticleStart

    def __init__(
        self,
        prior: Prior,
        predictor: Predictor,
        start: ParticleStart,
        gradient: nn.Module,
        rule: SteinStep,
        *,
        steps: int = 5,
        beta: float = 1.0,
        first_order: bool = False,
        reduction: Reduction | str = Reduction.MEAN,
        leader_steps: int = 1,
        likelihood: GaussianLikelihood | None = None,
    ) -> None:
        if leader_steps < 0:
            raise ValueError(f"leader_steps = {leader_steps} must not be negative")
        super().__init__(
            prior,
            predictor,
            start,
            gradient,
            rule,
            steps=steps,
            on=Evidence.SUPPORT,
            beta=beta,
            family=Family.DELTA,
            first_order=first_order,
            reduction=reduction,
        )
        self.leader_steps, self.likelihood = leader_steps, likelihood

    @property
    def particles(self) -> int:
        """M."""
        return self.start.particles

    def rate_gradient(
        self, parameters: PosteriorParameters, hyperparameters: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor] | None:
        """The gradient of −log p(θ), which for a Gaussian prior is that of the KL divergence for a mean."""
        return self.prior.kl_gradient(hyperparameters, *parameters) if self.beta else None

    def rate_weight(self, evidence: list[Part]) -> Tensor | float:
        """β in units of the distortion, and divided by the number of items where that is."""
        unit = 1.0 if self.likelihood is None else 2 * (2 * self.likelihood.log_noise.detach()).exp()
        if self.reduction is Reduction.SUM:
            return self.beta * unit
        return self.beta * unit / max(1, sum(part.items.shape[1] for part in evidence))

    @torch.no_grad()
    def lead(
        self,
        weights: Tensor,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor,
        way: int | None = None,
    ) -> Tensor:
        """Where the particles ``weights`` would be after s more steps, like the last one, on support and queries together; no
        gradient is taken of it.

        Args:
            weights: values of the site, ``[M, tasks, 1, rows, D]``; items and labels as of a call.

        Returns:
            Values of the same shape.
        """
        items, labels = torch.cat([support_x, query_x], dim=1), torch.cat([support_y, query_y], dim=1)
        evidence = [Part(self.predictor.prepare(items), labels, self.gradient)]
        hyperparameters = self.point_hyperparameters()
        scales = self.prior.variance(hyperparameters), self.prior.narrowest(hyperparameters)
        loc = weights.squeeze(-3)
        parameters = PosteriorParameters(loc, torch.zeros_like(loc))
        for _ in range(self.leader_steps):
            parameters = self.step(parameters, evidence, hyperparameters, scales, max(0, self.steps - 1))
        return parameters.loc.unsqueeze(-3)
