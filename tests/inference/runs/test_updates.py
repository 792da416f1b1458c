"""Batches of a training that is counted in updates."""

import pytest
import torch

from data.augmentation import LETTERS
from data.items import LabelledItems
from inference.runs.updates import Schedule, UpdateTraining


class Together(UpdateTraining):
    """One of several processes, without starting any."""

    rank, world = 0, 1

    @property
    def processes(self):
        return self.world

    @property
    def global_rank(self):
        return self.rank


def data(count):
    return LabelledItems(torch.randint(0, 255, (count, 1, 8, 8), dtype=torch.uint8), torch.arange(count), ())


@pytest.mark.parametrize(("updates", "steps", "epochs"), [(1, 1, 1), (29, 1, 29), (400, 13, 31), (810, 27, 30)])
def test_rounds_hold_all_updates(updates, steps, epochs):
    module = UpdateTraining(Schedule(updates, 8, 1e-3, 0.0))
    assert (module.steps_per_round, module.epochs) == (steps, epochs)
    assert len(module.train_dataloader()) == steps


def test_every_pass_sees_every_item_once_in_an_order_of_its_own():
    module, source = UpdateTraining(Schedule(1, 8, 1e-3, 0.0)), data(24)
    passes = [torch.cat([module.draw(source, 3 * i + j)[1] for j in range(3)]) for i in range(2)]
    assert all(torch.equal(labels.sort().values, torch.arange(24)) for labels in passes)
    assert not torch.equal(*passes)


@pytest.mark.parametrize("batch", [8, 7])
def test_processes_share_the_batch_of_one(batch):
    source = data(20)
    alone = Together(Schedule(1, batch, 1e-3, 0.0), augmentation=LETTERS).draw(source, 5)
    parts = []
    for rank in range(2):
        module = Together(Schedule(1, batch, 1e-3, 0.0), augmentation=LETTERS)
        module.rank, module.world = rank, 2
        parts.append(module.draw(source, 5))
        assert module.items_per_process(source) == batch / 2
    for kind in range(2):
        assert torch.equal(torch.cat([part[kind] for part in parts]), alone[kind])
