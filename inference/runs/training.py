"""One stage of training by Lightning, the same for every command: checkpoints, resuming, devices, logs."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import lightning
import torch
import torch.distributed as group
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from data.errors import UserError
from inference.runs.batch_norm import SharedBatchNorm
from inference.runs.checkpoints import (
    BEST,
    LAST,
    Begun,
    KeptCheckpoint,
    WholeCheckpoints,
    read_weights,
    start_of,
    unusable,
)
from inference.runs.files import Unfinished
from inference.runs.folder import RunFolder
from inference.runs.interruptions import interruptible, terminate
from inference.runs.means import LogMeans
from inference.runs.processes import TIMEOUT, launched, leave

NEVER = 2**62  # larger than any step


@dataclass(frozen=True)
class Loop:
    """How a stage of training runs, whatever it trains.

    Args:
        device: auto, cpu or cuda.
        devices: processes to train with.
        precision: Lightning's, such as 32-true or bf16-mixed.
        progress: whether to show a progress bar.
        compile: whether steps that can be are compiled on a CPU, see :class:`~inference.runs.graphs.CapturedTerms`.
    """

    device: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    progress: bool = False
    compile: bool = False

    @property
    def unmixed(self) -> Loop:
        """The same in single precision, or double where that is asked for: for small models that lose by less."""
        return replace(self, precision="64-true" if self.precision == "64-true" else "32-true")

    @property
    def on_gpu(self) -> bool:
        """Whether it trains on one."""
        return self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())

    @property
    def place(self) -> torch.device:
        """Where one process keeps its items and computes features: the device that it trains on. The CPU where there are
        several, which would all take the first GPU."""
        return torch.device("cuda" if self.on_gpu and self.devices == 1 and not launched() else "cpu")

    def check(self) -> None:
        """Refuse what Lightning would train in another precision than it was told.

        Raises:
            UserError: half precision of GPUs, without one.
        """
        if self.precision == "16-mixed" and not self.on_gpu:
            raise UserError("`precision=16-mixed` needs a GPU: `precision=bf16-mixed` is for both")


def train(
    module: lightning.LightningModule,
    loop: Loop,
    run: RunFolder,
    stage: str,
    *,
    epochs: int,
    monitor: str | None = None,
    mode: str = "min",
    patience: int = 0,
    every: int = 1,
    rate_option: str = "learning_rate",
    accumulate: int = 1,
) -> None:
    """Run Lightning for one stage, resuming from its last checkpoint.

    Args:
        module: what to train; afterwards it has the weights of the best epoch by ``monitor``, or of the last one without. Its
            ``means``, where it has any, are logged (:class:`~inference.runs.means.StepMeans`).
        loop: device, processes, precision, progress bars.
        run: where checkpoints (``checkpoints/<stage>``) and logs go.
        stage: its name.
        epochs: in all, the resumed ones included.
        monitor, mode: a logged scalar and whether it is best at its ``min`` or ``max``.
        patience: stop after this many epochs without a better ``monitor``; 0 never stops early.
        every: epochs between two checkpoints.
        rate_option: what to lower where the loss is not finite.
        accumulate: steps whose gradients are added up before the parameters move.

    Raises:
        UserError: the checkpoint is damaged or of another configuration, or the device has no such precision.
    """
    loop.check()
    if (captured := getattr(module, "captured", None)) is not None:
        captured.compiles = loop.compile
    folder = run.checkpoints / stage
    start = start_of(folder, module)
    best, begun = folder / BEST, Begun()
    callbacks: list[Callback] = [FiniteLoss(), SharedBatchNorm(), begun]
    if hasattr(module, "means"):
        callbacks.append(LogMeans())
    if monitor:
        callbacks.append(KeptCheckpoint(best, monitor=monitor, mode=mode, every=every))
    if patience and monitor:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=patience))
    callbacks.append(KeptCheckpoint(folder / LAST, every=every))  # after the best, which it knows of
    if loop.progress:
        callbacks.append(ProgressBar(refresh_rate=10, leave=False))
    quiet_lightning()
    spare_steps()
    dtype = next((p.dtype for p in module.parameters()), torch.get_default_dtype())
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator={"cuda": "gpu"}.get(loop.device, loop.device),
        **processes_for(loop),
        precision=loop.precision,  # type: ignore[arg-type]
        logger=TensorBoardLogger(run.path, name="logs", version=stage),
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        enable_progress_bar=loop.progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    try:
        with stop_if_not_finite(lambda: trainer.global_step, rate_option), name_lost_processes(run), interruptible(trainer):
            trainer.fit(module, ckpt_path=str(start) if start else None, weights_only=True)
        if monitor:
            module.load_state_dict(read_weights(best))
    except (KeyError, RuntimeError, ValueError) as error:
        if start is None or begun.yes or isinstance(error, UserError):
            raise
        raise UserError(unusable(start, error)) from error
    module.to(dtype)  # a precision such as 64-true is that of training


def processes_for(loop: Loop) -> dict[str, Any]:
    """Lightning's ``devices``, ``num_nodes`` and ``strategy``: one process, ours to start, or those of ``torchrun``.

    Raises:
        UserError: ``torchrun`` has started another number of processes than the loop asks for.
    """
    settings: dict[str, Any] = {"find_unused_parameters": True, "timeout": TIMEOUT}
    if launched():
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if loop.devices not in (1, here):
            raise UserError(f"torchrun has started {here} processes here, but `devices={loop.devices}`: leave `devices` out")
        if everywhere > 1:
            return {"devices": here, "num_nodes": everywhere // here, "strategy": SharedTraining(**settings)}
    elif loop.devices > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of the processes we start: a hint for each stage otherwise
        return {"devices": loop.devices, "strategy": SharedTraining(start_method="spawn", **settings)}
    return {"devices": 1, "strategy": "auto"}


@contextmanager
def name_lost_processes(run: RunFolder) -> Iterator[None]:
    """Say in one line that a process we started has ended before its time; errors for the user come through as they are.

    Raises:
        Unfinished, UserError, FloatingPointError: in place of the block's error.
    """
    try:
        yield
    except ProcessExitedException as error:
        how = error.signal_name or f"exit code {error.exit_code}"
        raise Unfinished(
            f"process {error.error_index} of the training has ended ({how}), so the others were stopped: "
            f"continue with `resume={run.path}`"
        ) from error
    except ProcessRaisedException as error:
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if kind == FloatingPointError.__name__ and message.isdecimal():
            raise FloatingPointError(int(message)) from error
        if kind.endswith(UserError.__name__):
            raise UserError(message) from error
        if "invalid values" in str(error):  # of a distribution
            raise FloatingPointError from error
        raise


def spare_steps() -> None:
    """Do once for a process what each step would do again: :func:`keep_freed_memory`, :func:`look_for_gpus_once`."""
    keep_freed_memory()
    look_for_gpus_once()


def look_for_gpus_once() -> None:
    """Where torch finds no GPU, let it remember that. Lightning has it look for NVIDIA's library anew whenever it is asked, as
    every step of an optimizer does, which costs a fraction of a millisecond each time."""
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def keep_freed_memory() -> None:
    """Let the C library keep arrays up to 32 MiB for the next step instead of returning them to the system (glibc alone).

    By default each step gets its larger arrays page by page anew, which costs a Bayesian network's step a quarter of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 25)


def quiet_lightning() -> None:
    """Drop Lightning's hints about hardware, loggers and data workers; our batches are tensors and need no workers."""
    for library in ("lightning.pytorch", "lightning.fabric", "torch.multiprocessing.spawn"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*LeafSpec.* is deprecated.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*recommended to use .*sync_dist=True.*",
        ".*find_unused_parameters=True was specified.*",
        r".*module\(s\) in eval mode at the start of training.*",
        ".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message=message)


class SharedTraining(DDPStrategy):
    """Lightning's strategy of several processes, whose own processes are as quiet as ours and keep memory as ours does."""

    def setup_environment(self) -> None:
        quiet_lightning()
        spare_steps()
        super().setup_environment()

    def on_train_start(self) -> None:
        """Let a process end at once where it is told to, by the command's handler or, in one that we started, without any:
        Lightning's would tell the others, of which one may be dead then, and a traceback would follow."""
        handlers = getattr(signal.getsignal(signal.SIGTERM), "signal_handlers", ())
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        elif terminate in handlers:
            signal.signal(signal.SIGTERM, terminate)
        super().on_train_start()

    def teardown(self) -> None:
        """Let a process that we started part from the others while Python is whole: the group's threads, which may hold the
        last reference to a tensor, abort the process where they let go of it once the interpreter has gone."""
        super().teardown()
        if multiprocessing.parent_process() is not None:
            leave()


class ProgressBar(TQDMProgressBar):
    """Lightning's, without the number of a version, which our logs do not have: it would show a piece of the stage's name."""

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(*args).items() if name != "v_num"}


class FiniteLoss(Callback):
    """Stops training where the loss of a step, or a weight at the end of an epoch, is not finite.

    The losses are looked at on their device; it is waited for every ``every`` steps and at the end of an epoch alone, before
    anything is validated or saved, so that no checkpoint ever holds weights that are not finite. Modules do nothing for it.

    Args:
        every: steps between two looks.

    Raises:
        FloatingPointError: with the number of the first bad step.
    """

    def __init__(self, every: int = 25) -> None:
        self.every = every
        self.bad: Tensor | None = None
        """The first step whose loss is not finite, on the device; ``NEVER`` where there is none."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            step = torch.where(loss.detach().isfinite().all(), NEVER, trainer.global_step - 1)
            self.bad = step if self.bad is None else torch.minimum(self.bad, step)
        if (index + 1) % self.every == 0:
            self.look()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Look before the epoch is over.

        Raises:
            FloatingPointError: a loss or a gradient was not finite; its number is the step.
        """
        self.look()
        if not bool(torch.stack([weights.isfinite().all() for weights in module.parameters()]).all()):
            raise FloatingPointError(trainer.global_step - 1)

    def look(self) -> None:
        """Raise where a step was bad; this waits for the device.

        Raises:
            FloatingPointError: its number is the step.
        """
        if self.bad is not None and group.is_initialized():  # all processes stop together
            group.all_reduce(self.bad, group.ReduceOp.MIN)
        if self.bad is not None and (step := int(self.bad)) != NEVER:
            raise FloatingPointError(step)
        self.bad = None


def check_finite(loss: Tensor, step: int) -> None:
    """Stop where the ``loss`` of a ``step`` is not finite; this waits for the device.

    Raises:
        FloatingPointError: its number is the step.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(step)


@contextmanager
def stop_if_not_finite(
    step: int | Callable[[], int], rate_option: str = "learning_rate", *, kept: bool = True
) -> Iterator[None]:
    """Turn a loss, or a distribution's parameter, that is not finite, or a matrix that then cannot be factorised, into one line
    for the user.

    Args:
        step: its number, where the error does not tell.
        rate_option: what to lower.
        kept: whether there are checkpoints, of which the last good one is kept.

    Raises:
        UserError: in place of the block's error.
    """
    try:
        yield
    except (FloatingPointError, ValueError, torch.linalg.LinAlgError) as error:
        if isinstance(error, UserError) or (isinstance(error, ValueError) and "invalid values" not in str(error)):
            raise
        number = error.args[0] if error.args and isinstance(error.args[0], int) else step() if callable(step) else step
        rest = " (the last good checkpoint is kept)" if kept else ""
        raise UserError(
            f"the loss became NaN or infinite at step {number}: training stopped; lower `{rate_option}`{rest}"
        ) from error
