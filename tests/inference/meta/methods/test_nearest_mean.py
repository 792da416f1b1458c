"""The nearest class mean as a program: against the formula, and through every part of the seam."""

import json

import pyro
import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from inference.meta.methods.nearest_mean import NearestMeanModel
from inference.predict import main as predict
from inference.svi_sib import main as svi_sib
from models.tasks.predictors import CosinePredictor, DistancePredictor
from tests.conftest import gaussian_bank
from tests.inference.test_svi_sib import TINY, feature_file


def test_it_is_the_nearest_class_mean():
    episode = EpisodeSampler(gaussian_bank(noise=2.0), TaskSpec(way=4, shot=3, queries=5)).sample(6, seed=1)
    means = torch.stack([episode.support_x[:, 3 * c : 3 * c + 3].mean(1) for c in range(4)], dim=1)
    nearest = torch.cdist(episode.query_x, means).argmin(-1)
    trace = pyro.poutine.trace(NearestMeanModel(DistancePredictor())).get_trace(*episode.unlabelled())
    assert torch.equal(trace.nodes["labels"]["fn"].logits.argmax(-1), nearest)


def test_tasks_do_not_leak_and_the_scale_learns():
    episode = EpisodeSampler(gaussian_bank(), TaskSpec(way=4, shot=3, queries=5)).sample(3, seed=1)
    model = NearestMeanModel(CosinePredictor())
    logits = [
        pyro.poutine.trace(model).get_trace(*e).nodes["labels"]["fn"].logits for e in (episode, episode.tasks(slice(1, 2)))
    ]
    torch.testing.assert_close(logits[0][1], logits[1][0])
    assert model.predictor.log_scale.requires_grad


def test_its_temperature_is_that_of_tasks_of_this_shot_and_way():
    model = NearestMeanModel(DistancePredictor())
    model.likelihood.powers.copy_(torch.tensor([0.3, -0.2]))
    found = {}
    for shot, way in ((1, 4), (3, 4), (1, 6)):
        episode = EpisodeSampler(gaussian_bank(), TaskSpec(way=way, shot=shot, queries=5)).sample(2, seed=1)
        logits = pyro.poutine.trace(model).get_trace(*episode).nodes["labels"]["fn"].logits
        means = episode.support_x.unflatten(1, (way, shot)).mean(2)
        expected = model.likelihood.given(shot, way)(model.predictor(episode.query_x, means)).logits
        torch.testing.assert_close(logits, expected)
        found[shot, way] = float(model.likelihood.given(shot, way).inverse)
    assert len(set(found.values())) == 3


@pytest.mark.slow
def test_it_appears_in_table_pictures_predict_and_run_folder(tmp_path, capsys):
    arguments = ["--features", feature_file(tmp_path), "--methods", "sib,nearest-mean", "--beta", "0.1", *TINY]
    run = svi_sib([*arguments, "--out", str(tmp_path / "run"), "--protocols", "standard"])
    assert "(nearest-mean)" in capsys.readouterr().out
    records = json.loads(run.metrics.read_text())["results"]
    (tested,) = (r for r in records if r["method"] == "nearest-mean" and r["split"] == "test")
    assert (tested["rate"], tested["beta"], tested["posterior"], tested["neg_elbo"]) == (None, None, None, None)
    assert tested["accuracy"] > 0.8
    assert (run.checkpoints / "nearest-mean-distance-k0.safetensors").exists()
    assert {"accuracy_by_step", "reliability", "training_curves"} <= {p.stem for p in run.plots.glob("*.png")}
    predicted = predict(["--run", str(run.path), "--variant", "nearest-mean-distance-k0", "--way", "7", "--tasks", "20"])
    assert [r.method for r in predicted] == ["nearest-mean"]
