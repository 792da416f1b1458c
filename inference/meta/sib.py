"""Fit SIB, or any other method that takes any number of classes beside it, to images: ``SIB.fit(data)``."""

from __future__ import annotations

from typing import Any

from torch import nn

from inference.meta.fitting import Learner, fit_own
from inference.meta.options import SibOptions
from models.networks.feature_network import FeatureNetwork


class SIB(Learner):
    """Synthetic information bottleneck.

    Fit one with :meth:`fit`, or read one with :meth:`load`, from a run folder or a file of :meth:`save`. :meth:`predict`
    classifies images of any kind; :meth:`posterior` gives the posterior of tasks, to draw from and to explore.
    """

    @classmethod
    def fit(
        cls,
        data: Any,
        labels: Any = None,
        *,
        network: FeatureNetwork | None = None,
        backbone: str | nn.Module | None = None,
        mirror: bool = True,
        **options: Any,
    ) -> SIB:
        """Pre-train a feature network and train a guide on ``data``.

        Args:
            data, labels, network, backbone, mirror: as for :func:`~inference.meta.fitting.fit_own`.
            options: fields of :class:`~inference.meta.options.SibOptions`; ``predictor`` may be a class of your own, derived
                from :class:`~models.tasks.predictors.Predictor`. With several variants the one with the lowest NLL on
                validation tasks is returned. ``out`` keeps the run folder; otherwise nothing stays on disk.

        Raises:
            UserError: bad options, data that cannot serve them, or a network for other images.
        """
        return fit_own(cls, SibOptions, options, data, labels, network=network, backbone=backbone, mirror=mirror, command="sib")
