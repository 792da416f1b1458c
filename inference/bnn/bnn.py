"""Fit a Bayesian neural network: ``BNN.fit(network, x, y)``."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from data.errors import UserError
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.checks import (
    check_weights,
    choose_algorithm,
    choose_beta,
    choose_likelihood,
    choose_prior,
    likelihood_name,
    read_data,
)
from inference.bnn.fitting import Fit, Recipe, fit_posterior, prepare
from inference.runs.checks import check_device
from inference.runs.folder import RunFolder
from inference.runs.options import options_to_yaml
from inference.runs.training import Loop
from models.bayesian.weight_priors import WeightPrior
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import Likelihood


@dataclass(frozen=True)
class BNN(Fit):
    """A fitted Bayesian neural network: what :class:`~inference.bnn.fitting.Fit` says of it."""

    @classmethod
    def fit(
        cls,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        algorithm: Algorithm | str = Algorithm.VANILLA,
        beta: float | None = None,
        prior: WeightPrior | str | None = None,
        prior_scale: float | None = None,
        prior_scales: PriorScales | str | None = None,
        likelihood: Likelihood | str | None = None,
        noise: float | None = None,
        device: str = "auto",
        devices: int = 1,
        progress: bool = False,
        out: str | Path | None = None,
        **settings: Any,
    ) -> BNN:
        """Fit the weights' posterior to ``x`` and ``y``.

        Network, prior and likelihood are copied, not changed.

        Args:
            network: any module from ``[n, *item]`` to ``[n, outputs]``.
            x: ``[n, *item]``.
            y: ``[n]`` or ``[n, 1]``: classes or counts as integers, 0 and 1 of any type, or floats.
            algorithm: see :class:`~inference.bnn.algorithms.Algorithm`.
            beta: weight of the rate; 1 when not given. Vanilla has 1 and deterministic 0.
            prior: by name or as a module, of the algorithms that approximate the posterior under it (vanilla, last-layer,
                low-rank, laplace, swag, nuts); a module is fixed-prior's too. The others have their own.
            prior_scales: of a prior by name, and of the Gaussian that a mixture starts from: learned per ``layer`` or ``input``
                unit (empirical Bayes), ``fan-in`` or ``fixed``, see :class:`~models.bayesian.weight_scales.PriorScales`.
                When not given ``layer``, but ``fixed`` with a ``prior_scale``, and for laplace, swag and nuts, which learn
                none.
            prior_scale: of the same priors: the scale, in units of 1/√fan-in unless ``fixed``; 1 when not given.
            likelihood: by name or as a module; categorical for integer ``y``, Gaussian for floats, when not given.
            noise: known standard deviation of Gaussian targets; learned when not given.
            device: auto, cpu or cuda.
            devices: processes to train with.
            progress: whether to show progress bars.
            out: run folder to keep; none is kept when not given.
            settings: fields of :class:`~inference.bnn.algorithms.FitSettings`.

        Raises:
            UserError: bad data or arguments, or a loss that is not finite.
        """
        if unknown := settings.keys() - (known := {field.name for field in fields(FitSettings)}):
            raise UserError(f"unknown argument {', '.join(sorted(unknown))}: choose {', '.join(sorted(known))}")
        chosen, way = FitSettings(**settings), choose_algorithm(algorithm)
        weight, (m, scales) = choose_beta(way, beta), choose_prior(way, prior, prior_scale, prior_scales)
        observation = choose_likelihood(likelihood, y, noise)
        check_weights(way, chosen.weights)
        data = read_data(x, y, observation)
        check_device(device, devices)
        if out is not None and RunFolder(out).config.exists():
            raise UserError(f"{out} already holds a run: choose another `out`")
        recipe = Recipe(way, weight, observation, m, scales, chosen)
        prepare(network, data, recipe)
        with tempfile.TemporaryDirectory() as scratch:
            described = {"algorithm": way.value, "beta": weight, "likelihood": likelihood_name(observation)}
            config = yaml.safe_dump(described, sort_keys=False) + options_to_yaml(chosen)
            run = RunFolder.create(out or Path(scratch) / "run", "bnn", config)
            fitted = fit_posterior(network, data, recipe, loop=Loop(device, devices, progress=progress), run=run)
            return cls(**{field.name: getattr(fitted, field.name) for field in fields(Fit)})
