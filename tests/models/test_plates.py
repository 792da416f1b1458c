"""What plates share: noise in the order of a task's rows."""

import torch

from models.plates import ordered_like


def test_noise_is_in_the_order_of_the_rows():
    """The row of the least sum has the first noise, and so on."""
    torch.manual_seed(0)
    weights, noise = torch.randn(4, 3, 5), torch.randn(6, 4, 3, 5)
    ordered = ordered_like(weights, noise)
    for task in range(4):
        order = weights[task].sum(-1).argsort()
        assert torch.equal(ordered[:, task, order], noise[:, task])


def test_sizes_of_one_are_taken_again_and_again():
    torch.manual_seed(0)
    weights, noise = torch.randn(4, 1, 2, 3, 5), torch.randn(4, 6, 1, 3, 5)
    expected = ordered_like(weights.expand(4, 6, 2, 3, 5), noise.expand(4, 6, 2, 3, 5))
    assert torch.equal(ordered_like(weights, noise), expected)
