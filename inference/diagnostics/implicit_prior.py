"""The prior that a few steps of descent stand for, and where there is none: the spectrum of step size × curvature."""

from __future__ import annotations

import torch
from torch import Tensor

from guides.tasks.laplace import curvature_factor
from models.likelihoods import Likelihood
from models.tasks.predictors import Predictor

NEGLIGIBLE = 1e-6  # of the largest curvature: directions that the items say nothing of


def implicit_prior(curvature: Tensor, step_size: float, steps: int) -> Tensor:
    """Q such that K steps of descent on ½ (w − w*)ᵀ H (w − w*) from θ end at the mode of that loss under w ~ N(θ, Q).

    Q = O Λ⁻¹ ((I − α Λ)^−K − I) Oᵀ for H = O Λ Oᵀ, and K α where Λ is 0. It depends on the support through H, so it is no prior
    of the task; and it is a covariance only where no α λ exceeds 1 (K odd) or 2 (K even): beyond, Q has negative variances. At
    α λ = 1 a variance is infinite, for one step ends at the minimum.

    Sources: Santos 1996; Grant et al. 2018, section 3.2.

    Args:
        curvature: H ``[..., D, D]``, symmetric; Xᵀ X of ½ ‖y − X w‖².
        step_size: α.
        steps: K.
    """
    values, directions = torch.linalg.eigh(curvature)
    pace = step_size * values
    small = torch.expm1(-steps * torch.log1p(-pace.clamp(max=0.5)))  # without cancelling
    growth = torch.where(pace < 0.5, small, (1 - pace).pow(-steps) - 1)
    flat = pace.abs() < torch.finfo(pace.dtype).eps
    variances = torch.where(flat, step_size * steps, growth / torch.where(flat, 1.0, values))
    return (directions * variances.unsqueeze(-2)) @ directions.mT


def descent_spectrum(
    predictor: Predictor, likelihood: Likelihood, support_x: Tensor, weights: Tensor, step_size: Tensor | float
) -> Tensor:
    """α λ of each direction that the support tells of, ascending: ``[..., tasks, min(n · outputs, rows · D)]``.

    λ are the eigenvalues of the generalised Gauss–Newton matrix of the support's summed distortion. A step goes no further than
    the minimum where α λ ≤ 1, overshoots where it is more, and runs away where it exceeds 2.

    Args:
        predictor, likelihood: of the model.
        support_x: ``[tasks, n, *item]``.
        weights: where the matrix is taken, such as the start, ``[..., tasks, rows, D]``.
        step_size: α of the summed distortion (of a mean over n items: α / n), a number or one for each of the weights, with
            which it is broadcast; then these are eigenvalues of A^½ H A^½.
    """
    size = torch.as_tensor(step_size, dtype=weights.dtype, device=weights.device).expand_as(weights).flatten(-2)
    factor = curvature_factor(predictor, likelihood, support_x, weights) * size.sqrt().unsqueeze(-2)
    wide = factor.shape[-2] <= factor.shape[-1]
    return torch.linalg.eigvalsh(factor @ factor.mT if wide else factor.mT @ factor)


def share_beyond(spectrum: Tensor, limit: float) -> Tensor:
    """Of the directions that a task's support tells of, the share with α λ above a ``limit``, in [0, 1]: ``[..., k] -> [...]``
    for the ``spectrum`` of :func:`descent_spectrum`. Above 1 there is no prior that an odd number of steps stands for, above 2
    none at all."""
    told = spectrum > NEGLIGIBLE * spectrum.amax(-1, keepdim=True)
    return (told & (spectrum > limit)).sum(-1) / told.sum(-1).clamp_min(1)
