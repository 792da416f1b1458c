"""Batch norm by a task's own items: between the network as it is and the statistics of one task, and never of another."""

import pytest
import torch
from torch import nn

from models.networks.batch_norm import batch_norms, normed_by_tasks


@pytest.fixture
def network(float64):
    made = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.BatchNorm1d(4))
    for layer in batch_norms(made):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return made.eval()


def test_no_share_is_the_network_as_it_is(network):
    x = torch.randn(10, 1, 6, 6)
    with normed_by_tasks(network, 2, 0.0):
        adapted = network(x)
    torch.testing.assert_close(adapted, network(x))


def test_the_whole_share_is_training_mode_on_each_task_by_itself(network):
    x = torch.randn(2, 5, 1, 6, 6) * torch.tensor([1.0, 3.0])[:, None, None, None, None]
    with normed_by_tasks(network, 2, 1.0):
        adapted = network(x.flatten(0, 1)).view(2, 5, -1)
    network.train()
    torch.testing.assert_close(adapted, torch.stack([network(task) for task in x]))


def test_part_of_it_mixes_mean_and_variance(network):
    x, layer = torch.randn(5, 4), batch_norms(network)[1]
    with normed_by_tasks(layer, 1, 0.25):
        adapted = layer(x)
    mean = 0.75 * layer.running_mean + 0.25 * x.mean(0)
    variance = 0.75 * layer.running_var + 0.25 * x.var(0, correction=0)
    torch.testing.assert_close(adapted, (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias)


def test_nothing_of_the_network_is_changed(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(RuntimeError), normed_by_tasks(network, 3, 0.5):
        network(torch.randn(4, 1, 6, 6))  # three tasks of equally many items they are not
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all("forward" not in vars(layer) for layer in network.modules())
