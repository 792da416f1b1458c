"""SIB's pictures say what the records say."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

from inference.meta.plots import rate_distortion_curve, training_curves


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
    lines = training_curves(history).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20
