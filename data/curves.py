"""Regression tasks whose inputs are the numbers themselves: sinusoids, sinusoids that can be memorised, sinusoids or lines, and
six families of functions of the plane."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from data.arguments import as_whole
from data.episodes import Episode
from data.errors import UserError
from data.seeding import mix_seed

AMPLITUDES = 0.1, 5.0  # of sinusoids: the lowest and the highest
LINES = -3.0, 3.0  # slopes and offsets of lines, likewise
EXTENT = 5.0  # inputs are uniform from its negative to it


def uniform(shape: tuple[int, ...], generator: torch.Generator, low: float = -EXTENT, high: float = EXTENT) -> Tensor:
    """Numbers from ``low`` to ``high``, of a ``shape``."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def split_tasks(x: Tensor, y: Tensor, support: int, noise: float, generator: torch.Generator) -> Episode:
    """Tasks of points, with noise on their targets; the first ``support`` points are labelled.

    Args:
        x: ``[tasks, n, D]``.
        y: ``[tasks, n]``, without noise.
        noise: standard deviation.
    """
    y = y + noise * torch.randn(y.shape, generator=generator)
    return Episode(x[:, :support], y[:, :support], x[:, support:], y[:, support:], way=1)


def raw_sinusoid_tasks(tasks: int, *, support: int = 10, queries: int = 15, noise: float = 0.0, seed: int = 0) -> Episode:
    """Tasks y = a sin(x + φ) + noise, a ~ U(0.1, 5), φ ~ U(0, π), x ~ U(−5, 5).

    The same tasks as :func:`~data.regression.sinusoid_tasks`, which are in features of x. Source: Finn et al. 2017,
    section 5.1, who write x − φ; the signs of φ are two laws of tasks, each the other's mirror image (x, y) → (−x, −y).

    Args:
        tasks, support, queries: sizes.
        noise: standard deviation; 0 in the benchmark.

    Returns:
        Episode with ``x`` of shape ``[tasks, n, 1]`` and real ``y`` ``[tasks, n]``.
    """
    generator = torch.Generator().manual_seed(seed)
    amplitude = uniform((tasks, 1), generator, *AMPLITUDES)
    phase = math.pi * torch.rand(tasks, 1, generator=generator)
    x = uniform((tasks, support + queries), generator)
    return split_tasks(x[..., None], amplitude * torch.sin(x + phase), support, noise, generator)


KNOWN_AMPLITUDES = 0.1, 4.0, 20
"""Of sinusoids that can be memorised: the lowest, the highest, and how many at equal distances."""


def memorisable_sinusoid_tasks(
    tasks: int,
    *,
    support: int = 10,
    queries: int = 15,
    noise: float = 0.1,
    used: int = 20,
    new: bool = False,
    seed: int = 0,
) -> Episode:
    """Tasks y = a sin(u) + noise that tell their amplitude: x is u and a one-hot vector of a's number among twenty.

    Training tasks have one of the twenty amplitudes 0.1, 0.305, …, 4, so that y can be learned by heart as a function of x,
    and the support need not be read. New tasks have any amplitude, a ~ U(0.1, 4), and a one-hot vector drawn without regard to
    it: who reads that one is wrong. u ~ U(−5, 5).
    Source: Yin et al. 2020, "Meta-learning without memorization".

    Args:
        tasks, support, queries: sizes.
        noise: standard deviation.
        used: how many of the amplitudes there are, from the lowest; 16 in the authors' code, in new tasks too.
        new: whether tasks are new ones.

    Returns:
        Episode with ``x`` of shape ``[tasks, n, 21]`` and real ``y`` ``[tasks, n]``.

    Raises:
        UserError: ``used`` is not between 1 and 20.
    """
    low, high, count = KNOWN_AMPLITUDES
    if as_whole(used, "used", 1) > count:
        raise UserError(f"`used={used}`: there are {count} amplitudes")
    generator = torch.Generator().manual_seed(seed)
    number = torch.randint(used, (tasks,), generator=generator)
    amplitude = uniform((tasks,), generator, low, high) if new else torch.linspace(low, high, count)[number]
    u = uniform((tasks, support + queries), generator)
    told = torch.nn.functional.one_hot(number, count)[:, None].expand(-1, u.shape[1], -1)
    x = torch.cat([u[..., None], told.to(u.dtype)], dim=-1)
    return split_tasks(x, amplitude[:, None] * torch.sin(u), support, noise, generator)


def told_alike(episode: Episode) -> Episode:
    """The same memorisable tasks, all of which tell the amplitude that the first one tells.

    Of new tasks, which tell any, these are as likely as they were, and supports of any of them go with queries of any other:
    what a support tells given a query's input is seen by exchanging them.
    """
    told = episode.query_x[:1, :1, 1:]
    support, query = (torch.cat([x[..., :1], told.expand(*x.shape[:2], -1)], -1) for x in (episode.support_x, episode.query_x))
    return episode._replace(support_x=support, query_x=query)


def memorisable_log_predictive(
    support_u: Tensor, support_y: Tensor, query_u: Tensor, query_y: Tensor, noise: float, *, amplitudes: int = 2000
) -> Tensor:
    """log p(y given u, support) of new tasks of :func:`memorisable_sinusoid_tasks`, nats, each query by itself: exact Bayes
    under the law of their amplitudes, which are integrated by the midpoint rule.

    Args:
        support_u, support_y: ``[tasks, support]``, the numbers u themselves.
        query_u, query_y: ``[tasks, query]``.
        noise: standard deviation.
        amplitudes: points of the rule.
    """
    low, high, _ = KNOWN_AMPLITUDES
    middle = torch.arange(amplitudes, dtype=support_u.dtype, device=support_u.device) + 0.5
    amplitude = low + (high - low) * middle / amplitudes
    missed = (support_y - amplitude[:, None, None] * torch.sin(support_u)) / noise  # [amplitudes, tasks, support]
    posterior = torch.log_softmax(-0.5 * missed.square().sum(-1), dim=0)
    left = (query_y - amplitude[:, None, None] * torch.sin(query_u)) / noise
    constant = 0.5 * math.log(2 * math.pi * noise**2)
    return (posterior[..., None] - 0.5 * left.square()).logsumexp(0) - constant


def sinusoid_or_line_tasks(tasks: int, *, support: int = 5, queries: int = 15, noise: float = 0.3, seed: int = 0) -> Episode:
    """Tasks that are a sinusoid or a line with probability ½ each, so that few points leave open which.

    y = a sin(x + φ) as in :func:`raw_sinusoid_tasks`, or y = s x + i with s, i ~ U(−3, 3); x ~ U(−5, 5).
    Source: Finn, Xu and Levine 2018, "Probabilistic model-agnostic meta-learning", whose noise is 0.3.

    Args:
        tasks, support, queries: sizes.
        noise: standard deviation.

    Returns:
        Episode with ``x`` of shape ``[tasks, n, 1]`` and real ``y`` ``[tasks, n]``.
    """
    generator = torch.Generator().manual_seed(seed)
    is_line = torch.rand(tasks, 1, generator=generator) < 0.5
    amplitude, phase = uniform((tasks, 1), generator, *AMPLITUDES), uniform((tasks, 1), generator, 0.0, math.pi)
    slope, offset = (uniform((tasks, 1), generator, *LINES) for _ in range(2))
    x = uniform((tasks, support + queries), generator)
    y = torch.where(is_line, slope * x + offset, amplitude * torch.sin(x + phase))
    return split_tasks(x[..., None], y, support, noise, generator)


FAMILIES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[float, float], ...]]] = {
    "sinusoid": (lambda x, z, a, w, φ: a * torch.sin(w * x + φ), (AMPLITUDES, (0.8, 1.2), (0.0, 2 * math.pi))),
    "line": (lambda x, z, a, b: a * x + b, ((-3.0, 3.0), (-3.0, 3.0))),
    "quadratic": (lambda x, z, a, b, c: a * x**2 + b * x + c, ((-0.2, 0.2), (-2.0, 2.0), (-3.0, 3.0))),
    "cubic": (
        lambda x, z, a, b, c, d: a * x**3 + b * x**2 + c * x + d,
        ((-0.1, 0.1), (-0.2, 0.2), (-2.0, 2.0), (-3.0, 3.0)),
    ),
    "surface": (lambda x, z, a, b: a * x**2 + b * z**2, ((-1.0, 1.0), (-1.0, 1.0))),
    "ripple": (lambda x, z, a, b: torch.sin(-a * (x**2 + z**2)) + b, ((-0.2, 0.2), (-3.0, 3.0))),
}
"""Families of functions of two numbers, x and z, by name: the function, and the range of each of its coefficients."""
PLANAR = ("surface", "ripple")
"""Families that read the second number; tasks of the others have 1 in its place."""
CHOICE = 1  # a stream of random numbers


def family_numbers(tasks: int, *, seed: int) -> Tensor:
    """Which of :data:`FAMILIES` each task of :func:`family_tasks` with the same ``seed`` is of: ``[tasks]`` int64."""
    return torch.randint(len(FAMILIES), (tasks,), generator=torch.Generator().manual_seed(mix_seed(seed, CHOICE)))


def family_tasks(tasks: int, *, support: int = 10, queries: int = 10, noise: float = 0.3, seed: int = 0) -> Episode:
    """Tasks of six families, each as likely as the others, all of them functions of two numbers.

    Inputs are U(−5, 5); those of the four families that are functions of one number have 1 as their second.
    Source: Yao et al. 2020, "Automated relational meta-learning", with the ranges of the authors' code.

    Args:
        tasks, support, queries: sizes.
        noise: standard deviation.
        seed: see :func:`family_numbers`, too.

    Returns:
        Episode with ``x`` of shape ``[tasks, n, 2]`` and real ``y`` ``[tasks, n]``.
    """
    generator, number = torch.Generator().manual_seed(seed), family_numbers(tasks, seed=seed)
    x, z = uniform((2, tasks, support + queries), generator)
    planar = torch.tensor([name in PLANAR for name in FAMILIES])[number]
    z = torch.where(planar[:, None], z, 1.0)
    share = torch.rand(4, tasks, 1, generator=generator)  # of a coefficient's range; no family has more than four
    values = []
    for function, ranges in FAMILIES.values():
        coefficients = (low + (high - low) * part for (low, high), part in zip(ranges, share, strict=False))
        values.append(function(x, z, *coefficients))
    y = torch.stack(values)[number, torch.arange(tasks)]
    return split_tasks(torch.stack([x, z], dim=-1), y, support, noise, generator)
