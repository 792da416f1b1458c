"""What weights know about their training set, and what that says about generalisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.distributions.mixture import GaussianMixture


@torch.no_grad()
def weight_information(loc: Tensor, log_scale: Tensor, *, num_samples: int = 8) -> float:
    """Estimate of I(w; S) over K training sets: 1/K Σ_k KL(q_k ‖ m̃), m̃ = 1/K Σ_j q_j, by Monte Carlo, nats.

    It never exceeds log K: K sets cannot show more. Far below that ceiling it is close to I(w; S) of independent sets;
    bootstrap samples of one set are alike, so theirs is the information about the resampling.

    Args:
        loc, log_scale: ``[K, P]``, the posteriors q(w given S_k).
        num_samples: draws for each posterior.

    Source: "On regularizing deep learning using mutual information", slide "Rate-distortion perspective on supervised
    learning", equation for m̃(w).
    """
    mixture = GaussianMixture(loc.new_zeros(len(loc)), loc, log_scale.exp())
    total = 0.0
    for _ in range(num_samples):
        draw = loc + log_scale.exp() * torch.randn_like(loc)
        own = mixture.component_log_prob(draw)  # [K, K]
        total += float((own.diagonal() - (own - math.log(len(loc))).logsumexp(-1)).mean())
    return total / num_samples


@torch.no_grad()
def chi_squared_information(loc: Tensor, log_scale: Tensor) -> float:
    """χ² f-mutual-information of weights and training set over K posteriors, 1/K Σ_k Var_{q_k}[m̃(w)/q_k(w)].

    In closed form: 1/K³ Σ_k Σ_ij ∫ q_i q_j / q_k − 1, each integral a Gaussian one, infinite where q_k is too narrow for the
    tails of q_i q_j. For a network's posteriors it is mostly infinite: the measure suits few weights.

    Args:
        loc, log_scale: ``[K, P]``.

    Source: slide "A bias-variance interpretation", I_f with f(t) = (t − 1)².
    """
    loc, precision = loc.double(), (-2 * log_scale.double()).exp()
    i, j, k = (torch.arange(len(loc)).reshape(shape) for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    joint = precision[i] + precision[j] - precision[k]  # [K, K, K, P]
    if bool((joint <= 0).any()):
        return math.inf
    linear = precision[i] * loc[i] + precision[j] * loc[j] - precision[k] * loc[k]
    squares = precision[i] * loc[i].square() + precision[j] * loc[j].square() - precision[k] * loc[k].square()
    logs = precision[i].log() + precision[j].log() - precision[k].log() - joint.log()
    integrals = 0.5 * (logs + linear.square() / joint - squares).sum(-1)
    return float(integrals.logsumexp((0, 1, 2)).exp() / len(loc) ** 3 - 1)


def generalisation_bound(information: float, n: int, *, spread: float = 0.5) -> float:
    """sqrt(2 σ² I(w; S) / n): bound on the expected gap between test and training loss.

    Args:
        information: I(w; S), or an upper bound on it such as E_S KL(q ‖ p) with a prior p that does not depend on S, nats.
        n: training items.
        spread: σ, for which the loss is σ-sub-Gaussian; ½ for any loss in [0, 1], such as the error rate.

    Source: Xu and Raginsky 2017, theorem 1; slide "A PAC learning interpretation".
    """
    return math.sqrt(2 * spread**2 * max(information, 0.0) / n)


def sharpness(loss: Callable[[Tensor], Tensor], loc: Tensor, log_scale: Tensor, *, num_samples: int = 16) -> float:
    """E_ε loss(loc + σ ε) − loss(loc): how much the loss rises around a minimum, in the loss's unit.

    A flat minimum bears wide posteriors and so a small I(w; S), but not the other way round.

    Args:
        loss: of weights ``[S, P]``, giving ``[S]``.
        loc, log_scale: ``[P]``, the posterior.
        num_samples: S, antithetic draws.

    Source: slide "A PAC learning interpretation", last remark; Neyshabur et al. 2017, section 2.4 (expected sharpness).
    """
    noise = torch.randn(math.ceil(num_samples / 2), *loc.shape, dtype=loc.dtype, device=loc.device) * log_scale.exp()
    with torch.no_grad():
        return float(loss(torch.cat([loc + noise, loc - noise])).mean() - loss(loc[None])[0])
