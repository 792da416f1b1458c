"""Raw curves: each task is what it says, found again by least squares, and numbers have their laws."""

import itertools
import math

import pytest
import scipy.integrate
import scipy.stats
import torch

from data.curves import (
    FAMILIES,
    PLANAR,
    family_numbers,
    family_tasks,
    memorisable_log_predictive,
    memorisable_sinusoid_tasks,
    raw_sinusoid_tasks,
    sinusoid_or_line_tasks,
    told_alike,
)
from data.errors import UserError
from data.regression import radial_basis, sinusoid_tasks

DRAWS = (raw_sinusoid_tasks, memorisable_sinusoid_tasks, sinusoid_or_line_tasks, family_tasks)


@pytest.fixture(autouse=True)
def double(float64):
    """Least squares to many digits."""


def points(episode):
    """All points of each task."""
    return torch.cat([episode.support_x, episode.query_x], 1), torch.cat([episode.support_y, episode.query_y], 1)


def fit(y, *columns):
    """Least squares of each task: coefficients ``[tasks, columns]``, and the largest residual ``[tasks]``."""
    design = torch.stack(torch.broadcast_tensors(*columns), dim=-1)
    found = torch.linalg.lstsq(design, y[..., None]).solution
    return found[..., 0], (y - (design @ found)[..., 0]).abs().amax(-1)


def waves(x):
    return torch.sin(x), torch.cos(x)


def check_uniform(values, low, high):
    """Inside and up to the ends, and with the mean and variance of a uniform number, within five standard errors."""
    width, n = high - low, len(values)
    assert low - 1e-6 <= float(values.min()) < low + 10 * width / n
    assert high - 10 * width / n < float(values.max()) <= high + 1e-6
    assert float(values.mean()) == pytest.approx((low + high) / 2, abs=5 * width / (12 * n) ** 0.5)
    assert float(values.var()) == pytest.approx(width**2 / 12, abs=5 * width**2 / (180 * n) ** 0.5)


@pytest.mark.parametrize("draw", DRAWS)
def test_tasks_are_seeded_and_of_the_sizes_asked_for(draw):
    one, two, other = (draw(5, support=3, queries=4, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))
    assert not torch.equal(one.query_x, other.query_x)
    assert one.support_x.shape[:2] == one.support_y.shape == (5, 3)
    assert one.query_x.shape[:2] == one.query_y.shape == (5, 4)
    assert one.way == 1
    assert not torch.equal(one.support_x[0], one.support_x[1])


@pytest.mark.parametrize(
    ("draw", "noise"),
    [(raw_sinusoid_tasks, 0.0), (memorisable_sinusoid_tasks, 0.1), (sinusoid_or_line_tasks, 0.3), (family_tasks, 0.3)],
)
def test_noise_is_added_to_the_same_curves(draw, noise):
    clean, usual, loud = points(draw(200, seed=3, noise=0.0)), points(draw(200, seed=3)), points(draw(200, seed=3, noise=2.0))
    torch.testing.assert_close(usual[0], clean[0])
    for y, deviation in ((usual[1], noise), (loud[1], 2.0)):
        assert float((y - clean[1]).std()) == pytest.approx(deviation, rel=0.05)


def test_raw_sinusoids_have_their_amplitudes_and_phases():
    x, y = points(raw_sinusoid_tasks(2000, support=3, queries=3, seed=0))
    assert x.shape == (2000, 6, 1)
    check_uniform(x.flatten(), -5, 5)
    (a, b), residual = (lambda c, r: (c.mT, r))(*fit(y, *waves(x[..., 0])))  # a sin x + b cos x
    assert float(residual.max()) < 1e-9
    check_uniform((a**2 + b**2).sqrt(), 0.1, 5)
    check_uniform(torch.atan2(b, a), 0, math.pi)


def test_they_are_the_tasks_that_are_shown_in_features_elsewhere():
    raw, shown = (draw(6, seed=4, noise=0.1) for draw in (raw_sinusoid_tasks, sinusoid_tasks))
    torch.testing.assert_close(radial_basis(raw.support_x[..., 0]), shown.support_x)
    torch.testing.assert_close(radial_basis(raw.query_x[..., 0]), shown.query_x)
    assert torch.equal(raw.support_y, shown.support_y)
    assert torch.equal(raw.query_y, shown.query_y)


def amplitudes(episode):
    """Those of memorisable tasks by least squares, and the number that each tells in all its points."""
    x, y = points(episode)
    found, residual = fit(y, torch.sin(x[..., 0]))
    assert float(residual.max()) < 1e-9
    told = x[:, 0, 1:]
    assert torch.equal(x[..., 1:], told[:, None].expand(-1, x.shape[1], -1))
    assert (told.sum(-1) == 1).all()
    assert (told.max(-1).values == 1).all()
    return found[:, 0], told.argmax(-1)


def test_amplitudes_of_training_tasks_are_told():
    found, told = amplitudes(memorisable_sinusoid_tasks(2000, noise=0.0, seed=0))
    torch.testing.assert_close(found, 0.1 + 3.9 / 19 * told)
    assert set(told.tolist()) == set(range(20))
    x = points(memorisable_sinusoid_tasks(2000, noise=0.0, seed=0))[0]
    assert x.shape[-1] == 21
    check_uniform(x[..., 0].flatten(), -5, 5)


def test_those_of_new_tasks_are_any_and_told_wrong():
    found, told = amplitudes(memorisable_sinusoid_tasks(4000, noise=0.0, new=True, seed=0))
    check_uniform(found, 0.1, 4)
    assert set(told.tolist()) == set(range(20))
    assert abs(float(torch.corrcoef(torch.stack([found, told.double()]))[0, 1])) < 4 / 4000**0.5


@pytest.mark.parametrize("new", [False, True])
def test_fewer_amplitudes_are_the_lowest(new):
    _, told = amplitudes(memorisable_sinusoid_tasks(1000, noise=0.0, used=16, new=new, seed=0))
    assert set(told.tolist()) == set(range(16))


@pytest.mark.parametrize("used", [0, 21])
def test_amplitudes_that_there_are_not_are_refused(used):
    with pytest.raises(UserError, match="`used="):
        memorisable_sinusoid_tasks(2, used=used)


def test_half_of_the_tasks_are_sinusoids_and_half_lines():
    x, y = points(sinusoid_or_line_tasks(4000, noise=0.0, seed=0))
    x = x[..., 0]
    check_uniform(x.flatten(), -5, 5)
    line, from_line = fit(y, x, torch.ones(()))
    wave, from_wave = fit(y, *waves(x))
    is_line = from_line < 1e-9
    assert torch.equal(is_line, ~(from_wave < 1e-9))
    assert float(is_line.double().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)
    for coefficient in line[is_line].mT:
        check_uniform(coefficient, -3, 3)
    assert abs(float(torch.corrcoef(line[is_line].mT)[0, 1])) < 5 / 2000**0.5
    check_uniform(wave[~is_line].norm(dim=-1), 0.1, 5)
    check_uniform(torch.atan2(wave[~is_line, 1], wave[~is_line, 0]), 0, math.pi)


COLUMNS = {
    "line": lambda x, z: (x, torch.ones_like(x)),
    "quadratic": lambda x, z: (x**2, x, torch.ones_like(x)),
    "cubic": lambda x, z: (x**3, x**2, x, torch.ones_like(x)),
    "surface": lambda x, z: (x**2, z**2),
}


def family(name, tasks=3000):
    """Points of the tasks of one family: x, z and y."""
    x, y = points(family_tasks(tasks, noise=0.0, seed=0))
    chosen = family_numbers(tasks, seed=0) == list(FAMILIES).index(name)
    return x[chosen, :, 0], x[chosen, :, 1], y[chosen]


def test_each_family_is_as_likely_as_the_others():
    counts = torch.bincount(family_numbers(6000, seed=0), minlength=6)
    assert len(counts) == len(FAMILIES) == 6
    assert float((counts - 1000).abs().max()) < 4 * (6000 * 5 / 36) ** 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_of_a_family(name):
    x, z, _ = family(name)
    check_uniform(x.flatten(), -5, 5)
    assert set(PLANAR) == {"surface", "ripple"}
    if name in PLANAR:
        check_uniform(z.flatten(), -5, 5)
    else:
        assert (z == 1).all()


@pytest.mark.parametrize("name", COLUMNS)
def test_families_that_are_linear_in_their_coefficients(name):
    ranges = {
        "line": (3.0, 3.0),
        "quadratic": (0.2, 2.0, 3.0),
        "cubic": (0.1, 0.2, 2.0, 3.0),
        "surface": (1.0, 1.0),
    }[name]
    x, z, y = family(name)
    found, residual = fit(y, *COLUMNS[name](x, z))
    assert float(residual.max()) < 1e-9
    for coefficient, most in zip(found.mT, ranges, strict=True):
        check_uniform(coefficient, -most, most)
    if len(found.mT) > 1:
        assert abs(float(torch.corrcoef(found.mT)[0, 1])) < 5 / len(found) ** 0.5


def test_sinusoids_of_a_family_have_frequencies_too():
    x, _, y = family("sinusoid", tasks=1200)
    grid = torch.linspace(0.8, 1.2, 401)
    design = torch.stack(waves(grid[:, None, None] * x), dim=-1)
    found = torch.linalg.lstsq(design, y[..., None].expand(401, -1, -1, 1)).solution
    residual = (y - (design @ found)[..., 0]).abs().amax(-1)  # [401, tasks]
    best = residual.min(0)
    assert float(best.values.max()) < 0.02, "a step of the grid moves 5 sin(5 w) by so much"
    check_uniform(grid[best.indices], 0.8, 1.2)
    a, b = found[best.indices, torch.arange(len(y)), :, 0].mT
    assert 4.5 < float(torch.hypot(a, b).max()) < 5.01
    phase = torch.atan2(b, a).remainder(2 * math.pi)
    assert {int(q) for q in phase.div(math.pi / 2).floor()} == {0, 1, 2, 3}, "phases of a whole turn"
    assert float(phase[grid[best.indices] < 0.9].max()) > 0.95 * 2 * math.pi, "whatever the frequency"


def test_ripples_are_waves_of_the_squared_radius():
    x, z, y = family("ripple", tasks=1200)
    grid = torch.linspace(-0.2, 0.2, 1601)
    wave = torch.sin(-grid[:, None, None] * (x**2 + z**2))
    offset = (y - wave).mean(-1, keepdim=True)
    best = (y - wave - offset).abs().amax(-1).min(0)
    assert float(best.values.max()) < 0.02
    check_uniform(grid[best.indices], -0.2, 0.2)
    offset = offset[best.indices, torch.arange(len(y)), 0]
    check_uniform(offset.clamp(-3, 3), -3, 3)


def test_exact_bayes_of_new_memorisable_tasks_is_a_truncated_gaussian():
    """Of one support point the posterior of the amplitude is N(y / sin u, (σ / sin u)²) between 0.1 and 4."""
    tasks = memorisable_sinusoid_tasks(3, support=1, queries=2, noise=0.5, new=True, seed=4).to(dtype=torch.float64)
    u, y, query_u, query_y = tasks.support_x[..., 0], tasks.support_y, tasks.query_x[..., 0], tasks.query_y
    found = memorisable_log_predictive(u, y, query_u, query_y, 0.5)
    for t, q in itertools.product(range(3), range(2)):
        mean, scale, wave = float(y[t, 0] / u[t, 0].sin()), float(0.5 / abs(u[t, 0].sin())), float(query_u[t, q].sin())
        law = scipy.stats.truncnorm((0.1 - mean) / scale, (4 - mean) / scale, mean, scale)
        density, _ = scipy.integrate.quad(
            lambda a, law=law, wave=wave, t=t, q=q: law.pdf(a) * scipy.stats.norm.pdf(float(query_y[t, q]), a * wave, 0.5),
            0.1,
            4.0,
            limit=200,
        )
        assert float(found[t, q]) == pytest.approx(math.log(density), abs=1e-4)


def test_tasks_that_tell_the_same_are_else_as_they_were():
    tasks = memorisable_sinusoid_tasks(5, support=3, queries=4, new=True, seed=1)
    alike = told_alike(tasks)
    for one, other in ((tasks.support_x, alike.support_x), (tasks.query_x, alike.query_x)):
        assert torch.equal(one[..., 0], other[..., 0])
        assert torch.equal(other[..., 1:], tasks.query_x[0, 0, 1:].expand_as(other[..., 1:]))
    assert not torch.equal(tasks.query_x, alike.query_x)
    assert torch.equal(tasks.support_y, alike.support_y)
