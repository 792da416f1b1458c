"""Options of ``python -m inference.svi_sib``, typed and checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from data.episodes import TaskSpec
from data.errors import UserError
from inference.runs.options import check_device, check_minima, check_positive, parse_sweep, split_commas
from inference.runs.training import Loop
from models.tasks.predictors import PREDICTORS


@dataclass(frozen=True)
class SibOptions:
    """Everything that defines a run.

    Args:
        data: data set: glyphs, folder, omniglot, cifar-fs, mini-imagenet (images), sinusoids, linear (regression).
        root: folder or zip archive of the images.
        image_size: height and width in pixels; the data set's usual size when not given.
        backbone: feature network: conv4-64, conv4-128, wrn-28-10 or a torchvision.models name.
        epochs: pre-training epochs.
        weights: safetensors file of a feature network to start from; with --epochs 0 it is used as it is.
        features: feature file to start from instead of images.
        holdout: images of each base class kept out of pre-training (needed by the lwof protocol).
        way: classes a task.
        shot: support images a class.
        queries: query images a class.
        imbalance: train on tasks with query proportions ~ Dirichlet(imbalance) instead of balanced ones.
        methods: separated by commas: sib, and others to stand beside it.
        steps: K, synthetic gradient steps.
        beta: weight of the rate; several, separated by commas, are a sweep of which validation tasks choose one.
        predictor: distance, cosine or linear; several, separated by commas, are a sweep too.
        posterior: gaussian or delta.
        gradient: gradient network: equivariant (any way), mlp (the paper's), exact (a reference that sees query labels).
        initialisation: support (class means), learned (data-independent) or queries (for zero-shot).
        prior: gaussian, mixture (one component a base class) or hierarchical (a posterior on its parameters too).
        rank: discriminant directions of the base classes that features are moved into; 0 only normalises them. When not given:
            32 (or fewer, where there are few base classes) for distance and linear, 0 for cosine.
        inner_lr: step size of the synthetic gradient; in units of the prior where --whiten is on.
        learn_inner_lr: learn one inner step size a step.
        whiten: descend in units of the prior.
        inner_samples: posterior draws a step in the guide; 0 takes the expectation at the mean.
        tasks: meta-training tasks.
        batch: tasks a training step.
        learning_rate: outer step size.
        patience: stop after this many validations without a better accuracy; 0 never stops early.
        validations: how often validation tasks are scored during training.
        protocols: test protocols, separated by commas: standard, imbalanced, lwof.
        test_tasks: tasks a test.
        seed: of everything random.
        device: auto, cpu or cuda.
        devices: processes to train with.
        precision: Lightning's, such as 32-true or bf16-mixed; used in pre-training.
        out: run folder; runs/svi_sib-<time> when not given.
        progress: progress bars.
    """

    data: str = "glyphs"
    root: str | None = None
    image_size: int | None = None
    backbone: str = "conv4-64"
    epochs: int = 8
    weights: str | None = None
    features: str | None = None
    holdout: int = 0
    way: int = 5
    shot: int = 1
    queries: int = 15
    imbalance: float | None = None
    methods: str = "sib"
    steps: int = 3
    beta: str | float | list[float] = "0.1,1"
    predictor: str = "distance"
    posterior: Literal["gaussian", "delta"] = "gaussian"
    gradient: Literal["equivariant", "mlp", "exact"] = "equivariant"
    initialisation: Literal["support", "learned", "queries"] = "support"
    prior: Literal["gaussian", "mixture", "hierarchical"] = "gaussian"
    rank: int | None = None
    inner_lr: float = 0.2
    learn_inner_lr: bool = True
    whiten: bool = True
    inner_samples: int = 0
    tasks: int = 16000
    batch: int = 16
    learning_rate: float = 5e-3
    patience: int = 0
    validations: int = 10
    protocols: str = "standard,imbalanced"
    test_tasks: int = 1000
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    precision: str = "32-true"
    out: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        self.spec()
        minima = {"epochs": 0, "steps": 0, "rank": 0, "inner_samples": 0, "tasks": 1, "batch": 1, "patience": 0}
        minima |= {"validations": 1, "test_tasks": 2, "holdout": 0, "devices": 1, "seed": 0}
        check_minima(self, minima)
        check_positive(self, "inner_lr", "learning_rate")
        if unknown := set(split_commas(self.predictor)) - set(PREDICTORS):
            raise UserError(f"unknown predictor {', '.join(sorted(unknown))}: choose {', '.join(PREDICTORS)}")
        if unknown := set(split_commas(self.protocols)) - {"standard", "imbalanced", "lwof"}:
            raise UserError(f"unknown protocol {', '.join(sorted(unknown))}: choose standard, imbalanced, lwof")
        if "lwof" in self.protocols and not self.holdout and not self.features:
            raise UserError("the lwof protocol tests on held-out images of base classes: add --holdout 50, for example")
        check_device(self.device)
        self.betas  # noqa: B018 (checked here)

    @property
    def loop(self) -> Loop:
        """How its stages train."""
        return Loop(self.device, self.devices, self.precision, self.progress)

    @property
    def predictors(self) -> list[str]:
        """Predictors to try."""
        return split_commas(self.predictor)

    @property
    def protocol_names(self) -> list[str]:
        """Test protocols."""
        return split_commas(self.protocols)

    @property
    def method_names(self) -> list[str]:
        """Methods to fit."""
        return split_commas(self.methods)

    @property
    def betas(self) -> tuple[float, ...]:
        """The sweep's β, ascending."""
        return parse_sweep("beta", self.beta)

    def spec(self, **changes: Any) -> TaskSpec:
        """The training tasks' shape, or one that differs in ``changes``."""
        return replace(TaskSpec(self.way, self.shot, self.queries, self.imbalance), **changes)
