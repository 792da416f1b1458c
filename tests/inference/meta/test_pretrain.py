"""Pre-training: what it trains on, how it augments, what it is watched on."""

import pytest
import torch

from data.augmentation import LETTERS, PHOTOGRAPHS
from inference.meta.pretrain import WATCHED, nearest_mean_accuracy, pretraining
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
