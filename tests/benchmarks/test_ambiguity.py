"""Rows of benchmarks/ambiguity.py: their β, their noise, their draws and the picture of them."""

import itertools
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text

from benchmarks.ambiguity import Setting, build, head_of, independent, learned_noise, measure, run_row
from benchmarks.ambiguity_table import COLUMNS, KAPPA, LEARNED, ROWS, Row, frontier, seed_by_seed
from data.ambiguous import OnePairSampler
from data.episodes import Attributes
from inference.evaluation.predictive import CommonNoise, trace_guide
from inference.meta.settings import MetaSchedule
from inference.svi_meta import ANSWERS
from tests.data.test_ambiguous import attributes, numbered


@pytest.fixture
def setting():
    """Heads on attributes and 1, tested on two tasks of each kind."""
    bare = numbered((45,) * 8)
    seen = torch.cat([2.0 * attributes(bare.items) - 1, torch.ones(len(bare), 1)], -1)
    parts = dict.fromkeys(("train", "val", "test"), replace(bare, items=seen))
    make = partial(head_of, 4)
    return Setting(parts, make, size=1.0, scale=0.3, tests=2, draws=40, schedule=MetaSchedule(4, batch=2))


@pytest.mark.parametrize("row", ROWS)
def test_a_kl_weight_beside_a_mean_loss_is_beta(setting, row):
    objective = build(row, setting, 0.7)
    kappa = float(row.partition("-")[2]) if row.startswith("platipus") else 0.0
    assert objective.elbo.beta == pytest.approx(30 * kappa)
    assert (getattr(objective.guide, "posterior", None) is not None) is (kappa > 0)
    drawn = {"maml": None, LEARNED: 0.7} | {name: float(name[6:]) for name in ROWS if name.startswith("noise-0")}
    assert learned_noise(objective.model) == pytest.approx(drawn.get(row, 0.3 if kappa else 1.0), abs=1e-5)


def test_noise_is_what_platipus_has_learned(setting):
    tasks = OnePairSampler(setting.parts["train"])
    with pytest.raises(SystemExit, match="add it"):
        run_row(LEARNED, setting, tasks, {})
    done = {KAPPA: run_row(KAPPA, setting, tasks, {})}
    assert done[KAPPA].noise != pytest.approx(0.3, abs=1e-4)
    assert run_row(LEARNED, setting, tasks, done).noise == pytest.approx(done[KAPPA].noise, abs=1e-5)  # and a floor


def test_every_other_draw_is_independent(setting):
    guide = build("noise-0.3", setting).guide
    episode = OnePairSampler(setting.parts["train"]).sample(3, seed=0)
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


def test_tasks_are_called_as_in_the_command():
    assert f"{Attributes.UNAMBIGUOUS} %" in {column.header for column in COLUMNS}
    assert all(f"{kind}: " in ANSWERS for kind in (Attributes.UNAMBIGUOUS, Attributes.AMBIGUOUS))


def test_curves_of_a_seed_go_by_the_size_of_the_noise():
    measures = dict.fromkeys(("accuracy", "many", "reached", "nll"), (0.5, 0.1))
    rows = [Row(name, seed, measures | {"few": (i + seed, 0.1)}, None, 1.0) for seed in (0, 1) for i, name in enumerate(ROWS)]
    figure = frontier(rows)
    lines = [{line.get_label(): list(line.get_xdata()) for line in axis.get_lines()} for axis in figure.axes]
    assert lines[1]["MAML with noise, by σ"] == [2, 3, 4, 5, 6]
    assert lines[0]["PLATIPUS, by κ"] == [6, 7, 8, 9]
    assert [axis.get_title() for axis in figure.axes] == ["seed 0", "seed 1"]
    said = {text.get_text() for text in figure.axes[1].texts}
    assert said == {"0.1", "0.2", "0.3", "0.5", "1", "0.02", "0.05", "0.15"}
    plt.close(figure)
    assert seed_by_seed(rows).count(" / ") == 5 * len(ROWS)


def test_labels_hide_neither_markers_nor_each_other():
    """At what was measured on one seed, where markers are nearest to each other."""
    coverage = (1.000, 1.825, 2.153, 2.253, 2.318, 2.356, 2.308, 2.303, 2.349, 2.123, 2.338)
    nll = (0.794, 0.661, 0.514, 0.418, 0.315, 0.224, 0.218, 0.246, 0.286, 0.538, 0.267)
    names = dict(zip(ROWS, zip(coverage, nll, strict=True), strict=True))
    rows = [Row(name, seed, {"few": (x, 0), "nll": (y, 0)}, None, 1.0) for name, (x, y) in names.items() for seed in range(3)]
    figure = frontier(rows)
    figure.canvas.draw()
    for axis in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the line that leads to the marker
        assert len(boxes) == 9
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        markers = [axis.transData.transform(point) for line in axis.get_lines()[:3] for point in line.get_xydata()]
        assert not any(box.padded(3).contains(*marker) for box in boxes for marker in markers)
        assert all(axis.get_window_extent().padded(2).contains(*corner) for box in boxes for corner in box.corners())
    plt.close(figure)
