"""Fit SIB, or any other method of :data:`~inference.meta.methods.METHODS`, to images: ``SIB.fit(data)``."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.items import ImageSplits
from inference.meta.learner import Learner
from inference.meta.options import SibOptions
from inference.meta.report import mark_selected, selected_variant, validate
from inference.meta.stages import check_training, fit
from inference.runs.commands import options_to_yaml, write_metrics
from inference.runs.folder import RunFolder
from models.networks.feature_network import FeatureNetwork


class SIB(Learner):
    """Synthetic information bottleneck.

    Fit one with :meth:`fit`, read one from a run folder with :meth:`load`, then call :meth:`posterior`.
    """

    @classmethod
    def fit(cls, data: ImageSplits, *, network: FeatureNetwork | None = None, **options: Any) -> SIB:
        """Pre-train a feature network and train a guide on ``data``.

        Args:
            data: images with disjoint training, validation and test classes.
            network: a trained feature network to use as it is, such as another fit's ``network``; it says the ``backbone``.
            options: fields of :class:`~inference.meta.options.SibOptions`. With several variants the one with the lowest NLL
                on validation tasks is returned. ``out`` keeps the run folder; otherwise nothing stays on disk.

        Raises:
            UserError: bad options, data that cannot serve them, or a network for other images.
        """
        if not isinstance(data, ImageSplits):
            found = type(data).__name__
            raise UserError(f"`data` must hold training, validation and test classes, not be {found}: `load_data` gives it")
        if network is not None:
            if network.image_shape != data.image_shape:
                taken, given = ("×".join(map(str, shape)) for shape in (network.image_shape, data.image_shape))
                raise UserError(f"network takes images of {taken} (channels×height×width), the data are {given}")
            options["backbone"] = network.name
        chosen = SibOptions(**{"beta": 0.1, "progress": False, **options})
        if not chosen.features:
            check_training(chosen, data, network=network)
        with tempfile.TemporaryDirectory() as scratch:
            run = RunFolder.create(chosen.out or Path(scratch) / "run", "sib", options_to_yaml(chosen))
            fitted = fit(chosen, data, run, network)
            records = mark_selected(validate(fitted, run))
            write_metrics(run, "sib", chosen, [asdict(record) for record in records], dataset=data.name)
            best = fitted[selected_variant(fitted, records)]
            parts = {"space": best.space, "objective": best.objective, "network": best.network, "dataset": best.dataset}
            return cls(best.variant, best.settings, best.spec, **parts)  # type: ignore[arg-type]
