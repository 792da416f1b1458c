"""How much memory training takes, without taking it."""

import pytest
import torch
from torch import nn

from models.networks.classifiers import build_network
from models.networks.memory import training_memory


def needed(name, shape, batch, **options):
    return training_memory(lambda: build_network(name, shape, 10, **options), shape, batch)


def test_a_perceptron_takes_weights_four_times_and_its_layers():
    weights = 5 * 3 + 3 + 3 * 10 + 10
    assert needed("mlp", (5,), 7, hidden=(3,)) == 4 * 4 * weights + 4 * 7 * (5 + 3)


def test_images_and_batches_count_and_no_random_number_is_drawn():
    before = torch.random.get_rng_state()
    small, large = needed("conv4-64", (3, 32, 32), 64), needed("conv4-64", (3, 4096, 4096), 64)
    assert 0.04e9 < small < 0.2e9
    assert 700e9 < large < 2000e9
    assert needed("conv4-64", (3, 32, 32), 128) > 1.8 * small
    assert torch.equal(before, torch.random.get_rng_state())


def test_sizes_beyond_counting_are_infinite():
    assert needed("mlp", (1, 28, 28), 64, hidden=(10**10, 10**10)) == float("inf")
    with pytest.raises(ValueError, match="up to 1000, not 600004"):
        needed("wrn-600004-1", (1, 28, 28), 64)


def test_networks_that_do_not_run_without_numbers_are_not_judged():
    class Looking(nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    assert training_memory(Looking, (3,), 2) is None
