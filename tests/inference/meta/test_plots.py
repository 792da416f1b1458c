"""SIB's pictures say what the records say."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

from data.episodes import Episode
from inference.meta.plots import (
    accuracy_by_step,
    objective_by_step,
    rate_distortion_curve,
    shorten,
    task_sheet,
    training_curves,
    weight_posterior,
)
from inference.meta.variants import Variant
from tests.pictures import assert_readable


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def record(predictor: str, beta: float, rate: float, distortion: float, accuracy: float) -> SimpleNamespace:
    return SimpleNamespace(predictor=predictor, beta=beta, rate=rate, distortion=distortion, accuracy=accuracy, ci95=0.01)


def test_rates_stand_where_they_are_and_a_rate_of_zero_at_zero():
    records = [record("cosine", 10.0, 0.0, 120.7, 0.2), record("cosine", 1.0, 7.8, 110.8, 0.5)]
    left, right = rate_distortion_curve([*records, record("distance", 1.0, 10.7, 103.2, 0.498)]).axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in left.lines if not line.get_label().startswith("_")}
    assert curves["cosine"] == [[7.8, 110.8], [0.0, 120.7]], "in the order of β"
    assert curves["distance"] == [[10.7, 103.2]]
    assert right.lines[0].get_ydata().tolist() == [50.0, 20.0]


def test_many_stages_are_told_apart():
    history = {f"stage {i}": {"val/accuracy": ([1, 2], [0.2, 0.3]), "val/rate": ([1, 2], [3.0, 4.0])} for i in range(20)}
    figure = training_curves(history, about="glyphs, 5-way 1-shot")
    assert_readable(figure, "glyphs, 5-way 1-shot")
    lines = figure.axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_guides_without_a_rate_have_no_curve_of_it():
    point = {"val/accuracy": ([1, 2], [0.2, 0.3]), "val/distortion": ([1, 2], [9.0, 8.0]), "val/rate": ([1, 2], [0.0, 0.0])}
    random = point | {"val/rate": ([1, 2], [0.0, 4.0])}
    figure = training_curves({"point": point, "random": random}, about="glyphs")
    assert [len(axis.lines) for axis in figure.axes] == [2, 2, 1]
    assert figure.axes[2].get_yscale() == "symlog", "a rate of 0 among others stays in sight"
    figure = training_curves({"point": point}, about="glyphs")
    assert [axis.get_ylabel() for axis in figure.axes] == ["accuracy (%)", "distortion (nats per task)"]
    assert_readable(figure, "glyphs")


def step(steps, accuracy, balanced=True, trained=2, method="sib", selected=True, objective=80.0):
    return SimpleNamespace(
        split="test",
        steps=steps,
        accuracy=accuracy,
        ci95=0.01,
        balanced=balanced,
        trained_steps=trained,
        method=method,
        predictor="distance",
        beta=0.1,
        way=5,
        guess=120.7,
        objective=objective,
        selected=selected,
    )


def test_accuracy_stands_between_chance_and_what_induction_gets():
    rows = [step(k, 0.6 + k / 20, balanced) for balanced in (True, False) for k in range(3)]
    others = [step(0, 0.58, trained=0), step(0, 0.55, trained=0, method="nearest-mean", selected=False)]
    figure = accuracy_by_step([*rows, *others], about="glyphs, 5-way 1-shot, β = 0.1")
    assert_readable(figure, "glyphs, 5-way 1-shot, β = 0.1")
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["balanced tasks", "imbalanced tasks"]
    levels = {line.get_label(): line.get_ydata()[0] for line in left.lines if not line.get_label().startswith("_")}
    assert levels["inductive: trained with K = 0"] == pytest.approx(58)
    assert levels["nearest-mean (inductive)"] == pytest.approx(55)
    assert levels["chance: 1 in 5"] == pytest.approx(20)
    assert left.containers[0][0].get_ydata().tolist() == pytest.approx([60, 65, 70])
    assert [text.get_text() for text in left.texts] == ["60.0", "65.0", "70.0", "58.0"], "the table's numbers"


def test_objectives_stand_below_what_guessing_costs():
    figure = objective_by_step([step(k, 0.6, objective=90.0 - k) for k in range(3)], about="glyphs")
    assert_readable(figure, "glyphs")
    levels = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert list(levels["β = 0.1"]) == [90.0, 89.0, 88.0]
    assert levels["guessing"][0] == 120.7


class Posterior:
    """Of two classes, in two dimensions."""

    def __init__(self, probabilities):
        self.table, self.guide = torch.tensor(probabilities), SimpleNamespace(steps=3)
        self.loc = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        self.query_x = torch.rand(1, len(probabilities), 2)

    def probabilities(self):
        return self.table[None]

    def sample(self, draws):
        return self.loc + torch.zeros(draws, 1, 2, 2)


def test_a_sheet_has_classes_by_name_and_marks_what_is_wrong():
    images = torch.zeros(1, 2, 1, 8, 8, dtype=torch.uint8)
    task = Episode(images, torch.tensor([[0, 1]]), images, torch.tensor([[0, 0]]))
    figure = task_sheet(task, Posterior([[0.9, 0.1], [0.4, 0.6]]), names=["A/letter one", "B/two"], shown=2, about="glyphs")
    assert_readable(figure, "glyphs")
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert titles[:2] == ["1: a letter one", "2: b two"]
    assert {"0.90 ✓", "0.60 ✗"} <= set(titles)
    below = [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes if axis.patches]
    assert below[0] == ["1\n▲", "2"]


def test_weights_have_classes_by_name_and_both_accuracies():
    right, half = Posterior([[0.9, 0.1], [0.2, 0.8]]), Posterior([[0.9, 0.1], [0.8, 0.2]])
    figure = weight_posterior(half, right, torch.tensor([[0, 1]]), names=["LEFT", "RIGHT"], about="glyphs")
    assert_readable(figure, "glyphs")
    assert [axis.get_title() for axis in figure.axes] == [
        "from the labelled images alone: 50 % right",
        "after 3 steps on the unlabelled queries: 100 % right",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["1: left", "2: right"]


def test_names_in_words():
    assert Variant("sib", "distance", "gaussian", 0.1, 3).title == "distance, β = 0.1, K = 3"
    assert Variant("nearest-mean", "cosine", None, None, 0).title == "nearest-mean, cosine, K = 0"
    assert Variant("sib", "cosine", "delta", None, 3).title == "cosine, delta, K = 3"
    assert shorten("CYRILLIC CAPITAL LETTER ZHE WITH DESCENDER") == "cyrillic capital\nletter zhe with\ndescender"
