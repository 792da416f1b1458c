"""The benchmark of memorised sinusoids: its rows, what it measures, and that it goes on where it was."""

import json
import math

import pytest
import torch

from benchmarks import memorisation
from benchmarks.memorisation import ROWS, Row, exact_errors, information, slug, steps_of, table, train_afresh
from data.curves import memorisable_sinusoid_tasks
from data.seeding import mix_seed, seeded
from guides.tasks.adapted import AdaptedScorer
from inference.meta.choices import split_choice
from inference.meta.regression_fits import Setup
from inference.meta.regression_guides import CLIP, DRAWS, TASKS
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_tasks import MEMORISABLE, Problem
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings


def setup_of(tasks=20, batch=1):
    return Setup(Problem(MEMORISABLE, 4), GuideSettings(), MetaSchedule(tasks, batch=batch, seed=0), 3)


def built(row, setup=None):
    name, given = split_choice(row.method)
    setup, method = setup or setup_of(), REGRESSION_METHODS[name]
    return method.build(setup, method.variants(VariantSettings(beta=(1.0,), given=given), setup.problem)[0])


def test_rows_are_of_methods_that_there_are_and_of_networks_that_are_trained():
    assert len({slug(name) for name in ROWS}) == len(ROWS)
    for name, row in ROWS.items():
        weight = name.split(", ")[1:2] if row.trained_as else name.split(", ")[-1:]
        beta = built(row).objective.elbo.beta
        if "penalty=codes" in row.method:
            assert beta == float(weight[0].removesuffix(", Adam afresh")) if not row.afresh else beta == 1
        elif "penalty" in row.method and not row.afresh:
            assert beta == pytest.approx(float(weight[0]) * 20 * 3)
        if row.trained_as:
            trained = ROWS[row.trained_as]
            assert trained.method == row.method.replace("tested=means", "tested=draws") != row.method
            assert trained.afresh == row.afresh
            assert not trained.trained_as


def test_errors_of_exact_bayes_are_those_of_the_best_amplitudes():
    """With much noise-free support the amplitude is known, and what is left is the noise of the queries."""
    tasks = memorisable_sinusoid_tasks(40, support=200, queries=50, new=True, seed=3).to(dtype=torch.float64)
    support, query = tasks.support_x[..., 0].sin(), tasks.query_x[..., 0].sin()
    amplitude = (support * tasks.support_y).sum(-1) / support.square().sum(-1)
    by_least_squares = (amplitude[:, None] * query - tasks.query_y).square().mean(-1)
    torch.testing.assert_close(exact_errors(tasks), by_least_squares, atol=1e-4, rtol=0.02)
    few = tasks._replace(support_x=tasks.support_x[:, :0], support_y=tasks.support_y[:, :0])
    prior = (0.5 * (0.1 + 4.0) * query - tasks.query_y).square().mean(-1)
    torch.testing.assert_close(exact_errors(few), prior)


@pytest.mark.parametrize("name", ["MAML", "MR-MAML (W), 5e-5", "CNP"])
def test_steps_are_what_is_asked_for_and_then_what_they_were(name):
    fit = built(ROWS[name])
    guides = [part.guide for part in fit.modules() if isinstance(part, AdaptedScorer)] or [fit.guide]
    before = [getattr(guide, "steps", None) for guide in guides]
    with steps_of(fit, 3):
        assert [getattr(guide, "steps", None) for guide in guides] == [None if b is None else 3 for b in before]
    assert [getattr(guide, "steps", None) for guide in guides] == before
    assert before == ([None] if name == "CNP" else [100])


def test_information_is_of_predictions_with_the_true_noise(monkeypatch):
    fit, seen = built(ROWS["MR-CNP (A), 2"]), []
    with torch.no_grad():
        fit.model.likelihood.log_noise.fill_(0.7)

    def told(model, *args, **kwargs):
        seen.append(float(model.likelihood.log_noise.exp()))
        return torch.tensor([1.0, 2.0 * len(seen)])

    monkeypatch.setattr(memorisation, "support_information", told)
    tasks = setup_of().draw(2, seed=0)
    assert information(fit, [tasks, tasks]) == pytest.approx((1.5 + 2.5) / 2)
    assert seen == pytest.approx([0.1, 0.1])
    assert float(fit.model.likelihood.log_noise) == pytest.approx(0.7)


def test_adam_that_begins_anew_takes_steps_by_the_sign_of_the_encoders_gradient():
    """Two updates by hand: of the encoder lr · g / (|g| + ε), of the others those of an Adam that goes on, lr by a cosine."""
    setup, row = setup_of(tasks=2), ROWS["MR-MAML (A), 1, Adam afresh"]
    fit, by_hand = built(row, setup), built(row, setup)
    named = {name: p for name, p in by_hand.named_parameters() if p.requires_grad}
    encoder = [p for name, p in named.items() if ".encoder." in name]
    others = torch.optim.Adam([p for name, p in named.items() if ".encoder." not in name], 1e-3)
    assert len(encoder) == 4
    with steps_of(fit, 1), steps_of(by_hand, 1):
        train_afresh(fit, setup)
        for step, rate in enumerate((1e-3, 0.5e-3)):
            by_hand.zero_grad()
            tasks = setup.draw(1, mix_seed(0, step, TASKS))
            with seeded(0, step, DRAWS):
                by_hand(tasks).backward()
            torch.nn.utils.clip_grad_norm_(list(named.values()), CLIP)
            others.param_groups[0]["lr"] = rate
            others.step()
            for p in encoder:
                p.data -= rate * p.grad / (p.grad.abs() + 3.2e-6 * setup.queries)
    trained = dict(fit.named_parameters())
    for name, p in named.items():
        torch.testing.assert_close(trained[name], p, rtol=1e-5, atol=1e-6)


def test_the_table_has_means_and_deviations_of_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(memorisation, "ROWS", {"one": Row("maml", (".46", ".13")), "two": Row("maml"), "three": Row("maml")})
    known = dict.fromkeys(("mse10", "median5", "median10", "training_mse", "training_information", "new_information"), 0.25)
    for seed, error in ((0, 0.5), (1, 0.7)):
        row = known | {"mse5": error, "adapted_information": None, "shared_rate": 12.0, "pac_bayes": 3.0}
        (tmp_path / f"{seed}-one.json").write_text(json.dumps(row))
    (tmp_path / "0-two.json").write_text(json.dumps(known | {"mse5": None, "adapted_information": 1.0, "code_rate": 0.5}))
    head, one, two = (line.split("  ") for line in table(tmp_path).splitlines() if line.strip())
    found = [" ".join(part for part in line if part).split() for line in (one, two)]
    assert head[0] == "method"
    assert found[0][:4] == ["one", "0.600", f"({0.2 / math.sqrt(2):.3f})", "0.250"]
    assert "12" in found[0]
    assert "once" in " ".join(found[0])
    assert found[1][:3] == ["two", "-", "0.250"]
    assert "0.50" in found[1]


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    done = []

    def cell(row, schedule, network):
        done.append((row.method, schedule.tasks, schedule.seed, network.name))
        values = ("mse5", "mse10", "median5", "median10", "training_mse")
        return dict.fromkeys((*values, "training_information", "new_information", "adapted_information"), 0.5)

    monkeypatch.setattr(memorisation, "cell", cell)
    asked = ["MR-MAML (A), 1, at means", "CNP"]
    for _ in range(2):
        memorisation.main([str(tmp_path / "runs"), "--seed", "3", "--updates", "7", "--only", *asked])
    assert [(tasks, seed, name) for _, tasks, seed, name in done] == [
        (70, 3, "3-mr_maml__a___1.safetensors"),
        (70, 3, "3-cnp.safetensors"),
    ]
    assert capsys.readouterr().out.count("0.500") == 2 * 2 * 8


@pytest.mark.slow
def test_a_cell_is_trained_once_and_tested_at_draws_and_at_means(tmp_path, monkeypatch):
    path, schedule = tmp_path / "net.safetensors", MetaSchedule(30, batch=10, seed=0)
    for name, value in {"TEST_TASKS": 17, "DEPENDENT": 17, "TOLD": 1}.items():
        monkeypatch.setattr(memorisation, name, value)
    rows = (ROWS["MR-MAML (A), 1"], ROWS["MR-MAML (A), 1, at means"])
    rows = [row._replace(method=f"{row.method}:test_steps=3") for row in rows]
    draws, means = (memorisation.cell(row, schedule, path) for row in rows)
    assert draws["seconds"] == means["seconds"] > 0
    assert draws["mse5"] != means["mse5"]
    assert draws["code_rate"] > 0
    assert "code_rate" not in means
