"""Gradient networks: the form of a gradient, norms, and what they refuse."""

import pytest
import torch
from torch import nn

from guides.tasks.gradient_networks import EquivariantGradient, ExactGradient, MLPGradient
from models.likelihoods import CategoricalLikelihood

WAY = 4


def test_equivariant_gradient_is_prediction_less_label_where_the_label_is_predicted():
    """With a tilt that is certain of one class, it is a multiple of softmax(ŷ) − onehot: the exact gradient, sign included."""
    network = EquivariantGradient()
    outputs, labels = torch.randn(2, 5, WAY), torch.randint(WAY, (2, 5))
    tilted = 50 * torch.nn.functional.one_hot(labels, WAY).float()
    network.layers = Fixed(torch.stack([tilted, torch.ones_like(tilted)], dim=-1))
    exact = ExactGradient(CategoricalLikelihood())(outputs, labels)
    torch.testing.assert_close(network(outputs), torch.nn.functional.softplus(torch.tensor(1.0)) * exact)


class Fixed(nn.Module):
    """Gives the same whatever it sees."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, features):
        return self.value


def test_equivariant_gradient_sums_to_zero_over_classes():
    gradient = EquivariantGradient()(torch.randn(3, 7, WAY))
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, 7), atol=1e-6, rtol=0)
    assert gradient.abs().max() > 0


def test_exact_gradient_is_that_of_the_likelihood():
    outputs, labels = torch.randn(2, 5, WAY, requires_grad=True), torch.randint(WAY, (2, 5))
    loss = nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="sum")
    expected = torch.autograd.grad(loss, outputs)[0]
    torch.testing.assert_close(ExactGradient(CategoricalLikelihood())(outputs, labels), expected)
    with pytest.raises(ValueError, match="labels"):
        ExactGradient(CategoricalLikelihood())(outputs)


def test_the_papers_network_says_what_it_cannot_take():
    with pytest.raises(ValueError, match="at least two"):
        MLPGradient(WAY)(torch.randn(3, 1, WAY))
    with pytest.raises(ValueError, match="equivariant"):
        MLPGradient(WAY)(torch.randn(3, 6, WAY + 1))


def test_the_papers_network_norms_both_hidden_layers():
    """Each hidden layer is normalised over the queries of a task, so the size of the weights before it says nothing."""
    network = MLPGradient(WAY).double()
    outputs = torch.randn(3, 12, WAY, dtype=torch.float64)
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv1d)][:2]

    def enlarge(layers):
        for layer in layers:
            for parameter in layer.parameters():
                parameter.data.mul_(1000)

    enlarge(convolutions)  # far above the norm's ε
    before = network(outputs)
    for layer in convolutions:
        enlarge([layer])
        torch.testing.assert_close(network(outputs), before, rtol=1e-3, atol=1e-3)
