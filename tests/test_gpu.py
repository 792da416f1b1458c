"""On a GPU: commands end to end, training by graphs, and the numbers of a CPU. ``make gpu`` runs them."""

import copy

import pytest
import torch
from torch import nn

from data.episodes import EpisodeSampler, TaskSpec
from data.sources.glyphs import load_digits
from inference.elbo import RateDistortionELBO
from inference.evaluation.evaluate import evaluate_readings, readings
from inference.meta.settings import MetaSchedule
from inference.meta.training import MetaTraining
from inference.predict import main as predict
from inference.runs.folder import RunFolder
from inference.runs.graphs import CapturedTerms
from inference.runs.tensors import near
from inference.runs.training import Loop, train
from inference.svi_bnn import main as svi_bnn
from inference.svi_meta import main as svi_meta
from inference.svi_sib import main as svi_sib
from inference.svi_vid import main as svi_vid
from sibyl import BNN
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import build
from tests.inference import test_svi_bnn, test_svi_sib, test_svi_vid
from tests.inference.test_svi_sib import draw_images, feature_file

pytestmark = pytest.mark.gpu
ON_GPU = ["--device", "cuda"]


@pytest.fixture
def graphs(monkeypatch) -> list[CapturedTerms]:
    """Of every graph that training captures, whose it is; shapes are captured when they come for the first time."""
    made: list[CapturedTerms] = []
    capture = CapturedTerms.capture
    monkeypatch.setattr(CapturedTerms, "capture", lambda self, *args: (capture(self, *args), made.append(self))[0])
    monkeypatch.setattr(CapturedTerms, "worth", 1)
    return made


def captured(graphs: list[CapturedTerms]) -> int:
    """How many graphs there are."""
    assert not any(one.failed for one in graphs)
    return len(graphs)


def test_sib_on_features(tmp_path, graphs):
    run = svi_sib([*ON_GPU, "--features", feature_file(tmp_path), *test_svi_sib.TINY, "--out", str(tmp_path / "run")])
    assert run.metrics.exists()
    assert captured(graphs) > 1  # of tasks of several shapes


@pytest.mark.parametrize("train_features", ["linear", "all"])
def test_sib_on_images(tmp_path, train_features):
    folder = draw_images(tmp_path / "images")
    network = ["--backbone", "conv4-16", "--image-size", "16", "--epochs", "2", "--train-features", train_features]
    size = ["--tasks", "32", "--network-tasks", "8", "--way", "2", "--queries", "3", "--progress", "false"]
    size += ["--validations", "1", "--validation-tasks", "10", "--test-tasks", "10", "--train-way", "2", "--beta", "0.1"]
    run = svi_sib([*ON_GPU, "--data", "folder", "--root", str(folder), *network, *size, "--out", str(tmp_path / "run")])
    support, query = folder / "class00", folder / "class01"
    both = tmp_path / "support"
    both.mkdir()
    for one in (support, query):
        (both / one.name).symlink_to(one)
    predict(
        ["--run", str(run.path), "--support", str(both), "--query", str(query), *ON_GPU, "--out", str(tmp_path / "answers.csv")]
    )


def test_methods(tmp_path):
    size = [*test_svi_sib.TINY, "--out", str(tmp_path / "run")]
    assert svi_meta([*ON_GPU, "--features", feature_file(tmp_path), *size]).metrics.exists()


def test_bayesian_networks(tmp_path, graphs):
    assert svi_bnn([*test_svi_bnn.TINY, *ON_GPU, "--out", str(tmp_path / "run")]).metrics.exists()
    assert captured(graphs)


def test_distillation(tmp_path):
    cache = ["--methods", "student,kd,vid", "--cache", str(tmp_path / "teachers")]
    assert svi_vid([*test_svi_vid.TINY, *cache, *ON_GPU, "--out", str(tmp_path / "run")]).metrics.exists()


def test_training_by_graphs_is_training(tmp_path, graphs):
    """Parameters after two epochs, beside those of a training that launches every kernel."""
    sampler, found = EpisodeSampler(gaussian_bank(), TaskSpec(way=4, shot=1, queries=5)), []
    start = build()
    for number in range(2):
        model, guide = copy.deepcopy(start)
        schedule = MetaSchedule(tasks=64, batch=8, validations=2, validation_tasks=10, seed=4)
        module = MetaTraining(RateDistortionELBO(beta=0.5)(model, guide), sampler, sampler, schedule)
        module.captured.failed = number == 1
        train(module, Loop("cuda", precision="64-true"), RunFolder.create(tmp_path / str(number), "sib", ""), "meta", epochs=2)
        found.append(dict(module.named_parameters()))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert captured(graphs) == 1


@pytest.mark.parametrize("predictor", ["distance", "cosine"])
def test_scores_are_those_of_a_cpu(predictor):
    model, guide = build(predictor=predictor)
    sampler, found = EpisodeSampler(gaussian_bank(), TaskSpec(way=4, shot=1, queries=5)), []
    for device in ("cpu", "cuda"):
        on = copy.deepcopy((model, guide))
        scores = evaluate_readings(on[0].to(device), readings(on[1].to(device)), sampler, tasks=70, seed=1)
        found.append([(one.accuracy, one.nll, one.rate, one.distortion) for one in scores.values()])
    for here, there in zip(*found, strict=True):
        assert there == pytest.approx(here, rel=1e-9)


def test_items_lie_where_steps_are_taken_as_far_as_they_fit(monkeypatch):
    bank, gpu = gaussian_bank(), torch.device("cuda")
    there = near(bank, gpu)
    assert there.items.is_cuda
    assert not there.labels.is_cuda  # samplers count them
    torch.testing.assert_close(there.items.cpu(), bank.items, rtol=0, atol=0)
    task = EpisodeSampler(there, TaskSpec(way=4)).sample(3, seed=1)
    torch.testing.assert_close(
        task.query_x.cpu(), EpisodeSampler(bank, TaskSpec(way=4)).sample(3, seed=1).query_x, rtol=0, atol=0
    )
    assert near(bank, torch.device("cpu")) is bank
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * bank.items.nbytes, 10**12))
    assert near(bank, gpu) is bank


def test_fitted_here_and_read_there():
    digits = load_digits(16)
    x, y = digits.train.items[:200].float() / 255, digits.train.labels[:200]
    bnn = BNN.fit(nn.Sequential(nn.Flatten(), nn.Linear(256, 20), nn.ReLU(), nn.Linear(20, 10)), x, y, epochs=2)
    here, there = bnn.predict(x), bnn.to("cuda").predict(x)
    torch.testing.assert_close(there.probabilities.cpu(), here.probabilities, atol=1e-5, rtol=0)
