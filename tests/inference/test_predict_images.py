"""``python -m inference.predict`` on one's own images: table, sheet, and what it refuses in one line."""

import csv
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from data.sources.one_shot_runs import one_shot_runs
from inference.meta.learner import FittedLearner
from inference.meta.options import SibOptions
from inference.meta.stages import embed_items
from inference.predict import PredictOptions, lakes_runs
from inference.predict import main as predict
from inference.runs.folder import RunFolder
from models.networks.feature_network import FeatureNetwork
from tests.conftest import marked_images
from tests.data.sources.test_one_shot_runs import draw_runs
from tests.inference.meta.test_learner import build
from tests.inference.test_svi_sib import error_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An untrained learner in a file, weights of another network in one, and images of two classes, by class and flat."""
    root, data = tmp_path_factory.mktemp("own"), marked_images()
    network = FeatureNetwork("conv4-8", data.image_shape).eval()
    build(SibOptions(beta=0.1, progress=False), embed_items(network, data.train), network, "own").save(root / "sib.safetensors")
    torch.save(resnet18().state_dict(), root / "resnet18.pth")
    for i, image in enumerate(data.test.items[:8]):
        part, kind = ("support", "query")[i % 2], ("cat", "dog")[i // 4]
        for folder in (root / part / kind, root / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).resize((40, 30)).save(folder / f"{i}.png")
    return root


def test_a_table_and_a_sheet(place, tmp_path, capsys):
    given = ["--support", str(place / "support"), "--query", str(place / "query"), "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    for left in (".predictions.0.12.csv", ".sheet.0.12.png"):  # by a process that was killed
        (tmp_path / "out" / left).touch()
    predicted = predict(["--run", str(place / "sib.safetensors"), *given])
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["true"] for row in rows] == ["cat", "cat", "dog", "dog"]
    assert [row["predicted"] for row in rows] == predicted.names
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["predictions.csv", "sheet.png"]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size[0] > 600
    printed = capsys.readouterr().out
    assert "2 classes, 4 labelled images, 4 queries" in printed
    assert "accuracy " in printed


def test_a_backbone_alone(place, tmp_path, capsys):
    given = ["--support", str(place / "support"), "--query", str(place / "flat"), "--out", str(tmp_path), "--image-size", "32"]
    predict(["--backbone", "resnet18", "--weights", str(place / "resnet18.pth"), *given])
    assert "accuracy" not in capsys.readouterr().out
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 9


def test_a_shell_makes_several_words_of_a_pattern(place, tmp_path):
    files = [str(file) for file in sorted((place / "flat").glob("*.png"))]
    given = ["--support", str(place / "support"), "--out", str(tmp_path), "--samples", "2"]
    several = predict(["--run", str(place / "sib.safetensors"), "--query", *files, *given])
    commas = predict(["--run", str(place / "sib.safetensors"), *given, "--query", ",".join(files)])
    assert len(several) == len(files) == 8
    assert torch.equal(several.probabilities, commas.probabilities)


def test_errors_leave_nothing_behind(place, tmp_path, capsys):
    support, query, run = (["--support", place / "support"], ["--query", place / "query"], ["--run", place / "sib.safetensors"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"no image")
    out = ["--out", tmp_path / "out"]
    for given, message in (
        ([*run, *support], "--support (labelled) and --query together"),
        ([*support, *query], "give either --run"),
        ([*support, *query, "--backbone", "resnet18"], "--backbone resnet18 needs --weights"),
        ([], "give --run"),
        ([*run, *support, "--query", tmp_path / "bad"], "cannot read the image"),
        ([*run, *support, "--query", tmp_path / "none"], "no such file or folder"),
        ([*run, *support, *query, "--variant", "x", "--steps", "-1"], "--steps -1"),
        (["--run", tmp_path, *support, *query], "not a run folder"),
        ([*run, *support, *query, "--way", "3"], "--way 3 says nothing of images"),
        ([*run, *support, *query, "--one-shot-runs", "x"], "--one-shot-runs x says nothing of images"),
        ([*run, "--one-shot-runs", "x", "--tasks", "3"], "--tasks 3 says nothing of the tasks in --one-shot-runs"),
        ([*run, *support, *query, "--image-size", "32"], "--image-size 32 says nothing"),
        ([*support, *query, "--backbone", "resnet18", "--weights", "x.pth", "--variant", "y"], "--variant y says nothing"),
    ):
        assert message in error_of([*map(str, given), *map(str, out)], capsys, predict)
    assert not (tmp_path / "out").exists()
    for barred in (tmp_path / "bad" / "broken.png", tmp_path / "bad" / "broken.png" / "out"):
        given = [*run, *support, "--query", tmp_path / "none", "--out", barred]  # known before images are looked for
        assert f"--out {barred} cannot be made" in error_of([*map(str, given)], capsys, predict)


def test_lakes_one_shot_runs(place, tmp_path):
    options = PredictOptions(run=str(place / "sib.safetensors"), one_shot_runs=str(draw_runs(tmp_path / "all_runs")), steps=1)
    learner = FittedLearner.load(options.run)
    records, said = lakes_runs(options, learner, RunFolder(place))
    assert [(r.steps, r.way, r.shot, r.queries, r.episodes, r.within_alphabet) for r in records] == [
        (k, 4, 1, 1, 3, True) for k in (0, 1)
    ]
    tasks = one_shot_runs(options.one_shot_runs, learner.network.image_shape[-1])
    scores = learner.evaluate_tasks(tasks, steps=1)
    assert [(r.accuracy, r.nll) for r in records] == [(score.accuracy, score.nll) for score in scores.values()]
    assert said == "3 one-shot runs of 4 classes, each of one alphabet"
    turned, _ = lakes_runs(replace(options, invert=True), learner, RunFolder(place))
    assert turned[0].nll != records[0].nll
