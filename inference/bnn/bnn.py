"""A Bayesian neural network in Python: ``BNN.fit(network, x, y)``, ``save``, ``load``, ``to``, ``predict``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.distributions import Distribution

from data.arguments import as_path, as_truth, as_whole, check_kind
from data.errors import UserError
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.checks import (
    as_module,
    check_sent,
    check_weights,
    choose_algorithm,
    choose_beta,
    choose_likelihood,
    choose_prior,
    likelihood_name,
    read_data,
    with_classes,
)
from inference.bnn.fitting import Fit, Recipe, fit_posterior, prepare
from inference.bnn.loading import load_run
from inference.bnn.posterior import moved
from inference.bnn.predict import predict_items
from inference.bnn.saving import read_fit, write_fit
from inference.evaluation.predictions import ClassPredictions
from inference.evaluation.value_predictions import ValuePredictions
from inference.runs.checks import check_compiler, check_device, check_place, read_items
from inference.runs.folder import RunFolder
from inference.runs.interruptions import working_in
from inference.runs.options import options_to_yaml
from inference.runs.training import Loop
from models.bayesian.weight_priors import WeightPrior
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import Likelihood

SAVED = "bnn.safetensors"
"""Of a run folder of :meth:`BNN.fit`."""


@dataclass(frozen=True)
class BNN(Fit):
    """A fitted Bayesian neural network.

    :meth:`fit` it, or :meth:`load` one that :meth:`save` or a run of ``svi_bnn`` left; then :meth:`predict`. It is frozen:
    :meth:`to` gives another. Its attributes are those of :class:`~inference.bnn.fitting.Fit`; ``posterior`` is what scores,
    draws and ArviZ's ``InferenceData`` are asked of.
    """

    @classmethod
    def fit(
        cls,
        network: nn.Module,
        x: Any,
        y: Any = None,
        *,
        algorithm: Algorithm | str = Algorithm.VANILLA,
        beta: float | None = None,
        prior: WeightPrior | Distribution | str | None = None,
        prior_scale: float | None = None,
        prior_scales: PriorScales | str | None = None,
        likelihood: Likelihood | Callable[[Tensor], Any] | str | None = None,
        noise: float | Sequence[float] | Tensor | None = None,
        device: str = "auto",
        devices: int = 1,
        compile: bool = False,
        progress: bool = False,
        out: str | Path | None = None,
        **settings: Any,
    ) -> BNN:
        """Fit the weights' posterior to ``x`` and ``y``.

        Network, prior and likelihood are copied, not changed.

        Args:
            network: any module from ``[n, *item]`` to ``[n, outputs]``.
            x: a tensor or array ``[n, *item]``; a list of arrays, PIL images or image files of one shape; or a ``Dataset`` or
                ``DataLoader`` of (item, target) pairs, without ``y``, which is read once and may be larger than memory.
            y: ``[n]`` or ``[n, 1]``: classes or counts as integers, classes by name, 0 and 1 of any type, or floats; floats
                ``[n, d]`` are targets of a network with d outputs. A tensor, an array or a list.
            algorithm: see :class:`~inference.bnn.algorithms.Algorithm`.
            beta: weight of the rate; 1 when not given. Vanilla has 1 and deterministic 0.
            prior: by name; any distribution of Pyro or PyTorch over one weight, such as ``dist.StudentT(3.0, 0.0, 0.1)``, or
                over all, such as ``dist.Normal(0.0, scales).to_event(1)`` with ``scales`` ``[P]``; or a
                :class:`~models.bayesian.weight_priors.WeightPrior`. Of the algorithms that approximate the posterior under it
                (vanilla, last-layer, low-rank, laplace, swag, nuts); one that is not by name is fixed-prior's too. The others
                have their own.
            prior_scales: of a prior by name, and of the Gaussian that a mixture starts from: learned per ``layer`` or ``input``
                unit (empirical Bayes), ``fan-in`` or ``fixed``, see :class:`~models.bayesian.weight_scales.PriorScales`.
                When not given ``layer``, but ``fixed`` with a ``prior_scale``, and for laplace, swag and nuts, which learn
                none.
            prior_scale: of the same priors: the scale, in units of 1/√fan-in unless ``fixed``; 1 when not given.
            likelihood: by name; a function from outputs ``[..., n, outputs]`` to a Pyro distribution of batch_shape
                ``[..., n]``, such as ``lambda f: dist.StudentT(4.0, f[..., 0], f[..., 1].exp())``; or a
                :class:`~models.likelihoods.Likelihood`. Categorical for integer ``y``, Gaussian for floats, when not given.
            noise: known standard deviation of Gaussian targets, one, or ``[d]``, one for each output; learned, one for each
                output, when not given.
            device: auto, cpu or cuda.
            devices: processes to train with.
            compile: whether training steps are compiled on a CPU: up to a fifth less time a step, after some 10 seconds.
            progress: whether to show progress bars.
            out: run folder to keep, for :meth:`load` too; none is kept when not given.
            settings: fields of :class:`~inference.bnn.algorithms.FitSettings`.

        Raises:
            UserError: bad data or arguments, or a loss that is not finite.
        """
        check_kind("network", network, nn.Module, "a module")
        if unknown := settings.keys() - (known := {field.name for field in fields(FitSettings)}):
            raise UserError(f"unknown argument {', '.join(sorted(unknown))}: choose {', '.join(sorted(known))}")
        chosen, way = FitSettings(**settings), choose_algorithm(algorithm)
        weight, (m, scales) = choose_beta(way, beta), choose_prior(way, prior, prior_scale, prior_scales)
        check_weights(way, chosen.weights)
        data = read_data(x, y)
        observation = choose_likelihood(likelihood, data.labels, noise)
        data = with_classes(data, observation)
        check_device(device, devices)
        loop = Loop(device, devices, progress=progress, compile=as_truth(compile, "compile"))
        check_compiler(loop)
        if devices > 1:
            check_sent(network=network, prior=m, likelihood=observation)
        if out is not None and RunFolder(out := as_path(out, "out")).config.exists():
            raise UserError(f"{out} already holds a run: choose another `out`")
        if out is not None:
            RunFolder(out).check_new()
        recipe = Recipe(way, weight, observation, m, scales, chosen)
        prepare(network, data, recipe)
        with tempfile.TemporaryDirectory() as scratch:
            described = {"algorithm": way.value, "beta": weight, "likelihood": likelihood_name(observation)}
            config = yaml.safe_dump(described, sort_keys=False) + options_to_yaml(chosen)
            run = RunFolder.create(out or Path(scratch) / "run", "bnn", config)
            with working_in(run, new=True, resumes=False):
                fitted = fit_posterior(network, data, recipe, loop=loop, run=run)
                if out is not None:
                    write_fit(run.path / SAVED, fitted)
            return cls.of(fitted)

    @classmethod
    def of(cls, fit: Fit) -> BNN:
        """A fit with what can be done with it."""
        return cls(**{field.name: getattr(fit, field.name) for field in fields(Fit)})

    def save(self, path: str | Path) -> Path:
        """Write posterior, prior, likelihood and settings into one file; the network's architecture is not in it.

        Args:
            path: ends in .safetensors.

        Returns:
            the path.

        Raises:
            UserError: another suffix, or a place that cannot be written to.
        """
        return write_fit(as_path(path), self)

    @classmethod
    def load(
        cls,
        path: str | Path,
        network: nn.Module | None = None,
        *,
        algorithm: Algorithm | str | None = None,
        beta: float | None = None,
        prior: WeightPrior | Distribution | None = None,
        likelihood: Likelihood | Callable[[Tensor], Any] | None = None,
    ) -> BNN:
        """Read what :meth:`save` wrote, a run folder of :meth:`fit` with ``out``, or one of ``svi_bnn``; on the CPU.

        Args:
            path: the file or folder.
            network: of the architecture that was fitted, with any weights; copied, not changed. What ``svi_bnn`` fitted needs
                none.
            algorithm, beta: which fit of a run of ``svi_bnn``, where it has several.
            prior, likelihood: as they were given to :meth:`fit`, where that was a module or function of one's own: a file
                holds numbers and no code. Distributions of Pyro are in the file.

        Raises:
            UserError: a damaged file, one of something else, another network, a fit that a run does not have, or a part that
                must be given.
        """
        own = None if likelihood is None else choose_likelihood(likelihood, torch.empty(0))
        given = as_module(prior) if isinstance(prior, Distribution) else prior
        place = as_path(path)
        check_kind("network", network, nn.Module | None, "a module")
        if place.is_dir() and not (place / SAVED).is_file():
            return cls.of(load_run(place, algorithm, beta))
        return cls.of(read_fit(place / SAVED if place.is_dir() else place, network, prior=given, likelihood=own))

    def to(self, *place: torch.device | torch.dtype | str) -> BNN:
        """A copy on another device, in another floating-point type, or both: ``bnn.to("cuda")``, ``bnn.to(torch.float64)``.

        This one stays as it is. Draws with the same seed are the same in both.

        Args:
            place: a device, a type, or one of each.

        Raises:
            UserError: neither, or a device that is not there.
        """
        check_place(*place)
        return replace(self, posterior=self.posterior.to(*place), rates=moved(self.rates, *place))

    def predict(self, x: Any, *, num_samples: int = 40, seed: int = 0) -> ClassPredictions | ValuePredictions:
        """Predictive distribution of each item, one or a hundred thousand: a batch of them is in memory at a time.

        Args:
            x: as for :meth:`fit`; targets of pairs are not looked at.
            num_samples: draws of the weights; fewer where there are no more different ones.
            seed: of the draws, the same for all items.

        Returns:
            with classes (a categorical or Bernoulli likelihood) :class:`~inference.evaluation.predictions.ClassPredictions`:
            probabilities, labels, entropy and mutual information, nats; with other targets
            :class:`~inference.evaluation.value_predictions.ValuePredictions`: mean, standard deviation, of the function and of
            the noise, 90 % interval, and draws. All on the CPU.

        Raises:
            UserError: items of another shape than those it was fitted to, or numbers that are not finite.
        """
        draws, seed = as_whole(num_samples, "num_samples", 1), as_whole(seed, "seed")
        items = read_items(x, self.item_shape)
        return predict_items(self.posterior, items, num_samples=draws, seed=seed, class_names=self.class_names)
