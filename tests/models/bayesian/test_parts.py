"""Gradients of a vector of weights by its parts."""

import pytest
import torch
from torch import nn

from models.bayesian.draws import call
from models.bayesian.parts import Gradient, Parts, named_parts
from models.distributions.diagonal import GaussianWeights

SHAPES = {"0.weight": torch.Size([4, 3]), "0.bias": torch.Size([4]), "1.weight": torch.Size([2, 4]), "scale": torch.Size([])}
LENGTH = sum(shape.numel() for shape in SHAPES.values())


@pytest.mark.parametrize("leading", [(), (1,), (1, 1), (3,), (2, 1, 3)])
def test_a_vector_gets_the_gradient_of_all_its_parts(leading):
    """One that is used twice, one written in its place, one left out, and one without a dimension."""
    vector = torch.randn(*leading, LENGTH, requires_grad=True)
    gradient = Gradient(vector, list(SHAPES.values()))
    first, _, third, last = Parts.apply(vector, gradient)
    rows = leading if torch.Size(leading).numel() > 1 else ()
    assert first.shape == (*([torch.Size(rows).numel()] if rows else []), 4, 3)
    gradient.part(0)
    gradient.vector.fill_(torch.nan)  # as fresh memory may be
    written = gradient.part(2).copy_(torch.full_like(third, 7.0))
    torch.autograd.backward([(first * first).sum() + 5 * last.sum(), third], [None, written])
    weights = vector.detach()
    expected = torch.cat(
        [2 * weights[..., :12], torch.zeros_like(weights[..., 12:16]), torch.full_like(weights[..., 16:24], 7.0)], -1
    )
    torch.testing.assert_close(vector.grad, torch.cat([expected, torch.full_like(weights[..., 24:], 5.0)], -1))


def test_a_gradient_that_was_handed_out_is_not_written_again():
    """Two backward passes of one graph."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    shapes = {name: p.shape for name, p in network.named_parameters()}
    loc = torch.randn(sum(shape.numel() for shape in shapes.values()), requires_grad=True)
    parts = named_parts(GaussianWeights(loc, torch.full_like(loc, 1e-12)), shapes)
    outputs = call(network, parts, torch.randn(5, 3))
    (one,) = torch.autograd.grad(outputs[:, 0].sum(), loc, retain_graph=True)
    kept = one.clone()
    (two,) = torch.autograd.grad(outputs[:, 1].sum(), loc)
    assert torch.equal(one, kept)
    assert not torch.equal(one, two)
