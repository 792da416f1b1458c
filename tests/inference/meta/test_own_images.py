"""Files of one's own images: how they are found, what the table says, what the sheet shows."""

import csv
import os
import shutil

import pytest
import torch
from PIL import Image

from data.errors import UserError
from inference.meta.own_images import OwnTask, classify, features_of, first_lines, gaussian_classes, summary, write_table
from inference.meta.sheet import prediction_sheet
from models.networks.feature_network import FeatureNetwork

GREYS = {"night": 10, "noon": 240, "dusk": 120}


@pytest.fixture
def photos(tmp_path):
    """Three classes of flat grey images; queries by class, and one in no class."""
    for part, counts in {"support": {"night": 2, "noon": 1, "dusk": 3}, "query": dict.fromkeys(GREYS, 2)}.items():
        for name, count in counts.items():
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new("L", (20 + i, 24), GREYS[name] + i)
                image.putpixel((3, 3), 255 - GREYS[name])
                image.save(folder / f"{name}{i}.png")
    Image.new("RGB", (30, 20), (20, 20, 20)).save(tmp_path / "query" / "unknown.jpg")
    return tmp_path


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return gaussian_classes(FeatureNetwork("conv4-8", (1, 16, 16)).eval(), "nothing")


def found(photos, query="query"):
    return OwnTask.find(str(photos / "support"), [str(photos / query)])


def test_files_and_classes_are_found(photos):
    task = found(photos)
    assert task.class_names == ("dusk", "night", "noon")
    assert task.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert [file.name for file in task.queries] == [
        *("dusk0.png", "dusk1.png", "night0.png", "night1.png", "noon0.png", "noon1.png", "unknown.jpg")
    ]
    assert task.truth == [0, 0, 1, 1, 2, 2, None]
    assert task.known.tolist() == [0, 1, 2, 3, 4, 5]


def test_patterns_single_files_and_folders_of_one_class(photos):
    assert found(photos, "query/*/night*.png").truth == [1, 1]
    assert found(photos, "query/noon").truth == [2, 2]
    assert found(photos, "query/unknown.jpg").truth == [None]


def test_predictions_are_in_the_order_of_the_files(photos, learner):
    task = found(photos)
    together = classify(learner, task, num_samples=50)
    for i, file in enumerate(task.queries):
        alone = classify(learner, OwnTask.find(str(photos / "support"), [str(file)]), num_samples=50)
        torch.testing.assert_close(alone.probabilities[0], together.probabilities[i], atol=1e-5, rtol=1e-4)


def test_inverted_images_are_read_inverted(photos, learner):
    files = found(photos).support
    upright = features_of(learner, files, invert=False, what="", progress=False)
    assert not torch.allclose(features_of(learner, files, invert=True, what="", progress=False), upright)


def test_table_and_summary(photos, learner, tmp_path):
    task = found(photos)
    predicted = classify(learner, task, num_samples=50)
    text = write_table(tmp_path / "out" / "predictions.csv", task, predicted).read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["file"] for row in rows] == [str(file) for file in task.queries]
    assert [row["true"] for row in rows] == ["dusk", "dusk", "night", "night", "noon", "noon", ""]
    for i, row in enumerate(rows):
        assert row["predicted"] == task.class_names[int(predicted.probabilities[i].argmax())]
        for c, name in enumerate(task.class_names):
            values = [float(row[f"{kind}({name})"]) for kind in ("p", "p5", "p95")]
            expected = [float(t[i, c]) for t in (predicted.probabilities, predicted.lower, predicted.upper)]
            assert values == pytest.approx(expected, rel=1e-5)
        numbers = (predicted.entropy, predicted.mutual_information, predicted.distance)
        assert [float(row[k]) for k in ("entropy", "mutual_information", "distance")] == pytest.approx(
            [float(t[i]) for t in numbers], rel=1e-5
        )
    right = sum(row["predicted"] == row["true"] for row in rows)
    nll = -sum(float(predicted.probabilities[i, c].log()) for i, c in enumerate([0, 0, 1, 1, 2, 2])) / 6
    assert summary(task, predicted).startswith(f"accuracy {100 * right / 6:.1f} % ({right} of 6; 95 % interval ")
    assert f"NLL {nll:.3f}" in summary(task, predicted)
    assert summary(found(photos, "query/unknown.jpg"), predicted) == ""


def test_interval_is_wilsons(photos, learner):
    task = found(photos)
    predicted = classify(learner, task, num_samples=20)
    right = int((predicted.labels[task.known] == task.known_labels).sum())
    p, n, z = right / 6, 6, 1.959964
    middle, width = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = (100 * (middle + sign * width) / (1 + z * z / n) for sign in (-1, 1))
    assert f"{low:.1f} to {high:.1f} %" in summary(task, predicted)


def test_the_least_certain_come_first(photos, learner):
    task = found(photos)
    predicted = classify(learner, task, num_samples=20)
    lines = first_lines(task, predicted, 3).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith(task.queries[int(predicted.entropy.argmax())].name)


def test_sheet_names_classes_and_marks_mistakes(photos, learner):
    task = found(photos)
    predicted = classify(learner, task, num_samples=20)
    figure = prediction_sheet(task, predicted, "title")
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[:3] == ["dusk", "night", "noon"]
    assert len(titles) == 3 + 7
    right = int((predicted.labels[task.known] == task.known_labels).sum())
    assert sum("✓" in title for title in titles) == right
    assert sum("✗" in title for title in titles) == 6 - right


def test_errors(photos):
    with pytest.raises(UserError, match="holds one class"):
        OwnTask.find(str(one(photos)), ["x"])
    with pytest.raises(UserError, match="no such file or folder"):
        OwnTask.find(str(photos / "support"), ["nowhere"])
    with pytest.raises(UserError, match="is no pattern"):
        OwnTask.find(str(photos / "support"), ["a**.png"])
    with pytest.raises(UserError, match="nothing matches"):
        OwnTask.find(str(photos / "support"), ["nowhere/*.png"])


def one(photos):
    """A folder with a single class."""
    folder = photos / "single" / "night"
    folder.mkdir(parents=True)
    Image.new("L", (9, 9)).save(folder / "a.png")
    return folder.parent


def test_any_name_of_a_file_or_class_is_written(photos, learner, tmp_path):
    """Names that are no UTF-8, or that matplotlib would take for a formula."""
    (photos / "support" / "noon").rename(photos / "support" / "no $_$ on")
    odd = os.fsencode(photos / "query") + b"/\xff.png"
    try:
        shutil.copy(photos / "support" / "dusk" / "dusk0.png", odd)
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    task = OwnTask.find(str(photos / "support"), [os.fsdecode(odd)])
    predicted = classify(learner, task, num_samples=20)
    text = write_table(tmp_path / "predictions.csv", task, predicted).read_text(encoding="utf-8")
    assert "\\udcff.png" in text
    assert "\\udcff.png" in first_lines(task, predicted).encode("utf-8").decode()
    prediction_sheet(task, predicted, "a $_$ title").canvas.draw()


def test_a_learner_without_parameters_moves_with_its_features(photos, learner):
    task = found(photos)
    single, double = classify(learner, task, num_samples=20), classify(learner.to(torch.float64), task, num_samples=20)
    assert double.probabilities.dtype == torch.float64
    torch.testing.assert_close(double.probabilities, single.probabilities.double(), atol=1e-4, rtol=0)
