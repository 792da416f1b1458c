"""Pre-training: what it trains on, how it augments, what it is watched on."""

import pytest
import torch

from data.augmentation import LETTERS, PHOTOGRAPHS
from inference.meta.pretrain import Pretraining, nearest_mean_accuracy
from models.networks.feature_network import FeatureNetwork
from tests.conftest import marked_images, splits_of


def pretraining(mirror=False) -> Pretraining:
    images = marked_images(mirror=mirror)
    return Pretraining(FeatureNetwork("conv4-4", images.image_shape), images, epochs=1)


def test_trains_on_base_classes_and_is_watched_on_validation_classes():
    module = pretraining()
    assert splits_of(module.source.items) == {"train"}
    assert splits_of(module.validation.sample(20, seed=0).query_x) == {"val"}


def test_photographs_are_augmented_as_photographs_and_letters_as_letters():
    assert pretraining(mirror=True).augmentation is PHOTOGRAPHS
    assert pretraining(mirror=False).augmentation is LETTERS


class Marks(torch.nn.Module):
    """Features that are a random direction per class, from the images' marks."""

    def __init__(self):
        super().__init__()
        self.table = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        return self.table[images[:, 0, 0, 1].long()]


def test_accuracy_is_that_of_the_nearest_class_mean():
    """Features that tell the class score 1, constant ones chance."""
    sampler = pretraining().validation
    assert nearest_mean_accuracy(Marks(), sampler, tasks=20, seed=0) == 1.0
    constant = Marks()
    constant.table[:] = 1.0
    accuracy = nearest_mean_accuracy(constant, sampler, tasks=50, seed=0)
    assert accuracy == pytest.approx(1 / sampler.spec.way)
