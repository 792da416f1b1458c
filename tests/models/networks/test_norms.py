"""Whose statistics a network is normed by: each norm against what it says, and against the items beside an item."""

import copy

import pytest
import torch
from torch import nn

from models.networks.backbones import build_backbone
from models.networks.norms import Norm, RunningNorm, keeps_statistics, with_norm


@pytest.fixture(autouse=True)
def double(float64):
    pass


def trained() -> nn.Module:
    """A network whose statistics, factors and shifts are no longer those it began with."""
    network = build_backbone("conv4-4", (1, 16, 16))
    for _ in range(3):
        network(2 + 3 * torch.rand(8, 1, 16, 16))
    for name, p in network.named_parameters():
        if p.dim() == 1:
            nn.init.uniform_(p, 0.5, 1.5) if name.endswith("weight") else nn.init.normal_(p)
    return network


@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("training", [False, True])
def test_the_norms_that_say_so_are_transductive(norm, training):
    network, x = with_norm(trained(), norm).train(training), torch.randn(6, 1, 16, 16)
    alone, beside = network(x)[:2], network(torch.cat([x[:2], x[2:] + 1]))[:2]
    assert torch.allclose(alone, beside) != norm.is_transductive


@pytest.mark.parametrize("training", [False, True])
def test_running_is_evaluation_mode_for_good(training):
    network, x = trained(), torch.randn(6, 1, 16, 16)
    frozen = with_norm(network, "running")
    torch.testing.assert_close(frozen(x), copy.deepcopy(network).eval()(x))
    frozen.train(training)
    torch.testing.assert_close(frozen(x), network.eval()(x))
    assert frozen.training == training
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    assert before.keys() == network.state_dict().keys()
    frozen(x)
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_task_is_training_mode_for_good(training):
    network, x = trained(), torch.randn(6, 1, 16, 16)
    torch.testing.assert_close(with_norm(network, "task").train(training)(x), network.train()(x))


def test_group_norms_groups_of_channels():
    layer, x = nn.BatchNorm2d(12), torch.randn(3, 12, 4, 4)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    grouped = x.unflatten(1, (4, 3))  # the greatest common divisor of 8 and 12
    variance, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0, keepdim=True)
    normed = ((grouped - mean) / (variance + layer.eps).sqrt()).flatten(1, 2)
    expected = layer.weight[:, None, None] * normed + layer.bias[:, None, None]
    torch.testing.assert_close(with_norm(layer, "group")(x), expected)
    assert with_norm(layer, "group", groups=6).num_groups == 6


@pytest.mark.parametrize("norm", Norm)
def test_the_network_is_not_changed_and_factors_and_shifts_are_learned(norm):
    network, x = trained(), torch.randn(6, 1, 16, 16)
    network.eval()
    before, found = network(x), with_norm(network, norm)
    found.train()(x).sum().backward()
    assert torch.equal(network(x), before)
    assert all(p.grad is None for p in network.parameters())
    assert [name for name, p in found.named_parameters() if p.requires_grad] == [n for n, _ in network.named_parameters()]
    assert not keeps_statistics(found)
    assert keeps_statistics(network)


def test_a_layer_in_two_places_stays_one():
    layer = nn.BatchNorm1d(3)
    for norm in ("running", "group"):
        found = with_norm(nn.Sequential(layer, nn.Tanh(), layer), norm)
        assert found[0] is found[2]


def test_nothing_of_nothing_is_kept():
    with pytest.raises(ValueError, match="`task` or `group`"):
        with_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "running")
    assert isinstance(with_norm(nn.BatchNorm1d(3), "running"), RunningNorm)
    plain = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    assert str(with_norm(plain, "group")) == str(plain)
