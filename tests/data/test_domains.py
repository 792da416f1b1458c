"""Tasks at hand: drawn without repeating one, and joined."""

import torch

from data.domains import TaskBank, joined
from data.episodes import Episode


def bank(tasks: int = 6, first: int = 0) -> Episode:
    """Tasks whose queries are their numbers."""
    x = torch.arange(first, first + tasks, dtype=torch.float32)[:, None, None].expand(-1, 4, 3)
    y = torch.arange(2).repeat_interleave(2).expand(tasks, -1)
    return Episode(x[:, :0], y[:, :0], x, y, 2)


def test_tasks_of_a_batch_differ_as_long_as_there_are_so_many():
    source = TaskBank(bank())
    assert sorted(source.sample(6, seed=1).query_x[:, 0, 0].tolist()) == [0, 1, 2, 3, 4, 5]
    many = source.sample(15, seed=1).query_x[:, 0, 0].long()
    assert torch.bincount(many, minlength=6).min() >= 2


def test_equal_seeds_give_equal_tasks():
    one, two, other = (TaskBank(bank(50)).sample(9, seed=seed).query_x for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_joined_tasks_keep_their_order_and_shape():
    both = joined([bank(2), bank(3, first=10)])
    assert both.query_x[:, 0, 0].tolist() == [0, 1, 10, 11, 12]
    assert (both.support_x.shape, both.query_y.shape, both.way) == ((5, 0, 3), (5, 4), 2)
