"""Networks under many weights at once: each vector gives what the network gives that has these parameters."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from models.networks import functional
from models.networks.classifiers import build_network
from models.networks.folded import run
from models.networks.functional import FunctionalNetwork, flat_weights, last_layer, split_weights
from models.networks.norms import with_norm


@pytest.fixture(autouse=True)
def double(float64):
    pass


def convolutional() -> nn.Sequential:
    return with_norm(build_network("conv4-4", (1, 16, 16), 3), "task")


def with_weights(network: nn.Module, weights: torch.Tensor) -> nn.Module:
    """A copy that has these parameters, by torch's own order."""
    other = copy.deepcopy(network)
    vector_to_parameters(weights, other.parameters())
    return other


class Residual(nn.Module):
    """No chain."""

    def __init__(self):
        super().__init__()
        self.inner = convolutional()

    def forward(self, x):
        return self.inner(x) + x.mean(dim=(1, 2, 3))[:, None]


def circular() -> nn.Sequential:
    """A chain without a rule of its own."""
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(512, 3))


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("build", [convolutional, Residual, circular])
def test_each_vector_is_the_network_that_has_these_parameters(build, vectors, chunk):
    network, x = build(), torch.randn(vectors, 5, 1, 16, 16)
    functional = FunctionalNetwork(network, chunk=chunk)
    weights = functional.flat() + 0.3 * torch.randn(vectors, functional.num_weights)
    expected = torch.stack([with_weights(network, w)(items) for w, items in zip(weights, x, strict=True)])
    torch.testing.assert_close(functional(x, weights), expected)
    assert not torch.allclose(expected, torch.stack([network(items) for items in x]))


@pytest.mark.parametrize("listened_to", [False, True])
@pytest.mark.parametrize("chunk", [2, None])
def test_no_more_vectors_run_at_once_than_a_chunk_or_a_cpu_holds(chunk, listened_to, monkeypatch):
    sizes, network = [], FunctionalNetwork(convolutional(), chunk=chunk)
    monkeypatch.setattr(functional, "NUMBERS_AT_ONCE", 2 * 3 * 16 * 16 + 1 if chunk is None else 1)
    monkeypatch.setattr(functional, "run", lambda chain, parts, x: sizes.append(len(x)) or run(chain, parts, x))
    if listened_to:
        network.network.register_forward_hook(lambda *_: sizes.append("vmap"))
    network(torch.randn(5, 3, 1, 16, 16), network.flat().expand(5, -1))
    assert sizes == (3 * ["vmap"] if listened_to else [2, 2, 1])
    assert network.at_once(torch.empty(5, 3, 1, 16, 16, device="meta")) == (chunk or 5)


def test_its_own_weights_are_the_networks_and_the_networks_stay_its_own():
    network = convolutional()
    functional = FunctionalNetwork(network)
    assert torch.equal(functional.flat(), parameters_to_vector(network.parameters()))
    assert list(functional.parameters()) == []
    assert all(p.requires_grad for p in network.parameters())
    before = functional.flat()
    with torch.no_grad():
        next(network.parameters()).fill_(7.0)
    assert torch.equal(functional.flat(), before)


def test_its_own_weights_are_saved_and_read_back():
    network = convolutional()
    saved, other = FunctionalNetwork(network), FunctionalNetwork(convolutional())
    assert not torch.equal(saved.flat(), other.flat())
    other.load_state_dict(saved.state_dict())
    assert torch.equal(saved.flat(), other.flat())


def test_what_is_not_adapted_is_shared_and_learned():
    network, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(2, 6, 4)
    functional = FunctionalNetwork(network, last_layer(network))
    assert list(functional.shapes) == ["2.weight", "2.bias"]
    weights = torch.randn(2, functional.num_weights, requires_grad=True)
    outputs = functional(x, weights)
    hidden = functional.network[:2](x)
    matrix, bias = weights.split([15, 3], dim=-1)
    torch.testing.assert_close(outputs, hidden @ matrix.unflatten(-1, (3, 5)).mT + bias[:, None])
    outputs.square().sum().backward()
    assert {name for name, p in functional.named_parameters() if p.grad is not None} == {"network.0.weight", "network.0.bias"}


def test_a_parameter_of_two_layers_stays_one():
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    functional = FunctionalNetwork(network)
    assert functional.num_weights == 9 + 3 + 3
    weights, x = torch.randn(2, 15), torch.randn(2, 4, 3)
    matrix, first, second = (p.unflatten(-1, (-1, 3)) for p in weights.split([9, 3, 3], dim=-1))
    torch.testing.assert_close(functional(x, weights), (x @ matrix.mT + first).tanh() @ matrix.mT + second)


def test_a_parameter_of_two_names_in_one_layer_stays_one():
    layer = nn.Linear(3, 3)
    layer.again = layer.weight
    functional = FunctionalNetwork(layer)
    assert functional.num_weights == 12
    assert list(functional.parameters()) == []
    assert functional.network.again is functional.network.weight


def test_gradients_of_weights_and_items():
    network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    functional = FunctionalNetwork(network)
    x, weights = torch.randn(2, 3, 2, requires_grad=True), torch.randn(2, 12, requires_grad=True)
    assert torch.autograd.gradcheck(functional, (x, weights))
    assert torch.autograd.gradgradcheck(functional, (x, weights))


def test_dropout_differs_between_vectors():
    functional = FunctionalNetwork(nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)))
    x, weights = torch.ones(2, 1, 4), functional.flat().expand(2, -1)
    first, second = functional(x, weights)
    assert not torch.equal(first == 0, second == 0)
    first, second = functional.eval()(x, weights)
    assert torch.equal(first, second)


def test_parts_of_a_vector_and_back():
    network = convolutional()
    shapes = {name: p.shape for name, p in network.named_parameters()}
    parts = split_weights(flat_weights(network, shapes), shapes)
    assert all(torch.equal(parts[name], p) for name, p in network.named_parameters())
    many = split_weights(torch.randn(2, 3, 5), {"a": torch.Size([2, 2]), "b": torch.Size([])})
    assert (many["a"].shape, many["b"].shape) == ((2, 3, 2, 2), (2, 3))


def test_what_cannot_be_is_refused():
    network = build_network("conv4-4", (1, 16, 16), 3)
    with pytest.raises(ValueError, match="with_norm"):
        FunctionalNetwork(network)
    for norm in ("running", "task", "group"):
        FunctionalNetwork(with_norm(network, norm))
    with pytest.raises(ValueError, match="no parameter"):
        FunctionalNetwork(with_norm(network, "task"), lambda name: False)
