"""Fits of a run of ``svi_bnn``, read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.arguments import as_number, check_kind, shown
from data.catalogue import load_supervised
from data.errors import UserError
from inference.bnn.algorithms import Algorithm
from inference.bnn.fit import make_problem
from inference.bnn.fitting import Fit, fit_posterior, stage_name
from inference.bnn.options import BnnOptions
from inference.runs.folder import RunFolder
from inference.runs.options import HERE, options_from_yaml
from models.likelihoods import CategoricalLikelihood


def load_run(path: Path, algorithm: Algorithm | str | None = None, beta: float | None = None) -> Fit:
    """One fit of a finished run; the run's data are looked up, for the network is built for them.

    Args:
        path: the run folder.
        algorithm: which; the run's one where it has no other.
        beta: at which β; the one that was chosen when not given.

    Raises:
        UserError: no run of ``svi_bnn``, one that is not finished, a fit it does not have, or data that are not there.
    """
    check_kind("algorithm", algorithm, str | None, "a name")
    beta = None if beta is None else as_number(beta, "beta", zero=True)
    run = RunFolder.existing(path)
    if run.metrics.exists() and run.results().get("command") != "svi_bnn":
        raise UserError(f"{path} is no run of svi_bnn: its command was {run.results().get('command')}")
    options = options_from_yaml(BnnOptions, run.read_config(), run.config, HERE)
    tested = [row for row in run.results().get("results", []) if row.get("split") == "test"]
    chosen = [row for row in tested if algorithm in (None, row["algorithm"]) and beta in (None, row["beta"])]
    if len(chosen) != 1:
        known = ", ".join(f"{row['algorithm']} at β = {row['beta']:g}" for row in tested)
        asked_for = "any" if beta is None else f"{beta:g}"
        asked = "several fits" if chosen else f"no fit of {shown(algorithm or 'any algorithm')} at β = {asked_for}"
        raise UserError(f"{path} has {asked}: choose `algorithm` and `beta` from {known}")
    way, found = Algorithm(chosen[0]["algorithm"]), chosen[0]["beta"]
    if not (file := run.checkpoints / f"{stage_name(way, found)}.safetensors").exists():
        raise UserError(f"{file} is missing: the run was moved in part, so run it again")
    data = load_supervised(options.data, options.root, image_size=options.image_size, seed=options.seed)
    problem = make_problem(options, data)
    fitted = fit_posterior(problem.network, problem.train, problem.recipe(way, found, options.fit), loop=options.loop, run=run)
    outputs = data.train.num_classes if isinstance(problem.likelihood, CategoricalLikelihood) else 1
    named = {"name": options.network, "item_shape": data.item_shape, "outputs": outputs, "hidden": options.widths}
    return replace(fitted, network=named)
