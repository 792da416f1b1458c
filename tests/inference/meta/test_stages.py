"""The stages of a run: which data each sees, and what is trained."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import ShuffleNet_V2_X0_5_Weights, get_model

from data.episodes import EpisodeSampler
from data.errors import UserError
from data.mixed import MixedSampler
from inference.meta import method_training, source, stages
from inference.meta.base_and_new import lwof_schedule
from inference.meta.learner import FittedLearner
from inference.meta.mapping import feature_space
from inference.meta.options import SibOptions
from inference.meta.pretrain import LEARNING_RATE, pretraining
from inference.meta.settings import GuideSettings, MetaSchedule, PretrainSettings, settings
from inference.meta.sib import SIB
from inference.meta.stages import (
    check_training,
    fit,
    hold_out,
    learned_features,
)
from inference.meta.tasks import deciding, task_sampler
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_features, load_tensors, save_features
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace
from tests.conftest import marked_images, marked_splits, splits_of

TINY = {"way": 3, "queries": 4, "tasks": 16, "validations": 1, "validation_tasks": 20, "progress": False, "beta": 0.1}


def test_guides_train_on_training_classes_and_are_validated_on_validation_classes(tmp_path, monkeypatch):
    file = save_features(tmp_path / "marked.safetensors", marked_splits())
    seen = []

    class Spy(method_training.MetaTraining):
        def __init__(self, objective, train, validation, schedule, embedding):
            found = [sampler.sample(50, seed=0) for sampler in (train, *validation)]
            seen.extend(splits_of(part) for task in found for part in (task.support_x, task.query_x))
            super().__init__(objective, train, validation, schedule, embedding)

    monkeypatch.setattr(method_training, "MetaTraining", Spy)
    monkeypatch.setattr(FeatureSpace, "normalised", lambda self, features: features)  # marks stay as they are
    options = SibOptions(features=str(file), rank=0, steps=0, train_features="linear", **TINY)
    fit(options, None, RunFolder.create(tmp_path / "run", "sib", ""))
    assert seen[:2] == 2 * [{"train"}]
    assert seen[2:]
    assert all(splits == {"val"} for splits in seen[2:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"holdout": 6}, "has 4 images"),
        ({"holdout": 10}, "cannot hold out 10"),
        ({"rank": 6}, "too large for 6 base classes"),
        ({"way": 7}, "too few for 7-way"),
        ({"backbone": "conv-9000"}, "unknown network"),
    ],
)
def test_what_cannot_be_finished_is_not_begun(options, words, tmp_path):
    """These were found out after pre-training, in a run folder that stayed behind."""
    given = {"backbone": "conv4-4", **TINY, **options}
    with pytest.raises(UserError, match=words):
        check_training(SibOptions(**given), marked_images(classes=6, images=10))
    with pytest.raises(UserError, match=words):
        SIB.fit(marked_images(classes=6, images=10), out=str(tmp_path / "run"), **given)
    assert not (tmp_path / "run").exists()


def test_a_given_network_is_used_as_it_is():
    images = marked_images(classes=6, images=10)
    network = FeatureNetwork("conv4-4", images.image_shape)
    fitted = SIB.fit(images, network=network, steps=0, **TINY)  # whatever the option backbone says
    torch.testing.assert_close(fitted.network.eval()(images.test.items[:3]), network.eval()(images.test.items[:3]))
    with pytest.raises(UserError, match="network takes images of 1×16×16"):
        SIB.fit(marked_images(classes=6, images=10, image_size=20), network=network, steps=0, **TINY)


def test_prior_and_feature_space_come_from_training_classes():
    parts = marked_splits()
    chosen = settings(GuideSettings, SibOptions(rank=2, **TINY))
    space, means = feature_space(chosen, "distance", parts["train"])
    assert means.shape == (6, 2)
    again, _ = feature_space(chosen, "distance", parts["test"])
    assert not torch.allclose(space.directions, again.directions)


def test_embedding_keeps_splits_and_held_out_images_apart(tmp_path):
    images = marked_images(classes=6, images=10)
    run = RunFolder.create(tmp_path / "run", "sib", "")
    options = SibOptions(epochs=0, holdout=4, backbone="conv4-4", **TINY)
    network, features = learned_features(options, images, run)
    assert {split: len(part) for split, part in features.items()} == {"train": 36, "val": 60, "test": 60, "held_out": 24}
    assert load_tensors(run.features)[1]["dataset"] == "marked"
    kept, held = hold_out(images, 4)
    assert splits_of(held.items) == splits_of(kept.train.items) == {"train"}
    torch.testing.assert_close(features["held_out"].items, stages.embed_items(network, held).items)


def test_a_feature_file_keeps_its_name(tmp_path):
    file = save_features(tmp_path / "mine.safetensors", marked_splits(), {"dataset": "birds"})
    run = RunFolder.create(tmp_path / "run", "sib", "")
    learners = fit(SibOptions(features=str(file), rank=0, steps=0, **TINY), None, run)
    assert {learner.dataset for learner in learners.values()} == {"birds"}
    assert load_tensors(run.features)[1]["dataset"] == "birds"
    assert set(load_features(run.features)) == {"train", "val", "test"}


def test_a_method_without_parameters_is_ready_as_it_is(tmp_path, monkeypatch):
    file = save_features(tmp_path / "marked.safetensors", marked_splits())
    monkeypatch.setattr(method_training, "train", lambda *args, **options: pytest.fail("nothing is there to train"))
    build = stages.FittedLearner.build.__func__

    def frozen(cls, *arguments):
        learner = build(cls, *arguments)
        learner.objective.requires_grad_(False)
        return learner

    monkeypatch.setattr(stages.FittedLearner, "build", classmethod(frozen))
    options = SibOptions(features=str(file), rank=0, methods="nearest-mean", **TINY)
    (learner,) = fit(options, None, RunFolder.create(tmp_path / "run", "sib", "")).values()
    assert learner.variant.method == "nearest-mean"


def test_variants_of_all_methods():
    names = [v.name for v in SibOptions(methods="nearest-mean,sib", predictor="distance,cosine", beta=1, steps=2).variants()]
    assert names == [
        "nearest-mean-distance-k0", "nearest-mean-cosine-k0", "distance-beta1-k2", "distance-beta1-k0", "cosine-beta1-k2",
        "cosine-beta1-k0",
    ]  # fmt: skip


def test_steps_left_out_are_saved_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "keep_none_where_it_is_better", spoil)
    file = save_features(tmp_path / "marked.safetensors", marked_splits())
    run = RunFolder.create(tmp_path / "run", "sib", "")
    for variant in fit(SibOptions(features=str(file), rank=0, **TINY), None, run):
        rule = FittedLearner.load(run, variant.name).guide.rule
        assert bool((rule.log_size == -7).all()) or variant.steps == 0


def spoil(fitted, variant, *rest):
    fitted[variant]["objective"].guide.rule.log_size.data.fill_(-7.0)
    return [variant]


def test_a_feature_file_is_read_once(tmp_path):
    """A run that is continued trains on what it was begun with, whatever has become of the file."""
    file = save_features(tmp_path / "mine.safetensors", marked_splits(), {"dataset": "birds"})
    run = RunFolder.create(tmp_path / "run", "sib", "")
    first, name = stages.given_features(str(file), run)
    save_features(file, marked_splits(noise=9.0), {"dataset": "fish"})
    again, same = stages.given_features(str(file), run)
    assert name == same == "birds"
    torch.testing.assert_close(first["train"].items, again["train"].items)


def test_half_of_the_training_tasks_are_imbalanced(tmp_path, monkeypatch):
    """As far as the classes have images for it; not where one kind is asked for."""
    part = marked_splits(images=60)["train"]
    sampler = task_sampler(SibOptions(way=3, queries=4), part, "train")
    assert isinstance(sampler, MixedSampler)
    assert [s.spec.imbalance for s in sampler.samplers] == [None, 2.0]
    for options in ({"mixed": False}, {"imbalance": 0.5}):
        one = task_sampler(SibOptions(way=3, queries=4, **options), part, "train")
        assert isinstance(one, EpisodeSampler)
        assert one.spec.imbalance == options.get("imbalance")
    few = marked_splits(images=16)["train"]
    assert isinstance(task_sampler(SibOptions(way=5, queries=15), few, "train"), EpisodeSampler)


def test_training_and_validation_tasks_decide_about_steps():
    found = deciding(SibOptions(**TINY), marked_splits())
    shapes = [kind.samplers[0].samplers[0].spec for kind in found]
    assert [(spec.way, spec.shot) for spec in shapes] == [(3, 1), (3, 5), (6, 1)]
    for kind in found:
        episode = kind.sample(8, seed=0)
        assert splits_of(episode.query_x[::2]) == {"train"}
        assert splits_of(episode.query_x[1::2]) == {"val"}


def test_validation_tasks_are_as_many_as_asked_for():
    """Of learning without forgetting, whose tasks have all base classes, a hundred at most."""
    few, usual = (SibOptions(**given) for given in ({"validation_tasks": 7}, {}))
    assert [settings(MetaSchedule, options).validation_tasks for options in (few, usual)] == [7, 300]
    assert [lwof_schedule(options).validation_tasks for options in (few, usual)] == [7, 100]


class TestPretrained:
    """Feature networks with given weights."""

    @pytest.fixture
    def weights(self, tmp_path):
        """A file of torchvision's, head included."""
        torch.manual_seed(0)
        network = get_model("shufflenet_v2_x0_5", weights=None, num_classes=7).eval()
        torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
        network.fc = nn.Identity()
        return str(tmp_path / "weights.pth"), network

    def options(self, file, **changes):
        return SibOptions(backbone="shufflenet_v2_x0_5", weights=file, rank=2, steps=0, **TINY, **changes)

    def test_without_epochs_features_are_torchvisions(self, weights, tmp_path):
        """On grayscale images, which are shown to the network as colour ones, standardised as ImageNet's."""
        (file, reference), images = weights, marked_images(classes=6, images=10)
        check_training(self.options(file, epochs=0), images)
        run = RunFolder.create(tmp_path / "run", "sib", "")
        (learner,) = fit(self.options(file, epochs=0), images, run).values()
        preset = ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()
        mean, std = (torch.tensor(value)[:, None, None] for value in (preset.mean, preset.std))
        with torch.no_grad():
            expected = reference((images.test.items.expand(-1, 3, -1, -1) / 255 - mean) / std)
        torch.testing.assert_close(load_features(run.features)["test"].items, expected, atol=1e-6, rtol=0)
        again = FittedLearner.load(run, learner.variant.name)
        assert torch.equal(again.features(images.test.items[:3]), learner.features(images.test.items[:3]))
        assert load_tensors(run.network)[1]["weights"] == file

    def test_with_epochs_they_are_where_training_starts(self, weights, tmp_path, monkeypatch):
        (file, _), started = weights, {}

        def watched(network, data, **settings):
            started.update(settings, state={key: value.clone() for key, value in network.state_dict().items()})
            return pretraining(network, data, **settings)

        monkeypatch.setattr(stages, "pretraining", watched)
        options, run = self.options(file, epochs=1), RunFolder.create(tmp_path / "run", "sib", "")
        network = stages.pretrain(settings(PretrainSettings, options), options.loop, marked_images(classes=6, images=10), run)
        assert started["learning_rate"] == pytest.approx(0.1 * LEARNING_RATE)
        given = stages.starting_network(settings(PretrainSettings, options), marked_images(classes=6, images=10)).state_dict()
        assert all(torch.equal(started["state"][key], value) for key, value in given.items())
        assert not torch.equal(network.backbone.conv5[0].weight, given["backbone.conv5.0.weight"])

    def test_weights_that_do_not_fit_leave_no_run_folder(self, weights, tmp_path):
        options = self.options(weights[0], epochs=0)
        with pytest.raises(UserError, match="holds no weights of conv4-4"):
            check_training(replace(options, backbone="conv4-4"), marked_images(classes=6, images=10))

    def test_images_have_the_weights_size_where_none_is_given(self, weights, monkeypatch):
        sizes = []

        def load(name, root, *, image_size, seed):
            sizes.append(image_size)
            return marked_images(classes=6, images=10)

        monkeypatch.setattr(source, "load_data", load)
        for size in (None, 16):
            source.load_source(self.options(weights[0], epochs=0, image_size=size))
        source.load_source(SibOptions(**TINY))
        assert sizes == [224, 16, None]
        with pytest.raises(UserError, match="there is no file nowhere"):  # before any data are loaded
            source.load_source(self.options("nowhere.pth", image_size=16))
        assert len(sizes) == 3


def test_a_module_of_ones_own_is_used_as_it_is():
    images = marked_images(classes=6, images=10)
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    fitted = SIB.fit(images, network=FeatureNetwork(module, images.image_shape), rank=2, steps=0, **TINY)
    items = images.test.items[:3]
    torch.testing.assert_close(fitted.features(items), fitted.space(module(items / 255)))
