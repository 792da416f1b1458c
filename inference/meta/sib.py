"""The fitted SIB: from images of a new task to the posterior over its classifier."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.episodes import Episode
from data.errors import UserError
from data.items import ImageSplits, LabelledItems
from guides.tasks.unrolled import SyntheticGradientGuide
from inference.elbo import RateDistortionModule
from inference.evaluation.posterior import TaskPosterior, trajectory
from inference.meta.build import blank_means, build_objective
from inference.meta.options import SibOptions, Variant
from inference.runs.commands import options_to_yaml
from inference.runs.folder import RunFolder, read_json
from inference.runs.tensors import load_state, load_tensors, save_tensors
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace
from models.networks.layers import embed
from models.tasks.model import EmpiricalBayesModel


class SIB:
    """Synthetic information bottleneck: feature network, feature space, model and amortized guide of one variant.

    Fit one with :meth:`fit`, read one from a run folder with :meth:`load`, then call :meth:`posterior`.

    Args:
        options: of the run.
        variant: predictor, β and K.
        space: the map of features.
        objective: model, guide and objective.
        network: image features; ``None`` when fitted from a feature file, then tasks are given as features.
    """

    def __init__(
        self,
        options: SibOptions,
        variant: Variant,
        *,
        space: FeatureSpace,
        objective: RateDistortionModule,
        network: FeatureNetwork | None,
    ) -> None:
        self.options, self.variant = options, variant
        self.space, self.objective, self.network = space, objective, network
        self.model: EmpiricalBayesModel = objective.model
        self.guide: SyntheticGradientGuide = objective.guide

    @classmethod
    def fit(cls, data: ImageSplits, *, network: FeatureNetwork | None = None, **options: Any) -> SIB:
        """Pre-train a feature network and train a guide on ``data``.

        Args:
            data: images with disjoint training, validation and test classes.
            network: a trained feature network to use as it is, such as another fit's ``network``.
            options: fields of :class:`~inference.meta.options.SibOptions`. With several β the one with the best validation
                accuracy is returned. ``out`` keeps the run folder; otherwise nothing stays on disk.
        """
        from inference.meta.fit import fit  # these import SIB
        from inference.meta.report import choose_variant

        chosen = SibOptions(**{"beta": 0.1, "progress": False, **options})
        with tempfile.TemporaryDirectory() as scratch:
            run = RunFolder.create(chosen.out or Path(scratch) / "run", "sib", options_to_yaml(chosen))
            if network is not None:
                save_tensors(run.network, network.state_dict(), network.description())
            fitted = fit(chosen, data, run)
            return fitted[choose_variant(fitted, run)]

    @classmethod
    def load(cls, run: str | Path | RunFolder, variant: str | None = None) -> SIB:
        """Read a fitted variant from a run folder.

        Args:
            run: the folder.
            variant: its name, such as ``distance-beta0.1-k3``; default: the one that validation tasks chose.

        Raises:
            UserError: the folder or the variant is missing or damaged.
        """
        folder = run if isinstance(run, RunFolder) else RunFolder.existing(run)
        name = variant or selected_name(folder)
        path = folder.checkpoints / f"{name}.safetensors"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in folder.checkpoints.glob("*-k*.safetensors")))
            raise UserError(f"{folder.path} has no variant {name!r}: it has {known or 'none'}")
        tensors, metadata = load_tensors(path)
        options, chosen = SibOptions(**{**metadata["options"], "device": "auto"}), Variant(**metadata["variant"])
        directions = tensors["space.directions"]
        rank = 0 if directions.shape[0] == directions.shape[1] else directions.shape[1]
        means = blank_means(metadata["base_classes"], directions.shape[1])
        network = None
        if folder.network.exists():
            network = FeatureNetwork.from_description(load_tensors(folder.network)[1])
            load_state(network, folder.network)
        space = FeatureSpace(directions.shape[0], rank)
        sib = cls(options, chosen, space=space, objective=build_objective(options, chosen, means), network=network)
        load_state(sib.state(), path)
        return sib

    def state(self) -> nn.ModuleDict:
        """Everything learned but the feature network, as one module."""
        return nn.ModuleDict({"objective": self.objective, "space": self.space})

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Mapped features ``[..., D]`` of uint8 images ``[..., channels, height, width]`` (or of backbone features)."""
        if self.network is None:
            return self.space(images)
        flat = embed(self.network, images.flatten(0, -4))
        return self.space(flat.unflatten(0, images.shape[:-3]))

    def embedded(self, part: LabelledItems) -> LabelledItems:
        """Backbone features of labelled images, as :func:`~inference.meta.report.evaluate_variant` takes them."""
        if self.network is None:
            return part
        return LabelledItems(embed(self.network, part.items), part.labels, part.class_names)

    def embed_episode(self, episode: Episode) -> Episode:
        """The same tasks with features in place of images."""
        return episode._replace(support_x=self.features(episode.support_x), query_x=self.features(episode.query_x))

    def posterior(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, *, steps: int | None = None) -> TaskPosterior:
        """The posterior over the classifiers of new tasks, after ``steps`` (default: the trained K) steps.

        Args:
            support_x: ``[tasks, support, channels, height, width]`` uint8, or without the first dimension for one task.
            support_y: ``[tasks, support]`` int64 in ``0 .. way - 1``.
            query_x: ``[tasks, query, channels, height, width]``, unlabelled; they shape the posterior.
        """
        return self.trajectory(support_x, support_y, query_x, steps=steps)[-1]

    def trajectory(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        *,
        steps: int | None = None,
        query_y: Tensor | None = None,
    ) -> list[TaskPosterior]:
        """The posterior before the first and after every step; ``query_y`` is for the exact-gradient reference alone."""
        if support_y.dim() == 1:
            support_x, support_y, query_x = support_x[None], support_y[None], query_x[None]
        episode = self.embed_episode(Episode(support_x, support_y, query_x, query_y)).to(self.guide.log_inner_lr.device)
        return trajectory(self.model, self.guide, episode, steps=steps)

    def metadata(self) -> dict[str, Any]:
        """What is stored beside the parameters."""
        options = asdict(replace(self.options, out=None))
        components = len(self.model.prior.loc) if self.model.prior.loc.dim() > 1 else 2
        return {"variant": asdict(self.variant), "options": options, "base_classes": components}


def selected_name(run: RunFolder) -> str:
    """The name of the variant that validation tasks chose, from ``metrics.json``."""
    for record in read_json(run.metrics).get("results", []):
        if record.get("selected") and record["trained_steps"] > 0:
            return Variant(record["predictor"], record["beta"] or 0.0, record["trained_steps"]).name
    raise UserError(f"{run.metrics} names no selected variant: did the run finish? Continue it with --resume {run.path}")
