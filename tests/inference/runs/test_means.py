"""Means over the steps of an epoch."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.runs.means import StepMeans
from inference.runs.training import Loop, train


def test_means_are_over_the_steps_that_speak_and_begin_anew():
    means, weight = StepMeans(), torch.tensor(2.0, requires_grad=True)
    for step in (1.0, 2.0, 6.0):
        means.add({"a": weight * step})
    means.add({"b": torch.tensor(5.0)})
    found = means.take()
    assert {name: float(value) for name, value in found.items()} == {"a": 6.0, "b": 5.0}
    assert not found["a"].requires_grad
    assert means.take() == {}


def test_half_precision_is_added_up_in_single():
    means = StepMeans()
    for _ in range(1000):
        means.add({"a": torch.tensor(1.0, dtype=torch.bfloat16)})
    assert float(means.take()["a"]) == 1.0


def test_what_is_no_number_is_told():
    means = StepMeans()
    for value in (1.0, float("nan")):
        means.add({"a": torch.tensor(value)})
    assert means.take()["a"].isnan()


class Speaking(lightning.LightningModule):
    """Each step says what Lightning is told, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.means = nn.Parameter(torch.tensor(1.0)), StepMeans()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(1.0, 5.0), batch_size=None)

    def training_step(self, number: torch.Tensor, index: int) -> torch.Tensor:
        loss = (number * self.weight).square()
        self.means.add({"ours": loss, **({"odd": number} if index % 2 else {})})
        self.log("lightnings", loss, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_what_is_logged_is_what_lightning_would_log(tmp_path):
    run, module = RunFolder.create(tmp_path / "run", "x", ""), Speaking()
    module.means.add({"ours": torch.tensor(1e6)})  # of an epoch that was broken off
    train(module, Loop("cpu"), run, "stage", epochs=3)
    curves = read_history(run, ["stage"])["stage"]
    assert curves["ours"] == curves["lightnings"]
    assert curves["odd"][1] == [3.0] * 3
    assert len(set(curves["ours"][1])) == 3
