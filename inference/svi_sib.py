"""``python -m inference.svi_sib``: pre-train features, train the guide, evaluate, draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from data.catalogue import load_data
from data.episodes import EpisodeSampler
from data.errors import UserError
from data.items import ImageSplits
from inference.evaluation.figures import save_figure
from inference.evaluation.posterior import infer
from inference.meta.base_and_new import LwofRecord, check_lwof, format_lwof, lwof_records
from inference.meta.draw import figures
from inference.meta.learner import Learner
from inference.meta.options import SibOptions
from inference.meta.regression import regression_run
from inference.meta.report import (
    PROTOCOLS,
    choose_variant,
    evaluate_protocols,
    final_records,
    format_records,
    mark_selected,
    validate,
)
from inference.meta.stages import fit
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
    features = load_features(options.features) if options.features else None  # fails before a run folder is made
    check(options, data)
    if "lwof" in options.protocols:
        check_lwof(options, features)
    run = run or RunFolder.create(options.out, "svi_sib", options_to_yaml(options))
    print(f"run folder: {run.path}")
    fitted = fit(options, data, run)
    print("evaluating ...")
    lwof: list[LwofRecord] = []
    with run.timed("evaluate"):
        validated = validate(fitted, run)
        selected = choose_variant(validated)
        tested = evaluate_protocols(fitted, options.protocols, options.test_tasks, run)
        records = mark_selected([*validated.values(), *tested], selected)
        if "lwof" in options.protocols:
            lwof = lwof_records(options, run)
    save_posterior(fitted[selected], run)
    dataset = fitted[selected].dataset
    write_metrics(run, "svi_sib", options, [*map(asdict, records), *map(asdict, lwof)], dataset=dataset)
    with run.timed("plots"):
        drawn = figures(fitted, selected, data, records, run)
        plots = [save_figure(draw(), run.plots / f"{name}.png") for name, draw in drawn.items()]
    print(f"\n{title(options, dataset)}\n{format_records(final_records(records))}\n")
    print("* chosen on validation tasks; NLL in nats per query, rate and distortion in nats per task, ± is a 95 % interval")
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


def check(options: SibOptions, data: ImageSplits | None) -> None:
    """Fail before any work where a split cannot give the tasks that will be asked of it, or the network cannot be built; and
    say what cannot come out well."""
    if options.initialisation != "support":
        print(f"note: labels are arbitrary in each task, so a start that ignores them ({options.initialisation}) scores chance")
    if data is None:
        return
    for split in data.splits:
        EpisodeSampler(data[split], options.spec(), split=f"{split} split")
    for protocol in options.protocols:
        EpisodeSampler(data.test, options.spec(imbalance=PROTOCOLS.get(protocol)), split="test split")
    try:
        FeatureNetwork(options.backbone, data.image_shape)
    except ValueError as error:
        raise UserError(str(error)) from None


def save_posterior(learner: Learner, run: RunFolder) -> None:
    """``posterior.nc``: ArviZ data of eight test tasks."""
    part = load_features(run.features)["test"]
    spec = learner.options.spec(imbalance=None)
    episode = EpisodeSampler(part, spec, split="test split").sample(8, seed=learner.options.seed)
    features = episode._replace(support_x=learner.space(episode.support_x), query_x=learner.space(episode.query_x))
    posterior = infer(learner.model, learner.guide, features, command="svi_sib", **learner.attributes())
    write_atomically(run.posterior, lambda file: posterior.to_arviz(episode.query_y).to_netcdf(str(file)))


def title(options: SibOptions, dataset: str) -> str:
    """The table's heading."""
    return (
        f"{dataset}, {options.way}-way {options.shot}-shot, {options.test_tasks} test tasks, "
        f"{options.posterior} posterior, {options.gradient} gradient network"
    )


if __name__ == "__main__":
    run_command(main)
