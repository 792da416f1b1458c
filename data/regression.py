"""Synthetic regression: tasks of ``linear`` (everything known in closed form), ``network`` (drawn from the model itself) and
``sinusoids``, and one ``curve``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.curves import AMPLITUDES, LINES, raw_sinusoid_tasks
from data.episodes import Episode
from data.items import LabelledItems, SupervisedData


def linear_tasks(
    tasks: int, queries: int, prior_loc: Tensor, prior_scale: Tensor, *, noise: float, seed: int, support: int = 5
) -> Episode:
    """Tasks y = ⟨x, w_t⟩ + noise with w_t ~ N(prior_loc, prior_scale²) and x ~ N(0, I).

    Args:
        tasks, queries, support: sizes.
        prior_loc, prior_scale: ``[D]``.
        noise: standard deviation.
        seed: same seed, same tasks.

    Returns:
        Episode with ``x`` of shape ``[tasks, n, D]`` and real ``y`` ``[tasks, n]``.
    """
    generator = torch.Generator().manual_seed(seed)
    dim, total, dtype = len(prior_loc), support + queries, prior_loc.dtype
    weights = prior_loc + prior_scale * torch.randn(tasks, dim, generator=generator, dtype=dtype)
    x = torch.randn(tasks, total, dim, generator=generator, dtype=dtype)
    y = (x @ weights[..., None])[..., 0] + noise * torch.randn(tasks, total, generator=generator, dtype=dtype)
    return Episode(x[:, :support], y[:, :support], x[:, support:], y[:, support:], way=1)


def linear_posterior(x: Tensor, y: Tensor, prior_loc: Tensor, prior_scale: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Exact p(w given x, y) of :func:`linear_tasks`: mean ``[tasks, D]`` and covariance ``[tasks, D, D]``, under
    w ~ N(prior_loc, diag(prior_scale²)) and targets with standard deviation ``noise``.

    Source: Bishop 2006, equations 3.50 and 3.51.
    """
    precision = torch.diag(prior_scale**-2) + x.mT @ x / noise**2
    covariance = torch.linalg.inv(precision)
    shift = prior_loc * prior_scale**-2 + (x.mT @ y[..., None])[..., 0] / noise**2
    return (covariance @ shift[..., None])[..., 0], covariance


def linear_evidence(x: Tensor, y: Tensor, prior_loc: Tensor, prior_scale: Tensor, noise: float) -> Tensor:
    """Exact log p(y given x) of each task, nats: ``[tasks]``; y ~ N(x μ, x diag(σ²) xᵀ + ``noise``² I),
    with μ = ``prior_loc`` and σ = ``prior_scale``, ``[D]``."""
    covariance = (x * prior_scale**2) @ x.mT + noise**2 * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    return torch.distributions.MultivariateNormal(x @ prior_loc, covariance).log_prob(y)


def network_prior(hidden: int = 20, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the weights of :func:`network_tasks`, ``[3 · hidden + 1]`` each.

    The means are one draw that all tasks share: they tell the hidden units apart, so that the posterior is not that of
    exchangeable units. Output weights are of order 1/√hidden.
    """
    generator = torch.Generator().manual_seed(seed)
    inner, outer = torch.randn(2 * hidden, generator=generator), torch.randn(hidden, generator=generator) / hidden**0.5
    scale = torch.cat([torch.full((2 * hidden,), 0.5), torch.full((hidden,), hidden**-0.5), torch.tensor([0.5])])
    return torch.cat([inner, outer, torch.zeros(1)]), scale


def network_outputs(x: Tensor, weights: Tensor) -> Tensor:
    """A tanh network of one input, one hidden layer and one output: ``[..., n], [..., 3 · hidden + 1] -> [..., n]``.

    Weights are in the order of ``nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1))``.
    """
    hidden = weights.shape[-1] // 3
    slope, shift, outer, offset = weights[..., None, :].split([hidden, hidden, hidden, 1], dim=-1)
    return (torch.tanh(x[..., None] * slope + shift) * outer).sum(-1) + offset[..., 0]


def network_tasks(
    tasks: int, queries: int, prior_loc: Tensor, prior_scale: Tensor, *, noise: float, seed: int, support: int = 10
) -> Episode:
    """Tasks y = network(x; w_t) + noise with w_t ~ N(prior_loc, prior_scale²) and x ~ U(−3, 3): the model itself.

    Args:
        tasks, queries, support: sizes.
        prior_loc, prior_scale: ``[3 · hidden + 1]``, such as :func:`network_prior`.
        noise: standard deviation.
        seed: same seed, same tasks.

    Returns:
        Episode with ``x`` of shape ``[tasks, n, 1]`` and real ``y`` ``[tasks, n]``.
    """
    generator = torch.Generator().manual_seed(seed)
    shape, dtype = (tasks, support + queries), prior_loc.dtype
    weights = prior_loc + prior_scale * torch.randn(tasks, len(prior_loc), generator=generator, dtype=dtype)
    x = 6 * torch.rand(shape, generator=generator, dtype=dtype) - 3
    y = network_outputs(x, weights) + noise * torch.randn(shape, generator=generator, dtype=dtype)
    return Episode(x[:, :support, None], y[:, :support], x[:, support:, None], y[:, support:], way=1)


def sinusoid_tasks(
    tasks: int, *, support: int = 10, queries: int = 15, noise: float = 0.1, num_features: int = 40, seed: int = 0
) -> Episode:
    """Tasks y = a sin(x + φ) + noise, a ~ U(0.1, 5), φ ~ U(0, π), x ~ U(−5, 5), in radial basis features of x;
    ``support`` points and ``queries`` in each.

    Source: Finn et al. 2017, section 5.1 (there without noise).

    Returns:
        Episode with features ``[tasks, n, num_features]`` (:func:`radial_basis`) and real ``y`` ``[tasks, n]``.
    """
    raw = raw_sinusoid_tasks(tasks, support=support, queries=queries, noise=noise, seed=seed)
    support_x, query_x = (radial_basis(x[..., 0], num_features) for x in (raw.support_x, raw.query_x))
    return raw._replace(support_x=support_x, query_x=query_x)


def sinusoid_log_predictive(
    support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, noise: float, *, phases: int = 500
) -> Tensor:
    """log p(y given x, support) of :func:`sinusoid_tasks`, nats, each query by itself: exact Bayes under the law that the tasks
    are drawn from.

    The amplitude is integrated in closed form, for given its phase a sinusoid is linear in it; the phase by the midpoint rule.

    Args:
        support_x, support_y: ``[tasks, support]``, the inputs themselves.
        query_x, query_y: ``[tasks, query]``.
        noise: standard deviation.
        phases: points of the rule.
    """
    phase = math.pi * midpoints(phases, support_x)[:, None]
    wave, asked = (torch.sin(x[:, None] + phase) for x in (support_x, query_x))  # [tasks, phases, n]
    evidence, together = log_evidences(wave, support_y[:, None], asked, query_y[:, None], noise, AMPLITUDES)
    return together.logsumexp(1) - evidence.logsumexp(1)


def sinusoid_or_line_log_predictive(
    support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, noise: float, *, points: int = 500
) -> Tensor:
    """The same of :func:`~data.curves.sinusoid_or_line_tasks`, whose law says sinusoid or line with probability ½ each.

    A line is linear in its offset, which is integrated in closed form, as an amplitude is; its slope by the midpoint rule.

    Args:
        support_x, support_y, query_x, query_y, noise: see :func:`sinusoid_log_predictive`.
        points: of the rules for phase and slope.
    """
    middle, (low, high) = midpoints(points, support_x)[:, None], LINES
    x, asked, y, asked_y = (part[:, None] for part in (support_x, query_x, support_y, query_y))
    wave, asked_wave = (torch.sin(at + math.pi * middle) for at in (x, asked))
    line, asked_line = ((low + (high - low) * middle) * at for at in (x, asked))  # but for their offset
    of_waves = log_evidences(wave, y, asked_wave, asked_y, noise, AMPLITUDES)
    of_lines = log_evidences(torch.ones_like(line), y - line, torch.ones_like(asked_line), asked_y - asked_line, noise, LINES)
    evidence, together = (torch.cat(both, 1) for both in zip(of_waves, of_lines, strict=True))
    return together.logsumexp(1) - evidence.logsumexp(1)


def midpoints(count: int, like: Tensor) -> Tensor:
    """The midpoints of so many equal parts of [0, 1], with the dtype and device of ``like``: ``[count]``."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count


def log_evidences(
    wave: Tensor, y: Tensor, asked: Tensor, asked_y: Tensor, noise: float, between: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """log E_a Π_i N(y_i; a s_i, noise²), a uniform ``between`` two numbers, nats: of the support, and with each query added.

    Args:
        wave, y: s and y of the support, ``[tasks, points, support]`` or what broadcasts to it.
        asked, asked_y: of the queries, ``[tasks, points, query]`` likewise.
        noise: standard deviation.

    Returns:
        ``[tasks, points, 1]`` and ``[tasks, points, query]``.
    """
    sums = [part.sum(-1, keepdim=True) for part in (wave.square(), wave * y, y.square())]
    joint = [one + more for one, more in zip(sums, (asked.square(), asked * asked_y, asked_y.square()), strict=True)]
    count = y.shape[-1]
    return log_amplitude_integral(sums, count, noise, between), log_amplitude_integral(joint, count + 1, noise, between)


def log_amplitude_integral(sums: Sequence[Tensor], count: int, noise: float, between: tuple[float, float]) -> Tensor:
    """log of E_a Π_i N(y_i; a s_i, noise²) over a uniform ``between`` two numbers, nats.

    Args:
        sums: Σ s², Σ s y and Σ y², of shapes that broadcast.
        count: how many y there are.
        noise: standard deviation.
    """
    (squares, products, total), (low, high) = sums, between
    mean, scale = products / squares, noise / squares.sqrt()
    misfit = (total - products * mean) / (2 * noise**2)
    near, far = (low - mean) / scale, (high - mean) / scale
    flipped = near > 0  # both in the upper tail: its mirror image is the one without cancellation
    upper, lower = (torch.special.log_ndtr(torch.where(flipped, -a, b)) for a, b in ((near, far), (far, near)))
    mass = upper + torch.log1p(-(lower - upper).exp())
    constant = -0.5 * count * math.log(2 * math.pi * noise**2) + 0.5 * math.log(2 * math.pi) - math.log(high - low)
    return constant - misfit + scale.log() + mass


def radial_basis(x: Tensor, num_features: int = 40) -> Tensor:
    """Gaussian bumps spread over [−6, 6] and a constant: ``[...] -> [..., num_features]``."""
    centers = centres(num_features).to(x)
    bumps = torch.exp(-0.5 * (x[..., None] - centers) ** 2)
    return torch.cat([bumps, torch.ones_like(x)[..., None]], dim=-1)


def centres(num_features: int) -> Tensor:
    """Of the bumps of :func:`radial_basis`, ``[num_features − 1]``."""
    return torch.linspace(-6, 6, num_features - 1)


def radial_inputs(features: Tensor) -> Tensor:
    """The inputs that :func:`radial_basis` was given: ``[..., num_features] -> [...]``.

    By the ratio of the largest bump to its neighbour, whose logarithm is linear in x.
    """
    logs, place = features[..., :-1].log(), centres(features.shape[-1]).to(features)
    first = logs.argmax(-1).clamp(max=logs.shape[-1] - 2)
    left, right = (logs.gather(-1, (first + i)[..., None])[..., 0] for i in (0, 1))
    near, far = place[first], place[first + 1]
    return 0.5 * (near + far) - (left - right) / (far - near)


def load_curve(*, train: int = 120, test: int = 400, noise: float = 0.1, seed: int = 0) -> SupervisedData:
    """y = sin(2x) + x/2 + noise; ``train`` inputs lie in [−2, −0.6] and [0.6, 2], test inputs fill [−2, 2].

    Returns:
        Floats: inputs ``[n, 1]``, targets ``[n]``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Tensor) -> LabelledItems:
        y = curve(x) + noise * torch.randn(len(x), generator=generator)
        return LabelledItems(x[:, None], y, ())

    side = torch.where(torch.rand(train, generator=generator) < 0.5, -1.0, 1.0)
    inputs = side * (0.6 + 1.4 * torch.rand(train, generator=generator))
    return SupervisedData("curve", draw(inputs), draw(torch.linspace(-2, 2, test)))


def curve(x: Tensor) -> Tensor:
    """The regression function of :func:`load_curve`."""
    return torch.sin(2 * x) + x / 2
