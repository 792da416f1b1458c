"""A fitted method: from images of a new task to the posterior over its classifier."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from data.ambiguous import sampler_of
from data.arguments import as_path, as_truth, as_whole, check_kind
from data.episodes import Episode, TaskSpec
from data.errors import UserError
from data.items import LabelledItems, as_images
from data.seeding import mix_seed, seeded
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.evaluate import evaluate_readings, readings
from inference.evaluation.metrics import Scores
from inference.evaluation.posterior import TaskPosterior, infer
from inference.evaluation.predictive import Predictive, place_of
from inference.meta.checkpoints import RENAMED, rank_of, read_settings, read_spec, read_variant, variant_file
from inference.meta.mapping import map_items
from inference.meta.methods import METHODS
from inference.meta.methods.sib import blank_means
from inference.meta.prediction import TaskPredictions, predict
from inference.meta.settings import GuideSettings
from inference.meta.task_checks import check_shapes, check_tensors, checked_way
from inference.meta.variants import Variant
from inference.runs.files import writing
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state, load_tensors, save_tensors
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace
from models.networks.layers import embed
from models.tasks.network_predictor import NetworkPredictor

TEST_SEED = 1_000_003  # test tasks are the same for every training seed


class FittedLearner:
    """A method fitted in one variant: feature network, feature space, model and guide.

    Args:
        variant: method, predictor, posterior, β and K.
        settings: what model and guide are built from.
        spec: the tasks it was trained on.
        space: the map of features.
        objective: model, guide and objective.
        network: image features; ``None`` when fitted from a feature file, then tasks are given as features.
        dataset: name of what it was trained on.

    Attributes:
        own_network: whether no other learner of the run has this network: it then stands in the learner's own file.
    """

    own_network: bool = False

    def __init__(
        self,
        variant: Variant,
        settings: GuideSettings,
        spec: TaskSpec,
        *,
        space: FeatureSpace,
        objective: RateDistortionModule,
        network: FeatureNetwork | None,
        dataset: str,
    ) -> None:
        self.variant, self.settings, self.spec, self.dataset = variant, settings, spec, dataset
        self.space, self.objective, self.network = space, objective, network

    @property
    def model(self) -> nn.Module:
        """The generative program."""
        return self.objective.model

    @property
    def guide(self) -> nn.Module:
        """The posterior's program."""
        return self.objective.guide

    @classmethod
    def build(
        cls,
        variant: Variant,
        settings: GuideSettings,
        spec: TaskSpec,
        space: FeatureSpace,
        means: Tensor,
        network: FeatureNetwork | None,
        dataset: str,
    ) -> Self:
        """An untrained learner.

        Args:
            means: ``[base classes, num_outputs]``, mean features of the base classes in ``space``.
        """
        objective = build_objective(settings, variant, means)
        return cls(variant, settings, spec, space=space, objective=objective, network=network, dataset=dataset)

    @classmethod
    def load(cls, run: str | Path | RunFolder, variant: str | None = None, *, backbone: nn.Module | None = None) -> Self:
        """Read a fitted variant from a run folder, or a file that :meth:`save` wrote.

        Args:
            run: the folder or the file.
            variant: its name in the folder, such as ``distance-beta0.1-k3``; default: the one that validation tasks chose.
            backbone: a module like the one it was fitted with, where that was the user's own; its weights are read.

        Raises:
            UserError: the folder, the file or the variant is missing or damaged.
        """
        check_kind("variant", variant, str | None, "a name")
        check_kind("backbone", backbone, nn.Module | None, "a module")
        folder = run if isinstance(run, RunFolder) else RunFolder(as_path(run, "run"))
        whole = os.path.isfile(folder.path)
        path = folder.path if whole else variant_file(folder if folder is run else folder.path, variant)
        tensors, metadata = load_tensors(path)
        if "space.directions" not in tensors or "base_classes" not in metadata:
            raise UserError(f"{path} holds no learner of SIB")
        try:
            return cls._read(path, tensors, metadata, whole=whole or "network" in metadata, backbone=backbone)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: it lacks {error}") from error

    @classmethod
    def _read(
        cls, path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], *, whole: bool, backbone: nn.Module | None
    ) -> Self:
        """The learner of a file; ``whole`` where its network stands in it, not beside it."""
        written = metadata.get("options", metadata)  # before 0.2 all options of the run were kept
        settings, spec = read_settings(metadata.get("settings", written)), read_spec(metadata.get("spec", written))
        beside = path.parent / RunFolder(path.parent).network.name
        network = None
        if whole and "network" in metadata:
            network = FeatureNetwork.from_description(metadata["network"], backbone=backbone)
        elif not whole and beside.exists():
            network = FeatureNetwork.from_description(load_tensors(beside)[1], backbone=backbone)
            load_state(network, beside)
        directions = tensors["space.directions"]
        variant = read_variant(metadata)
        space = settings.space(directions.shape[0], metadata.get("rank", rank_of(directions)), variant.predictor)
        means = blank_means(metadata["base_classes"], directions.shape[1])
        dataset = metadata["dataset"] if "dataset" in metadata else written["data"]
        learner = cls.build(variant, settings, spec, space, means, network, dataset)
        learner.own_network = whole and network is not None
        load_state(learner.state(network=whole), path, renamed=RENAMED)
        return learner

    def save(self, path: str | Path, *, network: bool = True) -> Path:
        """Write everything learned to one safetensors file, which :meth:`load` reads.

        Args:
            path: the file.
            network: whether the feature network stands in it too; a run folder has it in a file of its own.

        Raises:
            UserError: a place that cannot be written to.
        """
        path, network = as_path(path), as_truth(network, "network")
        centres = getattr(getattr(self.model, "prior", None), "loc", None)
        metadata = {
            "variant": asdict(self.variant),
            "settings": asdict(self.settings),
            "spec": asdict(self.spec),
            "base_classes": len(centres) if centres is not None and centres.dim() > 1 else 2,
            "rank": self.space.rank,
            "dataset": self.dataset,
        }
        if network and self.network is not None:
            metadata["network"] = self.network.description()
        with writing(path):
            return save_tensors(path, self.state(network=network).state_dict(), metadata)

    def state(self, *, network: bool = False) -> nn.ModuleDict:
        """Everything learned, with or without the feature network, as one module."""
        parts: dict[str, nn.Module] = {"objective": self.objective, "space": self.space}
        if network and self.network is not None:
            parts["network"] = self.network
        return nn.ModuleDict(parts)

    def to(self, *place: Any, **named: Any) -> Self:
        """Move everything to a device, a floating-point type or both, as ``nn.Module.to`` does; returns itself."""
        self.state(network=True).to(*place, **named)
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Mapped features ``[..., D]`` of images ``[..., channels, height, width]`` (or of backbone features).

        Images are uint8, or floats between 0 and 1.

        Raises:
            UserError: images of another size, with other channels, or out of range; or features that are not finite or of the
                wrong number.
        """
        if self.network is None:
            expected = self.space.directions.shape[0]
            if images.shape[-1] != expected or not images.is_floating_point():
                raise UserError(f"features of {expected} numbers are expected, not {tuple(images.shape)} ({images.dtype})")
            if not bool(images.isfinite().all()):
                raise UserError("the features hold numbers that are not finite")
            return self.space(images.to(self.space.directions))
        checked = as_images(images, self.network.image_shape)
        flat = embed(self.network, checked.flatten(0, -4))
        return self.space(flat.unflatten(0, checked.shape[:-3]).to(self.space.directions))

    def embedded(self, part: LabelledItems) -> LabelledItems:
        """Backbone features of labelled images, as :meth:`evaluate` takes them."""
        if self.network is None:
            return part
        return LabelledItems(embed(self.network, part.items), part.labels, part.class_names)

    def posterior(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        *,
        steps: int | None = None,
        query_y: Tensor | None = None,
    ) -> TaskPosterior:
        """The posterior over the classifiers of new tasks, after ``steps`` (default: the trained K) steps.

        Args:
            support_x: ``[tasks, support, channels, height, width]`` uint8, or without the first dimension for one task.
            support_y: ``[tasks, support]`` int64, every number of ``0 .. way - 1`` at least once.
            query_x: ``[tasks, query, channels, height, width]``, unlabelled; they shape the posterior.
            query_y: ``[tasks, query]``, for the exact-gradient reference alone.

        Raises:
            UserError: images or labels that do not fit, or another way than the guide was built for.
        """
        return self.trajectory(support_x, support_y, query_x, steps=steps, query_y=query_y)[-1]

    def predictive(self, tasks: Episode, *, steps: int | None = None, num_samples: int = 32, seed: int = 0) -> Predictive:
        """What it says of the queries of ``tasks``: distributions of their labels under posterior draws, and the rate; see
        :class:`~inference.evaluation.predictive.Predictive`.

        Args:
            tasks: images, or features of a learner without a network; query labels are read by the exact-gradient reference
                alone.
            steps: as for :meth:`posterior`.
            num_samples: S; one where nothing is random.

        Raises:
            UserError: as :meth:`posterior` does.
        """
        posterior = self.posterior(*tasks[:3], steps=steps, query_y=tasks.query_y)
        return posterior.predictive(num_samples=as_whole(num_samples, "num_samples", 1), seed=as_whole(seed, "seed"))

    def trajectory(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        *,
        steps: int | None = None,
        query_y: Tensor | None = None,
    ) -> list[TaskPosterior]:
        """The posteriors before the first and after every step, as :meth:`posterior` takes its arguments.

        Raises:
            UserError: what is no tensor, a negative number of steps, or labels missing that the guide reads.
        """
        steps = None if steps is None else as_whole(steps, "steps")
        check_tensors(support_x=support_x, support_y=support_y, query_x=query_x)
        if query_y is not None:
            check_tensors(query_y=query_y)
        if support_y.dim() == 1:
            support_x, support_y, query_x = support_x[None], support_y[None], query_x[None]
            query_y = None if query_y is None else query_y.reshape(1, -1)
        check_shapes(support_x, support_y, query_x, query_y, item_dim=1 if self.network is None else 3)
        support_y, way = support_y.long(), self.fixed_way
        if support_y.numel() or way is None:
            way = checked_way(support_y)
            self.check_way(way, query_x.shape[1])
        device, dtype = place_of(self.guide, self.model, self.space)
        queries = self.features(query_x)
        supported = self.features(support_x) if support_y.numel() else queries[:, :0]
        episode = Episode(supported, support_y, queries, query_y, way).to(device, dtype=dtype)
        guides = readings(self.guide, steps).values()
        if query_y is None and any(getattr(guide, "saw_labels", False) for guide in guides):
            raise UserError("the exact gradient is a reference that reads the query labels: give query_y")
        return [infer(self.model, guide, episode, **self.attributes()) for guide in guides]

    def predict(self, support_x: Any, support_y: Any, query_x: Any, **options: Any) -> TaskPredictions:
        """The classes of one task's queries, however many they are; see :func:`~inference.meta.prediction.predict`.

        Args:
            support_x, support_y: labelled items, any number of each class: tensors, arrays, PIL images or files, and numbers or
                names of classes.
            query_x: items to predict.
            options: steps, num_samples, batch, seed.

        Raises:
            UserError: items or labels that do not fit, or another way than the guide was built for.
        """
        return predict(self, support_x, support_y, query_x, **options)

    @property
    def trains_network(self) -> bool:
        """Whether it has a network of its own with something to train."""
        return self.own_network and self.network is not None and any(p.requires_grad for p in self.network.parameters())

    @property
    def fixed_way(self) -> int | None:
        """The only number of classes the guide can take; ``None`` for any."""
        predictor = getattr(self.guide, "predictor", None)
        if isinstance(predictor, NetworkPredictor):
            return predictor.num_outputs
        parts = *(getattr(self.guide, name, None) for name in ("start", "gradient")), getattr(self.model, "scorer", None)
        return next((way for way in (getattr(part, "way", None) for part in parts) if way), None)

    def check_way(self, way: int, queries: int = 2) -> None:
        """Refuse tasks that the guide was not built for.

        Raises:
            UserError: another way, or too few queries.
        """
        if self.fixed_way not in (None, way):
            raise UserError(f"this guide was built for {self.fixed_way} classes per task, not {way}: train one for {way}")
        if queries < 2 and self.settings.gradient == "mlp" and self.variant.steps:
            raise UserError("the mlp gradient network normalises over a task's queries: give at least two of them")

    def evaluate(
        self, part: LabelledItems, spec: TaskSpec, *, split: str, tasks: int, steps: int | None = None, earlier: bool = True
    ) -> dict[int, Scores]:
        """Scores after each number of steps, 0 … K, on the same tasks.

        Args:
            part: backbone features ``[n, D]`` (they are mapped here).
            split: named in error messages.
            earlier: whether to score it before its last step too; else after K alone.
        """
        sampler = sampler_of(map_items(self.space, part), spec, split=f"{split} split")
        seed = mix_seed(TEST_SEED)
        guides = list(readings(self.guide, steps).items())
        scored = dict(guides if earlier else guides[-1:])
        return evaluate_readings(self.model, scored, sampler, tasks=tasks, seed=seed)

    def evaluate_tasks(self, tasks: Episode, *, steps: int | None = None) -> dict[int, Scores]:
        """What :meth:`evaluate` gives, on tasks at hand, such as :func:`~data.sources.one_shot_runs.one_shot_runs`.

        Args:
            tasks: images or, of a learner without a network, their features, with the labels of queries.

        Raises:
            UserError: images of another kind, or another way than the guide was built for.
        """
        self.check_way(checked_way(tasks.support_y), tasks.query_x.shape[1])
        mapped = tasks._replace(support_x=self.features(tasks.support_x).cpu(), query_x=self.features(tasks.query_x).cpu())
        guides = readings(self.guide, steps)
        return evaluate_readings(self.model, guides, mapped, tasks=len(mapped.query_x), seed=mix_seed(TEST_SEED))

    def attributes(self) -> Mapping[str, Any]:
        """What made this posterior, for ArviZ."""
        known = {"method": self.variant.method, "variant": self.variant.name, "beta": self.variant.beta}
        known |= {"dataset": self.dataset, "seed": self.settings.seed}
        return {name: value for name, value in known.items() if value is not None}


def build_objective(chosen: GuideSettings, variant: Variant, means: Tensor) -> RateDistortionModule:
    """Model, guide and objective of one variant; ``means`` are those of the base classes, ``[classes, D]``."""
    with seeded(chosen.seed):
        model, guide = METHODS[variant.method].build(chosen, variant, means)
    particles = getattr(guide, "particles", 1)  # those of the posterior are Pyro's
    plates: dict[str, Any] = {"num_particles": particles, "vectorize_particles": True, "max_plate_nesting": 2}
    return RateDistortionELBO(beta=variant.beta or 0.0, **(plates if particles > 1 else {}))(model, guide)
