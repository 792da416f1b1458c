"""Selection and records: what is chosen by what, and what a row says."""

import copy
import itertools
import math
from dataclasses import replace

import pytest

from inference.evaluation.metrics import Scores
from inference.meta.options import SibOptions
from inference.meta.report import (
    choose,
    evaluate_protocols,
    final_records,
    format_records,
    guessing,
    make_record,
    mark_selected,
    selected_variant,
    usual_records,
    validate,
)
from inference.meta.stages import fit
from inference.meta.task_options import PROTOCOLS
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_features, save_features
from tests.conftest import marked_splits, splits_of

OPTIONS = {"way": 3, "queries": 4, "tasks": 16, "validations": 1, "validation_tasks": 20, "progress": False}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    file = save_features(folder / "marked.safetensors", marked_splits())
    run = RunFolder.create(folder / "run", "sib", "")
    options = SibOptions(features=str(file), beta="0.1,1", methods="sib,nearest-mean", rank=0, **OPTIONS)
    return fit(options, None, run), run


def specs(**options):
    return SibOptions(**OPTIONS, **options).test_specs()


class Spy:
    """Stands for a learner and notes which splits it is evaluated on."""

    def __init__(self, learner):
        self.learner, self.seen = learner, []

    def __getattr__(self, name):
        return getattr(self.learner, name)

    def evaluate(self, part, spec, **options):
        self.seen.append((options["split"], splits_of(part.items)))
        return self.learner.evaluate(part, spec, **{**options, "tasks": 4})


def test_variants_are_chosen_on_validation_classes_and_tested_on_test_classes(fitted):
    learners, run = fitted
    spies = {variant: Spy(learner) for variant, learner in learners.items()}
    validated = validate(spies, run)
    assert all(spy.seen == [("val", {"val"})] for spy in spies.values())
    for spy in spies.values():
        spy.seen.clear()
    tested = evaluate_protocols(spies, specs(), 4, run)
    assert all(seen == ("test", {"test"}) for spy in spies.values() for seen in spy.seen)
    assert {r.balanced for r in tested} == {True, False}
    assert [(r.variant, r.steps) for r in validated] == [(v.name, v.steps) for v in learners], "each after its own K"
    assert PROTOCOLS == {"standard": None, "imbalanced": 2.0}, "query proportions ~ Dirichlet(2)"


def test_every_way_shot_and_protocol_asked_for_is_tested_and_steps_beyond_the_trained_are_read(fitted):
    learners, run = fitted
    tested = evaluate_protocols(learners, specs(test_way="2,4", test_shot="1,2"), 4, run, steps=4)
    shapes = {(r.way, r.shot, r.balanced) for r in tested}
    assert shapes == set(itertools.product((2, 4), (1, 2), (True, False)))
    assert {r.variant: max(o.steps for o in tested if o.variant == r.variant) for r in tested} == {
        variant.name: 4 if variant.steps else 0 for variant in learners
    }
    assert usual_records(tested, replace(learners[next(iter(learners))].spec, way=4)) == [
        r for r in tested if (r.way, r.shot) == (4, 1)
    ]
    assert "2-way 1-shot" in format_records(final_records(tested))


def scores(nll: float, accuracy: float = 0.5, rate: float | None = 2.0) -> Scores:
    return Scores(10, accuracy, 0.1, nll, 0.1, 0.3, rate, 40.0)


def records(fitted, nlls):
    """A validation record for each variant, with the given NLLs and accuracies the other way round."""
    learners, _ = fitted
    return [
        make_record(learner.variant, learner.spec, "val", variant.steps, scores(nll, nll / 10))
        for (variant, learner), nll in zip(learners.items(), nlls, strict=True)
    ]


def test_lowest_nll_is_chosen_among_what_is_no_reference(fitted):
    learners, _ = fitted
    variants = list(learners)
    assert [v.name for v in variants] == [
        "distance-beta0.1-k3", "distance-beta0.1-k0", "distance-beta1-k3", "distance-beta1-k0", "nearest-mean-distance-k0"
    ]  # fmt: skip
    assert choose(records(fitted, (0.9, 0.1, 0.8, 0.1, 0.85))).variant == "distance-beta1-k3"
    assert choose(records(fitted, (0.9, 0.1, 0.8, 0.1, 0.7))).variant == "nearest-mean-distance-k0"


def test_what_has_seen_labels_is_chosen_only_where_there_is_nothing_else(fitted):
    validated = records(fitted, (0.2, 0.9, 0.3, 0.9, 0.5))
    first, *others = validated
    assert choose([replace(first, saw_labels=True), *others]).variant == "distance-beta1-k3"
    assert choose([replace(record, saw_labels=True) for record in validated]).variant == first.variant


def test_test_records_choose_nothing(fitted):
    validated = records(fitted, (0.2, 0.9, 0.3, 0.9, 0.5))
    tested = replace(validated[2], split="test", nll=0.001)
    assert choose([*validated, tested]).variant == "distance-beta0.1-k3"


def test_selected_marks_the_chosen_variant_and_its_reference(fitted):
    learners, _ = fitted
    marked = mark_selected(records(fitted, (0.2, 0.9, 0.3, 0.9, 0.5)))
    assert [r.variant for r in marked if r.selected] == ["distance-beta0.1-k3", "distance-beta0.1-k0"]
    assert selected_variant(learners, marked) is next(iter(learners))


def test_a_record_says_what_it_is_of(fitted):
    learners, _ = fitted
    learner = next(iter(learners.values()))
    record = make_record(learner.variant, replace(learner.spec, imbalance=2.0), "test", 2, scores(0.4))
    assert (record.steps, record.trained_steps, record.beta, record.balanced) == (2, 3, 0.1, False)
    assert record.neg_elbo == pytest.approx(42.0), "distortion + rate, whatever β"
    assert record.objective == pytest.approx(40.2), "distortion + β · rate"
    assert record.guess == pytest.approx(12 * math.log(3)), "four queries of each of three classes"
    shown = dict(zip(*(line.split() for line in aligned(record)), strict=True))
    assert (shown["−ELBO"], shown["objective"]) == ("42.0", "40.2")
    assert "costs 13.2 nats" in guessing(record)
    assert not record.saw_labels
    assert make_record(learner.variant, learner.spec, "test", 2, scores(0.4, rate=None)).neg_elbo is None


def aligned(record) -> list[str]:
    """Heading and row of a table, without what has blanks in it or none."""
    heading, row = format_records([replace(record, selected=False)]).splitlines()
    return [heading.replace("accuracy %", "accuracy").replace("ECE %", "ECE"), row.replace(" ± ", "±")]


def test_exact_gradients_are_marked_as_having_seen_the_labels(tmp_path):
    file = save_features(tmp_path / "marked.safetensors", marked_splits())
    run = RunFolder.create(tmp_path / "run", "sib", "")
    learners = fit(SibOptions(features=str(file), beta=0.1, gradient="exact", rank=0, **OPTIONS), None, run)
    part = load_features(run.features)["test"]
    for variant, learner in learners.items():
        spec = learner.spec
        for k, score in learner.evaluate(part, spec, split="test", tasks=4).items():
            record = make_record(learner.variant, spec, "test", k, score, saw_labels=learner.guide.saw_labels)
            assert record.saw_labels is (k > 0), (variant, k)
            assert ("saw labels" in format_records([record])) is (k > 0)


def test_table_has_a_row_for_each_learner_read_at_its_own_k(fitted):
    learners, run = fitted
    spies = {variant: Spy(learner) for variant, learner in learners.items()}
    rows = final_records(evaluate_protocols(spies, specs()[:1], 4, run))
    assert [(r.variant, r.steps) for r in rows] == [(v.name, v.steps) for v in learners]
    marked = final_records(mark_selected([*validate(spies, run), *rows]))
    text = format_records(marked)
    assert len(text.splitlines()) == 6
    assert [line[0] for line in text.splitlines()[1:]].count("*") == sum(r.selected for r in marked) > 0
    assert "nearest-mean" in text.splitlines()[-1]


def test_steps_of_zero_are_their_own_reference():
    variants = SibOptions(steps=0, beta=0.1).variants()
    assert [(v.name, v.reference) for v in variants] == [("distance-beta0.1-k0", False)]


def test_points_have_no_beta():
    (variant, _) = SibOptions(posterior="delta", beta="0.1,1", predictor="cosine").variants()
    assert (variant.beta, variant.posterior, variant.name) == (None, "delta", "cosine-delta-k3")


def test_betas_that_differ_have_names_that_differ():
    """Variants of one name would share one checkpoint: the second would read back the first."""
    names = [variant.name for variant in SibOptions(steps=0, beta="0.1,0.30000001,1000000,1000001").variants()]
    assert names[0] == "distance-beta0.1-k0"
    assert len(set(names)) == 4


def test_every_training_seed_is_tested_on_the_same_tasks(fitted):
    learners, run = fitted
    learner, part = next(iter(learners.values())), load_features(run.features)["test"]
    other = copy.copy(learner)
    other.settings = replace(learner.settings, seed=7)
    one, two = (each.evaluate(part, learner.spec, split="test", tasks=6) for each in (learner, other))
    assert one == two


def test_protocols_are_of_the_tasks_that_were_trained_on(fitted):
    learners, run = fitted
    tested = evaluate_protocols({v: Spy(learner) for v, learner in learners.items()}, specs()[1:], 4, run)
    assert {(r.way, r.shot, r.queries, r.balanced, r.episodes) for r in tested} == {(3, 1, 4, False, 4)}


def test_table_shows_fractions_in_percent(fitted):
    (record, *_) = records(fitted, (0.2, 0.9, 0.3, 0.9, 0.5))
    row = format_records([replace(record, accuracy=0.875, ci95=0.0125, ece=0.031)]).splitlines()[1]
    assert "87.50 ± 1.25" in row
    assert " 3.1 " in row
