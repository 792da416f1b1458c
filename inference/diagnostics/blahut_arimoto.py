"""Alternating minimisation for discrete variables: rate–distortion, channel capacity, the information bottleneck.

All in the log domain and in nats, with β as everywhere: distortion + β · rate (the slides' Lagrangian KL + β·d has 1/β here).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """A point of a rate–distortion curve.

    Attributes:
        rate: I(x; x̂) or I(x; t), nats.
        distortion: expected distortion, in its unit; for the bottleneck I(x; y) − I(t; y), nats.
        gap: by how much distortion + β · rate may at most exceed its minimum; NaN where there is no such bound.
        iterations: done.
        encoder: q(x̂ given x) ``[x, x̂]``.
        marginal: m(x̂) ``[x̂]``.
    """

    rate: float
    distortion: float
    gap: float
    iterations: int
    encoder: Tensor
    marginal: Tensor


def rate_distortion(
    source: Tensor, distortion: Tensor, beta: float, *, tolerance: float = 1e-12, max_iterations: int = 100_000
) -> Solution:
    """min over q(x̂ given x) of E d(x, x̂) + β I(x; x̂), the Blahut–Arimoto algorithm.

        q(x̂ given x) ∝ m(x̂) exp(−d(x, x̂)/β)        m(x̂) = Σ_x p(x) q(x̂ given x)

    It stops when the duality gap β (max log c − Σ m c log c), c(x̂) = Σ_x p(x) exp(−d/β)/Z(x), is below ``tolerance``.

    Args:
        source: p(x), ``[x]``, positive.
        distortion: d(x, x̂), ``[x, x̂]``.
        beta: β > 0.
        max_iterations: after which it gives up.

    Raises:
        ValueError: no distribution, β ≤ 0, or no convergence.

    Source: slide "Alternating projection algorithm"; the gap: Blahut 1972, theorem 6.
    """
    log_source = checked_log(source, "source")
    if not beta > 0:
        raise ValueError(f"beta = {beta} must be positive")
    log_kernel = -distortion / beta
    log_marginal = log_kernel.new_full(distortion.shape[1:], 1 / distortion.shape[1]).log()
    for iteration in range(1, max_iterations + 1):
        joint = log_marginal + log_kernel  # log m(x̂) exp(−d/β)
        log_partition = joint.logsumexp(1, keepdim=True)
        log_ratio = (log_source[:, None] + log_kernel - log_partition).logsumexp(0)  # log c(x̂)
        updated = log_marginal + log_ratio
        gap = beta * float(log_ratio.max() - (updated.exp() * log_ratio).sum())
        if gap < tolerance:
            encoder = (joint - log_partition).exp()
            rate = mutual_information(source, encoder)
            expected = float((source[:, None] * encoder * distortion).sum())
            return Solution(rate, expected, gap, iteration, encoder, updated.exp())
        log_marginal = updated
    raise ValueError(f"no convergence in {max_iterations} iterations: the gap is {gap:g}")


def capacity(channel: Tensor, *, tolerance: float = 1e-12, max_iterations: int = 100_000) -> tuple[float, Tensor]:
    """max over p(x) of I(x; y): the capacity of a channel in nats, and the input distribution that has it.

        p(x) ∝ p(x) exp KL(p(y given x) ‖ p(y))

    It stops when max_x KL, an upper bound on the capacity, exceeds log Σ p exp KL, a lower one, by less than ``tolerance``.

    Args:
        channel: p(y given x), ``[x, y]``, rows sum to one.
        max_iterations: after which it gives up.

    Raises:
        ValueError: rows that are no distributions, or no convergence.

    Source: slide "Noisy channel decoding theorem"; Blahut 1972, theorem 3; Arimoto 1972.
    """
    for row in channel:
        checked_log(row, "channel row", positive=False)
    log_channel = channel.log()
    log_input = channel.new_full(channel.shape[:1], 1 / len(channel)).log()
    for _ in range(max_iterations):
        log_output = (log_input[:, None] + log_channel).logsumexp(0)
        divergence = torch.where(channel > 0, channel * (log_channel - log_output), 0.0).sum(1)
        lower = (log_input + divergence).logsumexp(0)
        log_input = log_input + divergence - lower
        if float(divergence.max() - lower) < tolerance:
            return float(lower), log_input.exp()
    raise ValueError(f"no convergence in {max_iterations} iterations")


def information_bottleneck(
    joint: Tensor,
    beta: float,
    *,
    codes: int | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-13,
    max_iterations: int = 100_000,
) -> Solution:
    """min over q(t given x) of [I(x; y) − I(t; y)] + β I(x; t), Tishby's information bottleneck, by the same alternation.

        q(t given x) ∝ q(t) exp(−KL(p(y given x) ‖ p(y given t))/β)

    The problem is not convex, so there is no duality gap: it stops when the objective falls by less than ``tolerance``.
    Following a solution from small β to large ones (``start``) finds good ones.

    Args:
        max_iterations: after which it gives up.
        joint: p(x, y), ``[x, y]``, with p(x) > 0.
        beta: weight of the rate; Tishby's β is 1/β here. At β ≥ 1 the best code says nothing.
        codes: number of values of t; as many as of x when not given.
        start: q(t given x) to start from, ``[x, t]``; nearly the identity when not given.

    Raises:
        ValueError: no distribution, β ≤ 0, or no convergence.

    Source: Tishby, Pereira and Bialek 2000, theorem 4 and equations 28 to 30.
    """
    checked_log(joint.flatten(), "joint", positive=False)
    if not beta > 0:
        raise ValueError(f"beta = {beta} must be positive")
    source = joint.sum(1)
    relevant = joint / source[:, None]  # p(y given x)
    total = mutual_information(source, relevant)
    encoder = near_identity(len(source), codes or len(source)).to(joint) if start is None else start
    previous = torch.inf
    for iteration in range(1, max_iterations + 1):
        marginal = source @ encoder
        decoder = (source[:, None] * encoder).mT @ relevant / marginal[:, None].clamp_min(torch.finfo(joint.dtype).tiny)
        logs = torch.where(relevant[:, None] > 0, relevant[:, None] * (relevant[:, None].log() - decoder.log()), 0.0)
        encoder = (marginal.log() - logs.sum(-1) / beta).softmax(1)
        rate = mutual_information(source, encoder)
        kept = encoder_information(source, encoder, relevant)
        objective = total - kept + beta * rate
        if previous - objective < tolerance:
            return Solution(rate, total - kept, float("nan"), iteration, encoder, source @ encoder)
        previous = objective
    raise ValueError(f"no convergence in {max_iterations} iterations")


def near_identity(values: int, codes: int) -> Tensor:
    """A deterministic code x → x mod ``codes`` of x < ``values``, slightly blurred so that every code is used."""
    identity = torch.eye(codes, dtype=torch.float64)[torch.arange(values) % codes]
    return 0.95 * identity + 0.05 / codes


def encoder_information(source: Tensor, encoder: Tensor, relevant: Tensor) -> float:
    """I(t; y), nats, where t – x – y: ``[x]``, ``[x, t]``, ``[x, y]``."""
    joint = (source[:, None] * encoder).mT @ relevant
    marginal = joint.sum(1)
    used = marginal > 0
    return mutual_information(marginal[used], joint[used] / marginal[used, None])


def mutual_information(source: Tensor, channel: Tensor) -> float:
    """I(x; y) of p(x) ``[x]`` and p(y given x) ``[x, y]``, nats."""
    output = source @ channel
    return float(torch.where(channel > 0, source[:, None] * channel * (channel.log() - output.log()), 0.0).sum())


def checked_log(probabilities: Tensor, name: str, *, positive: bool = True) -> Tensor:
    """log of a distribution, ``probabilities``.

    Raises:
        ValueError: negative numbers (or zeros, where ``positive``), or a sum other than one.
    """
    if bool((probabilities < 0).any()) or (positive and bool((probabilities == 0).any())):
        raise ValueError(f"the {name} has probabilities that are not {'positive' if positive else 'valid'}")
    if abs(float(probabilities.sum()) - 1) > 1e-6:
        raise ValueError(f"the {name} sums to {float(probabilities.sum()):g}, not to 1")
    return probabilities.log()
