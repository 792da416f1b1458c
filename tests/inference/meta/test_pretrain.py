"""Pre-training: what it trains on, how it augments, what it is watched on, and what it learns beside labels."""

from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.augmentation import LETTERS, PHOTOGRAPHS
from data.items import LabelledItems
from inference.meta import stages
from inference.meta.options import SibOptions
from inference.meta.pretrain import WATCHED, FeatureTraining, nearest_mean_accuracy, pretraining
from inference.meta.settings import PretrainSettings, settings
from inference.runs.folder import RunFolder
from inference.runs.training import train
from inference.runs.updates import Schedule
from models.networks.feature_network import FeatureNetwork
from tests.conftest import marked_images, splits_of


def module(mirror=False):
    images = marked_images(mirror=mirror)
    return pretraining(FeatureNetwork("conv4-4", images.image_shape), images, epochs=3)


def sampler_of(training):
    return training.validate.args[1]


def test_trains_on_base_classes_and_is_watched_on_validation_classes():
    assert splits_of(module().items.items) == {"train"}
    assert splits_of(sampler_of(module()).sample(20, seed=0).query_x) == {"val"}


def test_photographs_are_augmented_as_photographs_and_letters_as_letters():
    assert module(mirror=True).augmentation is PHOTOGRAPHS
    assert module(mirror=False).augmentation is LETTERS


def test_an_epoch_is_a_pass_and_is_followed_by_a_look_at_validation_tasks():
    training = module()
    assert training.epochs == 3
    assert training.steps_per_round == 120 // 64
    assert set(training.validate()) == {WATCHED}


class Marks(torch.nn.Module):
    """Features that are a random direction per class, from the images' marks."""

    def __init__(self):
        super().__init__()
        self.table = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        return self.table[images[:, 0, 0, 1].long()]


def test_accuracy_is_that_of_the_nearest_class_mean():
    """Features that tell the class score 1, constant ones chance."""
    sampler = sampler_of(module())
    assert nearest_mean_accuracy(Marks(), sampler, tasks=20, seed=0) == 1.0
    constant = Marks()
    constant.table[:] = 1.0
    accuracy = nearest_mean_accuracy(constant, sampler, tasks=50, seed=0)
    assert accuracy == pytest.approx(1 / sampler.spec.way)


ITEMS = LabelledItems(
    torch.randint(256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
    torch.arange(20) % 3,
    ("a", "b", "c"),
)


class Pixels(nn.Module):
    """Pixels in [0, 1] as features."""

    def forward(self, images):
        return images.flatten(1) / 255


def taught(**given):
    """Training of fixed features, whose losses can be told by hand."""
    torch.manual_seed(0)
    head, teacher = nn.Linear(16, 3), nn.Sequential(Pixels(), nn.Linear(16, 3))
    return FeatureTraining(Pixels(), ITEMS, Schedule(9, 6, 1e-3, 0.0), head=head, **{"teacher": teacher} | given)


def test_a_step_weighs_labels_and_teacher():
    """½ CE + ½ T² KL(teacher's softened answers to ours), T = 4."""
    training, values = taught(), {}
    loss = sum(training.losses(2, values))
    x, y = training.draw(ITEMS, 2)
    logits, answers = training.head(x.flatten(1) / 255), training.teacher[0](x)
    p, q = (answers / 4).softmax(-1), (logits / 4).softmax(-1)
    terms = {"train/labels": F.cross_entropy(logits, y), "train/teacher": 16 * (p * (p / q).log()).sum(-1).mean()}
    torch.testing.assert_close(values, {name: term.detach() for name, term in terms.items()})
    torch.testing.assert_close(loss, sum(terms.values()) / 2)
    torch.testing.assert_close(sum(taught(teacher=None).losses(2, {})), F.cross_entropy(logits, y))


class TestGenerations:
    """Networks that are born again."""

    IMAGES = marked_images(classes=4, images=8, mirror=True)

    def settings(self, **changes):
        options = SibOptions(backbone="conv4-4", way=3, queries=4, epochs=2, generations=2, **changes)
        return settings(PretrainSettings, options), options.loop

    def pretrain(self, run, network=None, **changes):
        return stages.pretrain(*self.settings(progress=False, **changes), self.IMAGES, run, network)

    @pytest.fixture
    def spied(self, monkeypatch):
        """Trainings that were begun: how the network and the teacher were, and what was trained."""
        begun = []

        def watched(network, data, **given):
            made = pretraining(network, data, **given)
            teacher = made.teacher[0]
            states = [{k: v.clone() for k, v in part.state_dict().items()} for part in (network, teacher) if part is not None]
            begun.append((made, *states))
            return made

        monkeypatch.setattr(stages, "pretraining", watched)
        return begun

    def test_the_teacher_is_the_frozen_generation_before(self, spied, tmp_path):
        """At its best epoch; it is not trained on, nor are its statistics of batch norm."""
        run = RunFolder.create(tmp_path / "run", "sib", "")
        network = self.pretrain(run)
        (first, _), (second, start, taught) = spied
        best = torch.load(run.checkpoints / "pretrain" / "best.ckpt", weights_only=True)["state_dict"]
        names = {f"{'network' if key[0] == '0' else 'head'}{key[1:]}": key for key in taught}
        assert set(names) == set(best)
        assert all(torch.equal(best[name], taught[key]) for name, key in names.items())
        teacher = second.teacher[0]
        assert all(torch.equal(v, taught[k]) for k, v in teacher.state_dict().items())
        assert not teacher.training
        assert not any(p.requires_grad for p in teacher.parameters())
        assert first.teacher == (None,)
        assert network is second.network
        assert not torch.equal(start["backbone.0.weight"], taught["0.backbone.0.weight"])
        assert first.validate.keywords == second.validate.keywords, "the same validation tasks"
        assert not torch.equal(first.draw(first.items, 0)[0], second.draw(second.items, 0)[0])

    def test_the_teacher_sees_the_students_image_alone(self):
        """Not its mirror image too, as trained networks do."""
        images = self.IMAGES
        training = pretraining(FeatureNetwork("conv4-4", images.image_shape, mirror=True), images, epochs=1)
        x = images.train.items[:5]
        teacher = training.frozen()
        with torch.no_grad():
            expected = training.network.eval().backbone(training.network.standardize(x))
            torch.testing.assert_close(teacher[0](x), expected)

    def test_generations_start_apart_unless_weights_are_given(self, spied, tmp_path):
        self.pretrain(RunFolder.create(tmp_path / "random", "sib", ""))
        given = FeatureNetwork("conv4-4", self.IMAGES.image_shape)
        self.pretrain(RunFolder.create(tmp_path / "given", "sib", ""), given)
        (_, random1), (_, random2, _), (_, given1), (_, given2, _) = spied
        assert not torch.equal(random1["backbone.0.weight"], random2["backbone.0.weight"])
        assert torch.equal(random1["standardize.mean"], random2["standardize.mean"])
        assert all(torch.equal(given1[key], given2[key]) for key in given1)

    @pytest.mark.parametrize("broken", ["pretrain", "pretrain-2"])
    def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(self, broken, tmp_path, monkeypatch):
        """It breaks in a generation's second epoch."""
        whole, part = (RunFolder.create(tmp_path / name, "sib", "") for name in ("whole", "part"))
        expected = self.pretrain(whole).state_dict()

        class Broken(Exception):
            pass

        def breaks(module, loop, run, stage, **given):
            step = module.training_step

            def stop(*place):
                if stage == broken and module.current_epoch == 1:
                    raise Broken
                return step(*place)

            module.training_step = stop
            train(module, loop, run, stage, **given)

        with monkeypatch.context() as patch, suppress(Broken):
            patch.setattr(stages, "train", breaks)
            self.pretrain(part)
        assert not part.network.exists()
        assert (part.checkpoints / broken / "last.ckpt").exists()
        found = self.pretrain(part).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
