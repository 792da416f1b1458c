"""A method with a network of its own: trained without it and with it, and what validates better is kept."""

import pytest
import torch

from inference.meta import method_training
from inference.meta.family_options import MetaOptions
from inference.meta.method_training import BEFORE
from inference.meta.stages import fit
from inference.meta.training import MetaTraining
from inference.meta.tuning import ImageTraining
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_features, load_tensors
from models.networks.feature_network import FeatureNetwork
from tests.conftest import marked_images

NAME = "anil-linear-delta-k5"
OPTIONS = {
    **{"way": 3, "queries": 4, "tasks": 32, "batch": 4, "validations": 2, "validation_tasks": 10, "progress": False},
    **{"methods": "anil", "train_features": "all", "network_tasks": 16, "network_learning_rate": 1e-3, "backbone": "conv4-4"},
}


@pytest.fixture(scope="module")
def images():
    return marked_images(classes=6, images=10, image_size=16)


@pytest.fixture
def trained(monkeypatch):
    """What was trained: the stage, the module, what it had before and what it had afterwards."""
    found, train = [], method_training.train

    def watched(module, loop, run, stage, **options):
        before = {name: value.clone() for name, value in module.state_dict().items()}
        train(module, loop, run, stage, **options)
        found.append((stage, module, before, {name: value.clone() for name, value in module.state_dict().items()}))

    monkeypatch.setattr(method_training, "train", watched)
    return found


@pytest.fixture
def judged(monkeypatch):
    """Validation of a method on given features costs 2, of a network trained with it what is set."""
    losses, validate = {"tuned": 1.0}, MetaTraining.validate

    def judge(module, *processes):
        return {**validate(module, *processes), "val/loss": losses["tuned"] if isinstance(module, ImageTraining) else 2.0}

    monkeypatch.setattr(MetaTraining, "validate", judge)
    return losses


def run_of(path, images, network=None, **changes):
    run = RunFolder.create(path, "meta", "")
    (learner,) = fit(MetaOptions(**{**OPTIONS, "epochs": 0, **changes}), images, run, network).values()
    return learner, run


def part(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_from_a_pretrained_network_the_method_is_trained_on_its_features_and_with_it_from_the_same_start(
    tmp_path, images, trained, judged, monkeypatch
):
    network = FeatureNetwork("conv4-4", images.image_shape)
    learner, run = run_of(tmp_path / "run", images, network)
    (first, on_features, start, ready), (second, on_images, again, end) = trained
    assert (first, second) == (f"{NAME}-{BEFORE}", NAME)
    assert (type(on_features), type(on_images)) == (MetaTraining, ImageTraining)
    before, after = on_features.schedule, on_images.schedule
    assert (before.tasks, before.batch, after.tasks, after.batch) == (32, 4, 16, 4)
    assert (after.learning_rate, after.feature_learning_rate) == (before.learning_rate, before.feature_learning_rate)
    assert on_images.network_learning_rate == 1e-3
    for one, other in ((start, ready), (again, end)):
        assert not same(part(one, "objective."), part(other, "objective."))
    assert same(part(start, "objective."), part(again, "objective."))
    assert same(part(start, "embedding."), part(again, "embedding.space."))
    as_pretrained = load_tensors(run.network)[0]
    assert same(part(again, "embedding.network."), as_pretrained)
    assert not same(part(end, "embedding.network."), as_pretrained)
    assert same(part(end, "embedding.network."), dict(learner.network.state_dict()))
    monkeypatch.setattr(method_training, "train", lambda *given, **options: pytest.fail("it has been trained"))
    fit(MetaOptions(**{**OPTIONS, "epochs": 0}), images, run, network)


@pytest.mark.parametrize("after", [2.0, float("nan")])
def test_a_network_that_was_better_before_stays_and_so_does_the_method(tmp_path, images, trained, judged, capsys, after):
    judged["tuned"] = after
    learner, run = run_of(tmp_path / "run", images, epochs=1)
    (_, _, _, ready), _ = trained
    assert same(dict(learner.network.state_dict()), load_tensors(run.network)[0])
    assert same(dict(learner.space.state_dict()), part(ready, "embedding."))
    assert torch.equal(learner.guide.start.loc, ready["objective.guide.start.loc"])
    assert f"{NAME}: the network stays as pre-trained: validation tasks cost 2.00 nats with it" in capsys.readouterr().out
    torch.testing.assert_close(learner.embedded(images.test).items, load_features(run.features)["test"].items)


def test_from_scratch_all_is_trained_together(tmp_path, images, trained):
    run_of(tmp_path / "run", images)
    ((stage, module, *_),) = trained
    assert (stage, type(module)) == (NAME, ImageTraining)
    assert module.schedule.learning_rate == MetaOptions(**OPTIONS).learning_rate
