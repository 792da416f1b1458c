"""The training loop: it stops at a loss that is not finite, and never saves such weights."""

import multiprocessing
import os
import signal

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from data.errors import UserError
from inference.runs import training
from inference.runs.folder import RunFolder
from inference.runs.training import FiniteLoss, Loop, SharedTraining, stop_if_not_finite, train


class Module(lightning.LightningModule):
    """Twenty steps per epoch on one weight; ``spoil`` changes the loss of a step, or the weight after an epoch."""

    def __init__(self, spoil=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.spoil = spoil or (lambda step, loss: loss)
        self.validated = 0

    def train_dataloader(self):
        return DataLoader(torch.arange(20), batch_size=None)

    def training_step(self, number, index):
        return self.spoil(self.global_step, self.weight**2)

    def on_train_epoch_end(self):
        self.validated += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, path, epochs=3):
    train(module, Loop("cpu"), RunFolder(path), "stage", epochs=epochs)


def saved(path):
    return torch.load(path / "checkpoints/stage/last.ckpt", weights_only=True)["state_dict"]["weight"]


def test_a_precision_is_not_replaced_by_another(tmp_path):
    with pytest.raises(UserError, match="`precision=16-mixed` needs a GPU: `precision=bf16-mixed` is for both"):
        train(Module(lambda now, loss: loss), Loop("cpu", precision="16-mixed"), RunFolder(tmp_path), "stage", epochs=1)
    assert not list(tmp_path.iterdir())


def test_one_process_keeps_its_items_on_its_gpu(monkeypatch):
    assert Loop("cuda").place.type == "cuda"
    assert Loop("cuda", devices=2).place.type == "cpu"
    for there, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert Loop("auto").place.type == device
        assert Loop("cpu").place.type == "cpu"
    monkeypatch.setattr(training, "launched", lambda: True)
    assert Loop("cuda").place.type == "cpu"


@pytest.mark.parametrize("step", [0, 19, 20, 33])
def test_the_first_bad_step_is_named_and_the_last_good_checkpoint_kept(step, tmp_path):
    module = Module(lambda now, loss: loss * torch.nan if now == step else loss)
    with pytest.raises(UserError, match=f"became NaN or infinite at step {step}: .*lower `learning_rate`"):
        fit(module, tmp_path)
    assert module.validated == step // 20, "nothing is validated with bad weights"
    if step < 20:
        assert not list(tmp_path.glob("checkpoints/stage/*.ckpt"))
    else:
        assert saved(tmp_path).isfinite()


def test_a_loss_is_found_within_the_epoch(tmp_path):
    """Looks come every 25 steps, so an epoch of 1000 steps does not train on NaN to its end."""
    module = Module(lambda now, loss: loss / 0 if now >= 30 else loss)
    module.train_dataloader = lambda: DataLoader(torch.arange(1000), batch_size=None)
    with pytest.raises(UserError, match="at step 30:"):
        fit(module, tmp_path)
    assert module.global_step == 50


def test_a_finite_loss_with_a_bad_gradient_saves_nothing(tmp_path):
    def spoil(step, loss):
        return (loss - loss.detach()).sqrt() if step == 39 else loss  # 0, with an infinite gradient

    with pytest.raises(UserError, match="at step 39"):
        fit(Module(spoil), tmp_path)
    assert saved(tmp_path).isfinite()


def test_good_training_is_left_alone(tmp_path):
    module = Module()
    fit(module, tmp_path)
    assert module.validated == 3
    assert module.weight.item() == pytest.approx(0.8**60)


def test_no_step_waits_for_the_device(monkeypatch):
    """The losses of steps between two looks are not read."""
    looks = []
    monkeypatch.setattr(FiniteLoss, "look", lambda self: looks.append(1))
    guard, trainer = FiniteLoss(every=10), type("Trainer", (), {"global_step": 1})()
    for index in range(9):
        with torch.device("meta"):  # where nothing can be read
            guard.on_train_batch_end(trainer, None, {"loss": torch.ones(())}, None, index)
    assert not looks
    assert guard.bad.device.type == "meta"


def test_without_a_gpu_no_step_looks_for_one(monkeypatch):
    """As Lightning has an optimizer do in every step, by a search for NVIDIA's library."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning does, when it is imported
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training.spare_steps()
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    training.spare_steps()
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1", "processes that are forked may still ask, and use it then"


def test_every_process_that_trains_spares_its_steps(monkeypatch, tmp_path):
    done = []
    for name in ("keep_freed_memory", "look_for_gpus_once"):
        monkeypatch.setattr(training, name, lambda name=name: done.append(name))
    fit(Module(), tmp_path, epochs=1)
    assert done == ["keep_freed_memory", "look_for_gpus_once"]
    monkeypatch.setattr(training.DDPStrategy, "setup_environment", lambda self: done.append("lightning"))
    SharedTraining().setup_environment()
    assert done[2:] == ["keep_freed_memory", "look_for_gpus_once", "lightning"]


def test_errors_of_distributions_are_named_and_others_pass():
    with pytest.raises(UserError, match="at step 7"), stop_if_not_finite(7):
        torch.distributions.Normal(torch.tensor(torch.nan), 1.0)
    with pytest.raises(ValueError, match="mine"), stop_if_not_finite(7):
        raise ValueError("mine")


@pytest.mark.parametrize("started", [True, False])
def test_a_process_that_we_started_ends_at_once_when_it_is_told_to(started, monkeypatch):
    """Lightning's handler tells the other processes, and fails where one of them is dead; our own process keeps its handler."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: multiprocessing.current_process() if started else None)
    try:
        SharedTraining().on_train_start()
        assert (signal.getsignal(signal.SIGTERM) is signal.SIG_DFL) == started
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_progress_bar_names_no_version(tmp_path, capsys):
    """Lightning makes it of the stage's last letters."""
    train(Module(), Loop("cpu", progress=True), RunFolder(tmp_path), "pretrain", epochs=1)
    shown = capsys.readouterr()
    assert "Epoch 0" in shown.out + shown.err
    assert "v_num" not in shown.out + shown.err
