"""``python -m inference.svi_sib``: pre-train features, train the guide, evaluate, draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data.catalogue import load_data
from data.episodes import EpisodeSampler
from data.errors import UserError
from data.items import ImageSplits
from inference.meta.base_and_new import format_lwof, lwof_records
from inference.meta.draw import draw_run
from inference.meta.fit import fit
from inference.meta.options import SibOptions
from inference.meta.regression import regression_run
from inference.meta.report import evaluate_run, final_records, format_table
from inference.meta.sib import SIB
from inference.runs.commands import (
    flags_in_errors,
    options_to_yaml,
    print_places,
    read_command,
    run_command,
    write_metrics,
)
from inference.runs.folder import RunFolder, write_atomically
from inference.runs.tensors import load_features
from models.networks.feature_network import FeatureNetwork

DESCRIPTION = """Synthetic information bottleneck: few-shot classification by transductive empirical Bayes.
Without arguments it runs the whole job on embedded letters in about two minutes."""


@flags_in_errors(SibOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    options, run = read_command(SibOptions, "svi_sib", DESCRIPTION, arguments)
    if options.data in ("sinusoids", "linear"):
        if run is not None:
            raise UserError("regression runs take seconds and are not resumed: start a new one")
        return regression_run(options)
    data = None if options.features else describe(load(options))
    if options.features:
        load_features(options.features)  # fails before a run folder is made
    elif data is not None:
        check(options, data)
    run = run or RunFolder.create(options.out, "svi_sib", options_to_yaml(options))
    print(f"run folder: {run.path}")
    fitted = fit(options, data, run)
    print("evaluating ...")
    lwof: list[dict[str, Any]] = []
    with run.timed("evaluate"):
        records = evaluate_run(options, fitted, run)
        if "lwof" in options.protocols:
            lwof = lwof_records(options, run)
    selected = next(
        v
        for v in fitted
        if v.steps == options.steps
        and any(r["selected"] and (r["predictor"], r["beta"] or 0.0) == (v.predictor, v.beta) for r in records)
    )
    with run.timed("plots"):
        save_posterior(fitted[selected], data, run)
        plots = draw_run(options, fitted, selected, data, records, run)
    write_metrics(run, "svi_sib", options, records + lwof)
    print(f"\n{title(options)}\n{format_table(final_records(records))}\n")
    print("* chosen on validation tasks; NLL in nats a query, rate and distortion in nats a task, ± is a 95 % interval")
    if lwof:
        print(f"\nlearning without forgetting, {options.test_tasks} tasks\n{format_lwof(lwof)}\n")
    print_places(run, plots)
    return run


def load(options: SibOptions) -> ImageSplits:
    """The images the options name."""
    print(f"loading {options.data} ...")
    return load_data(options.data, options.root, image_size=options.image_size, seed=options.seed)


def describe(data: ImageSplits) -> ImageSplits:
    """Print what was loaded."""
    sizes = ", ".join(f"{data[s].num_classes} {s} classes ({len(data[s])} images)" for s in data.splits)
    print(f"{data.name}: {sizes}, {'×'.join(map(str, data.image_shape))}")
    return data


def check(options: SibOptions, data: ImageSplits) -> None:
    """Fail before any work where a split cannot give the tasks that will be asked of it, or the network cannot be built."""
    for split in data.splits:
        EpisodeSampler(data[split], options.spec(), split=f"{split} split")
    try:
        FeatureNetwork(options.backbone, data.image_shape)
    except ValueError as error:
        raise UserError(str(error)) from None


def save_posterior(sib: SIB, data: ImageSplits | None, run: RunFolder) -> None:
    """``posterior.nc``: ArviZ data of eight test tasks."""
    part = load_features(run.features)["test"]
    spec = replace(sib.options.spec(), imbalance=None)
    episode = EpisodeSampler(part, spec, split="test split").sample(8, seed=sib.options.seed)
    features = episode._replace(support_x=sib.space(episode.support_x), query_x=sib.space(episode.query_x))
    from inference.evaluation.posterior import infer

    posterior = infer(sib.model, sib.guide, features)
    write_atomically(run.posterior, lambda file: posterior.to_arviz(episode.query_y).to_netcdf(str(file)))


def title(options: SibOptions) -> str:
    """The table's heading."""
    return (
        f"{options.data}, {options.way}-way {options.shot}-shot, {options.test_tasks} test tasks, "
        f"{options.posterior} posterior, {options.gradient} gradient network"
    )


if __name__ == "__main__":
    run_command(main)
