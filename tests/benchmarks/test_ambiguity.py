"""The tasks of benchmarks/ambiguity.py: half of them ambiguous, each with the queries of one pair; rows have their β."""

from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch

from benchmarks import ambiguity
from benchmarks.ambiguity import (
    KAPPA,
    LEARNED,
    QUERIES,
    ROWS,
    SHOT,
    OnePair,
    Row,
    Setting,
    build,
    frontier,
    head_of,
    independent,
    learned_noise,
    measure,
    run_row,
)
from inference.evaluation.predictive import CommonNoise, trace_guide
from inference.meta.settings import MetaSchedule
from tests.data.test_ambiguous import PAIRS, attributes, numbered


@pytest.fixture
def setting():
    """Heads on attributes and 1, tested on two tasks of each kind."""
    bare = numbered((45,) * 8)
    seen = torch.cat([2.0 * attributes(bare.items) - 1, torch.ones(len(bare), 1)], -1)
    parts = dict.fromkeys(("train", "val", "test"), replace(bare, items=seen))
    make = partial(head_of, 4)
    return Setting(parts, make, size=1.0, scale=0.3, tests=2, draws=40, schedule=MetaSchedule(4, batch=2))


def test_half_of_the_training_tasks_are_ambiguous_and_go_by_a_random_pair():
    episode = OnePair(numbered((45,) * 8)).sample(60, seed=1)
    support, query = (attributes(part) for part in (episode.support_x, episode.query_x))
    assert episode.support_y.shape == (60, 2 * SHOT)
    assert episode.query_y.shape == (60, 2 * QUERIES)
    ambiguous = (support == episode.support_y[..., None]).all((1, 2))
    assert int(ambiguous.sum()) == 30
    by = torch.stack([(query[..., a] * query[..., b] == episode.query_y).all(1) for a, b in PAIRS], -1)
    assert (by.sum(-1) == 1).all()
    assert (by[ambiguous].sum(0) > 3).all()


@pytest.mark.parametrize("row", ROWS)
def test_a_kl_weight_beside_a_mean_loss_is_beta(setting, row):
    objective = build(row, setting, 0.7)
    kappa = float(row.partition("-")[2]) if row.startswith("platipus") else 0.0
    assert objective.elbo.beta == pytest.approx(30 * kappa)
    assert (getattr(objective.guide, "posterior", None) is not None) is (kappa > 0)
    drawn = {"maml": None, LEARNED: 0.7} | {name: float(name[6:]) for name in ROWS if name.startswith("noise-0")}
    assert learned_noise(objective.model) == pytest.approx(drawn.get(row, 0.3 if kappa else 1.0), abs=1e-5)


def test_noise_is_what_platipus_has_learned(setting):
    tasks = OnePair(setting.parts["train"])
    with pytest.raises(SystemExit, match="add it"):
        run_row(LEARNED, setting, tasks, {})
    done = {KAPPA: run_row(KAPPA, setting, tasks, {})}
    assert done[KAPPA].noise != pytest.approx(0.3, abs=1e-4)
    assert run_row(LEARNED, setting, tasks, done).noise == pytest.approx(done[KAPPA].noise, abs=1e-5)  # and a floor


def test_every_other_draw_is_independent(setting):
    guide = build("noise-0.3", setting).guide
    episode = OnePair(setting.parts["train"]).sample(3, seed=0)
    with torch.no_grad(), CommonNoise(0):
        drawn = trace_guide(guide, episode, 8).nodes["weights"]["value"]
    centred = independent(drawn) - drawn.mean(0)
    torch.testing.assert_close(independent(drawn) + drawn[1::2], (2 * drawn.mean(0)).expand(4, *drawn.shape[1:]))
    assert torch.pdist(centred.flatten(1)).min() > 0.1
    assert torch.pdist(torch.cat([centred[:1], -centred[1:]]).flatten(1)).min() > 0.1


def test_a_few_draws_cover_no_more_than_many(setting):
    found = measure(build("noise-1", setting), setting)
    assert 1 <= found["few"][0] < found["many"][0] <= 3
    assert measure(build("maml", setting), setting)["many"][0] == 1


def test_curves_of_a_seed_go_by_the_size_of_the_noise():
    measures = {name: (0.5, 0.1) for name in ("accuracy", "many", "reached", "nll")}
    rows = [Row(name, seed, measures | {"few": (i + seed, 0.1)}, None, 1.0) for seed in (0, 1) for i, name in enumerate(ROWS)]
    figure = frontier(rows)
    lines = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].get_lines()}
    assert lines["MAML with noise, by σ, seed 1"] == [2, 3, 4, 5, 6]
    assert lines["PLATIPUS, by κ, seed 0"] == [6, 7, 8, 9]
    assert {text.get_text() for text in figure.axes[0].texts} == {"0.1", "0.2", "0.3", "0.5", "1", "0.02", "0.05", "0.15"}
    plt.close(figure)
    assert ambiguity.seed_by_seed(rows).count(" / ") == 5 * len(ROWS)
