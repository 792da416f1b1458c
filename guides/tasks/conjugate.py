"""The exact posterior of Bayesian linear regression, as a guide."""

from __future__ import annotations

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor

from models.distributions.matrix import MatrixNormal
from models.likelihoods import GaussianLikelihood
from models.plates import task_plate
from models.tasks.priors import GaussianPrior


class ConjugateGuide(PyroModule):
    """q(w_t) = p(w given support) for y = ⟨x, w⟩ + noise with a Gaussian prior: full covariance, in closed form.

    It has no parameters of its own: prior and noise are the model's. With β ≠ 1 it is the minimiser of distortion + β · rate on
    the support set, q ∝ p(y given w)^(1/β) p(w), which is ridge regression with noise² β. Source: Bishop 2006, equations 3.50
    and 3.51.

    Args:
        prior, likelihood: the model's own modules.
        beta: β > 0.

    Raises:
        ValueError: β is not positive.
    """

    def __init__(self, prior: GaussianPrior, likelihood: GaussianLikelihood, *, beta: float = 1.0) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta = {beta}: without a rate there is no posterior, β must be positive")
        self.prior, self.likelihood, self.beta = prior, likelihood, beta

    @property
    def likelihood_power(self) -> float:
        """1/β: the power of the support's likelihood that the posterior is exact for."""
        return 1 / self.beta

    def posterior(self, support_x: Tensor, support_y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[tasks, 1, D]`` and Cholesky factor ``[tasks, D, D]`` of the covariance, of ``[tasks, n, D]`` and
        ``[tasks, n]``."""
        loc, log_scale = self.prior.hyperparameters()
        weight = (-2 * self.likelihood.log_noise).exp() / self.beta
        prior_precision = (-2 * log_scale).exp()
        precision = torch.diag(prior_precision) + weight * support_x.mT @ support_x
        shift = prior_precision * loc + weight * (support_x.mT @ support_y[..., None])[..., 0]
        factor = torch.distributions.MultivariateNormal(torch.zeros_like(shift), precision_matrix=precision).scale_tril
        mean = (factor @ (factor.mT @ shift[..., None]))[..., 0]
        return mean[:, None], factor

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> None:
        """Sample the site ``weights`` (event ``[1, D]``) in the plate ``tasks``; the queries are not looked at."""
        mean, factor = self.posterior(support_x, support_y)
        with task_plate(query_x, None):
            pyro.sample("weights", MatrixNormal(mean[:, None], factor[:, None]))
