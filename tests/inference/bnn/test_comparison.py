"""Approximations beside NUTS: intervals, KL and widths in cases where they are known."""

import math

import pytest
import torch
from torch import nn

from inference.bnn.comparison import agree, compare, intervals
from inference.bnn.posterior import WeightPosterior
from inference.bnn.posteriors.chains import ChainPosterior
from inference.bnn.report import format_agreement
from models.bayesian.network import BayesianNetwork
from models.likelihoods import GaussianLikelihood

X, NOISE = torch.linspace(-1, 3, 5)[:, None], 0.5


@pytest.fixture
def model():
    """f(x) = w x + b with known noise."""
    return BayesianNetwork(nn.Linear(1, 1), None, GaussianLikelihood(NOISE, learned=False))


def chains(model, spread=0.2, shift=0.0) -> ChainPosterior:
    """Two chains of a posterior in which slope and intercept are N(0, spread²)."""
    draws = torch.randn(2, 1000, 2)
    draws = spread * (draws - draws.mean(1, keepdim=True)) / draws.std(1, keepdim=True)
    draws[1] += shift
    return ChainPosterior(model, draws)


def test_intervals_are_those_of_the_data_and_two_of_their_widths_beside_them():
    inside, outside = (grid[:, 0] for grid in intervals(X))
    assert (float(inside.min()), float(inside.max())) == (-1, 3)
    assert (float(outside[0]), float(outside[-1])) == (-9, 11)
    assert bool(((outside < -1) | (outside > 3)).all())


def test_a_narrower_gaussian_has_the_known_kl_and_width(model):
    """At x the predictives are N(0, v(x)) with v = spread² (x² + 1) + noise²."""
    other = WeightPosterior(model, torch.zeros(1, 2), torch.full((1, 2), 0.1).log())
    agreement = agree(chains(model), other, X)
    x = intervals(X)
    p, q = ([spread**2 * (grid[:, 0] ** 2 + 1) + NOISE**2 for grid in x] for spread in (0.2, 0.1))
    expected = [float(0.5 * (a / b - 1 - (a / b).log()).mean()) for a, b in zip(p, q, strict=True)]
    assert agreement.kl_inside == pytest.approx(expected[0], abs=0.01)
    assert agreement.kl_outside == pytest.approx(expected[1], rel=0.15)
    assert agreement.width == pytest.approx(math.sqrt(q[1][-1] / p[1][-1]), rel=0.05)
    assert agreement.r_hat is None


def test_the_width_is_that_of_the_side_where_it_is_worse(model):
    """Far from zero, at 4; not at −1, on the other side of inputs from 1 to 2."""
    other = WeightPosterior(model, torch.zeros(1, 2), torch.full((1, 2), 0.1).log())
    worse = math.sqrt((17 * 0.1**2 + NOISE**2) / (17 * 0.2**2 + NOISE**2))
    assert agree(chains(model), other, torch.tensor([[1.0], [2.0]])).width == pytest.approx(worse, rel=0.08)


def test_nuts_is_beside_itself(model):
    named = {"nuts": chains(model), "vanilla": WeightPosterior(model, torch.zeros(1, 2), torch.full((1, 2), 0.2).log())}
    agreements = compare(named, X)
    assert agreements["nuts"].r_hat < 1.02
    assert max(agreements["nuts"].kl_inside, agreements["vanilla"].kl_inside) < 0.01
    assert agreements["vanilla"].width == pytest.approx(1, abs=0.06)
    disagreeing = compare(named | {"nuts": chains(model, shift=0.5)}, X)["nuts"]
    assert disagreeing.r_hat > 1.2
    assert disagreeing.kl_inside > 0.1
    assert compare({"vanilla": named["vanilla"]}, X) == {}


def test_the_table_is_there_where_nuts_is(model):
    agreement = compare({"nuts": chains(model)}, X)["nuts"]._asdict()
    assert "r-hat" in format_agreement([{"algorithm": "nuts"} | agreement])
    assert format_agreement([{"algorithm": "vanilla"}]) == ""
