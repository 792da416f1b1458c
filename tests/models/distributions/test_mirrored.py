"""Draws in pairs: what is computed of mean and deviations is that of each draw."""

import pytest
import torch

from models.distributions.mirrored import Mirrored

pytestmark = pytest.mark.usefixtures("float64")


def pairs():
    torch.manual_seed(0)
    return Mirrored(torch.randn(2, 1, 3, 5), torch.randn(4, 2, 1, 3, 5))


def test_draws_are_the_sums_and_then_the_differences():
    drawn = pairs()
    expected = torch.cat([drawn.mean + drawn.deviation, drawn.mean - drawn.deviation])
    torch.testing.assert_close(drawn.written(), expected, rtol=0, atol=0)
    torch.testing.assert_close(drawn.squeeze(-3).written(), expected.squeeze(-3), rtol=0, atol=0)


def test_linear_functions_and_squares_are_those_of_each_draw():
    drawn, matrix = pairs(), torch.randn(5, 7)
    torch.testing.assert_close(drawn.each(lambda part: part @ matrix), drawn.written() @ matrix)
    torch.testing.assert_close(drawn.squares(), drawn.written().square().sum(-1))
