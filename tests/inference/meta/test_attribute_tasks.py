"""Tasks of two out of three attributes in the command: its options, what draws tasks, and how many answers are found."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import sibyl
from data.ambiguous import AttributeSampler, OnePairSampler, fewer_queries
from data.catalogue import load_data
from data.episodes import Attributes, TaskSpec
from data.errors import UserError
from data.seeding import mix_seed
from inference.evaluation.evaluate import predictions
from inference.meta import comparison
from inference.meta.comparison import DRAWS, FEW, answers_found, format_comparison, record_of
from inference.meta.family_options import AttributeOptions, MetaOptions
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import feature_space
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, settings
from inference.meta.source import Source
from inference.meta.tasks import kinds, training_tasks
from inference.predict import main as predict
from inference.svi_meta import MetaStudy
from inference.svi_meta import main as svi_meta
from tests.data.test_ambiguous import attributes, numbered
from tests.inference.diagnostics.test_ambiguity import by_pair

NAME = "prototypical-distance-k0"


@pytest.fixture(scope="module")
def bank():
    """Noisy attributes of 45 items of each kind."""
    bare = numbered((45,) * 8)
    return replace(bare, items=2.0 * attributes(bare.items) + 0.3 * torch.randn(len(bare), 3))


def learner(method, bank):
    """An untrained one, and its options."""
    options = AttributeOptions(methods=method, queries=5)
    (variant,), chosen = options.variants(), settings(GuideSettings, options)
    space, means = feature_space(chosen, variant.predictor, bank)
    return FittedLearner.build(variant, chosen, options.spec(), space, means, None, "bank"), options


def test_the_command_has_defaults_of_its_own_for_them():
    options = AttributeOptions()
    assert (options.way, options.shot, options.spec().attributes) == (2, 5, Attributes.MIXED)
    assert [spec.attributes for spec in options.test_specs()] == [Attributes.UNAMBIGUOUS, Attributes.AMBIGUOUS]
    assert [spec.shot for spec in AttributeOptions(test_shot="1,3").test_specs()] == [1, 1, 3, 3]
    assert {spec.attributes for spec in (*MetaOptions().test_specs(), MetaOptions().spec())} == {None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"way": 3}, "`way=3`: a task of attributes .* has two classes: give `way=2`"),
        ({"train_way": "2-4"}, "leave out `train_way=2-4`"),
        ({"test_way": "2,3"}, "leave out `test_way=2,3`"),
        ({"imbalance": 2.0}, "leave out `imbalance=2"),
        ({"within_alphabet": "test"}, "leave out `within_alphabet=test`"),
        ({"mixed": False}, "leave out `mixed=false`"),
        ({"protocols": "standard,imbalanced"}, "give `protocols=standard`"),
        ({"methods": "prototypical:descriptions"}, "`data=glyph-attributes` has not"),
    ],
)
def test_what_says_nothing_of_them_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        AttributeOptions(**given)


def test_sib_alone_does_not_draw_them():
    with pytest.raises(UserError, match="are svi_meta's"):
        SibOptions(data="glyph-attributes")


def test_descriptions_are_refused_where_supports_are_none():
    with pytest.raises(UserError, match=r"prototypical:descriptions is for supports that describe classes.*`data=glyphs`"):
        MetaOptions(methods="sib,prototypical:descriptions")
    assert MetaOptions(methods="prototypical:descriptions", data="glyph-descriptions").described
    assert MetaOptions(methods="prototypical:descriptions=false").methods == ("prototypical",)


def test_training_and_validation_tasks_are_of_one_pair_each(bank):
    options = AttributeOptions(queries=5)
    sampler = training_tasks(options, bank)
    assert isinstance(sampler.of(2, 5), OnePairSampler)
    assert {sampler.sample(2, seed=seed).support_y.shape[1] for seed in range(8)} == {10}
    (validation,) = kinds(options, bank, "val")
    assert validation.spec == options.spec()
    assert sampler.sample(3, seed=1).query_y.shape == (3, 10)


@pytest.mark.parametrize("method", ["prototypical", "platipus:noise_only:scale=1", "bmaml:particles=5"])
def test_answers_found_are_those_of_independent_draws(bank, method):
    one, options = learner(method, bank)
    spec = options.test_specs()[1]
    part = replace(bank, items=one.space(bank.items).detach())
    record = record_of(one, part, spec, "test", 20, {})
    sampler = AttributeSampler(part, queries=5, ambiguous=True, contested=True)
    assert (record.kind, record.attributes, record.guess) == ("ambiguous", "ambiguous", spec.guess)
    found = answers_found(one, sampler, 20, 3)
    shares, likelihoods = [], []
    for episode, predicted in predictions(one.model, one.guide, sampler, tasks=20, seed=3, num_samples=DRAWS):
        logs = predicted.log_likelihood(episode.query_y).detach().unflatten(-1, (3, -1)).sum(-1)
        mine = logs.argmax(-1)
        mine = mine if "bmaml" in method else mine[::2]
        many = torch.stack([mine[torch.randperm(len(mine))[:FEW]] for _ in range(3000)])
        shares.append(torch.stack([(many == answer).any(1) for answer in range(3)]).float().sum(0).mean())
        likelihoods.append(-(logs.double().exp().mean(0).log() / 10).mean())
    assert found["coverage"] == pytest.approx(float(torch.stack(shares).mean()), abs=0.02)
    assert found["joint_nll"] == pytest.approx(float(torch.stack(likelihoods).mean()), rel=1e-4)
    assert record_of(one, part, options.test_specs()[0], "val", 20, {}).coverage is None
    table = format_comparison([record])
    assert f"coverage, {FEW} draws" in table
    assert f"{record.coverage:.2f}" in table


@pytest.mark.parametrize(("particles", "covered"), [(True, 2 - 2 * math.comb(32, FEW) / math.comb(64, FEW)), (False, 1.0)])
def test_as_many_particles_as_draws_are_no_pairs(particles, covered, monkeypatch):
    """Every other draw goes by another pair of attributes."""
    tasks = AttributeSampler(numbered((45,) * 8), ambiguous=True, contested=True).sample(5, seed=0)
    labels = SimpleNamespace(logits=torch.stack([by_pair(tasks, pair) for pair in (0, 1)]).repeat(DRAWS // 2, 1, 1, 1))
    monkeypatch.setattr(comparison, "predictions", lambda *_, **__: [(tasks, SimpleNamespace(labels=labels))])
    guide = SimpleNamespace(**({"particles": DRAWS} if particles else {}))
    found = answers_found(SimpleNamespace(model=None, guide=guide), None, 5, 0)
    assert found["coverage"] == pytest.approx(covered)


def test_a_posterior_of_an_ambiguous_task_sees_as_many_queries_as_in_training(bank):
    one, options = learner("sib", bank)
    options = replace(options, queries=15)
    part = replace(bank, items=one.space(bank.items).detach())
    unambiguous, ambiguous = options.test_specs()
    seen = []
    one.guide.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2].shape[1]))
    record = record_of(one, part, ambiguous, "test", 20, {})
    assert max(seen) == 30
    assert record.transductive
    seen.clear()
    assert record_of(one, part, unambiguous, "test", 20, {}).transductive
    assert max(seen) == 30
    sampler = AttributeSampler(part, ambiguous=True, contested=True)
    for sees, view in ((True, fewer_queries), (False, None)):
        how = {"tasks": 20, "seed": mix_seed(TEST_SEED), "view": view}
        both = [p.distortion(e.query_y).detach() for e, p in predictions(one.model, one.guide, sampler, **how)]
        assert sees is (record.distortion == pytest.approx(float(torch.cat(both).mean()), rel=1e-5)), "all 90 are scored"


def test_the_report_says_what_guessing_costs_in_tasks_of_each_kind(bank):
    one, options = learner("prototypical", bank)
    part = replace(bank, items=one.space(bank.items).detach())
    records = [record_of(one, part, spec, "test", 20, {}) for spec in options.test_specs()]
    said = MetaStudy(options).report(Source(None, None), [*records, replace(records[0], split="val", attributes="mixed")])
    costs = [line for line in said.splitlines() if line.startswith("guessing")]
    assert [line[line.index("costs") :] for line in costs] == [
        f"costs {10 * math.log(2):.1f} nats per task (unambiguous)",
        f"costs {30 * math.log(2):.1f} nats per task (ambiguous)",
    ]


@pytest.mark.slow
def test_a_run_tests_both_kinds_and_predicts_on_its_own(tmp_path):
    arguments = ["--data", "glyph-attributes", "--methods", "prototypical,platipus", "--queries", "5", "--epochs", "0"]
    arguments += ["--backbone", "conv4-4", "--tasks", "32", "--validations", "2", "--validation-tasks", "20"]
    run = svi_meta([*arguments, "--test-tasks", "20", "--progress", "false", "--out", str(tmp_path / "run")])
    records = json.loads(run.metrics.read_text())["results"]
    assert sorted(r["attributes"] for r in records) == 2 * ["ambiguous"] + 2 * ["mixed"] + 2 * ["unambiguous"]
    assert all((r["coverage"] is not None) == (r["attributes"] == "ambiguous") for r in records)
    assert (run.plots / "reliability.png").exists()
    assert FittedLearner.load(run, NAME).spec == TaskSpec(2, 5, 5, attributes="mixed")
    (record,) = predict(["--run", str(run.path), "--way", "2", "--shot", "5", "--tasks", "10", "--variant", NAME])
    assert record.guess == TaskSpec(2, 5, 15, attributes="mixed").guess
    with pytest.raises(UserError, match="give --way 2"):
        predict(["--run", str(run.path), "--tasks", "10", "--way", "3", "--variant", NAME])


@pytest.mark.slow
def test_any_method_is_fitted_to_them():
    data = load_data("glyph-attributes")
    given = {"way": 2, "shot": 5, "protocols": "standard", "tasks": 16, "validations": 1, "validation_tasks": 10, "epochs": 0}
    fitted = sibyl.Learner.fit(data, method="platipus", backbone="conv4-4", **given)
    assert fitted.spec.attributes is Attributes.MIXED
