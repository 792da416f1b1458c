"""``SIB.fit`` on what users have: short scripts, as the documentation shows them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from data.errors import UserError
from data.inputs import as_items
from data.items import ImageSplits
from inference.meta.fitting import own_splits
from inference.meta.sib import SIB
from models.tasks.predictors import Predictor
from tests.conftest import gaussian_bank, marked_images

QUICK = {"epochs": 1, "tasks": 32, "batch": 8, "validations": 1, "validation_tasks": 8, "way": 3, "queries": 3, "steps": 1}


def drawings(classes=10, images=8) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images and labels."""
    data = marked_images(classes=classes, images=images)
    parts = [data[split] for split in data.splits]
    offsets = np.cumsum([0, *(part.num_classes for part in parts)])
    return (
        torch.cat([part.items for part in parts]),
        torch.cat([part.labels + int(start) for part, start in zip(parts, offsets, strict=False)]),
    )


def test_own_backbone(tmp_path):
    images, labels = drawings()
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(12))
    sib = SIB.fit(images, labels, backbone=backbone, **QUICK)

    support, queries = images[::8][:3], images[1:20]
    predicted = sib.predict(support, ["a", "b", "c"], queries)
    file = sib.save(tmp_path / "sib.safetensors")
    again = SIB.load(file, backbone=backbone).to(torch.float64)
    difference = again.predict(support, ["a", "b", "c"], queries).probabilities - predicted.probabilities
    assert difference.abs().max() < 1e-6


def test_own_loader():
    images, labels = drawings()
    loader = DataLoader(TensorDataset(images.float() / 255, labels), batch_size=16, shuffle=True)
    sib = SIB.fit(loader, mirror=False, backbone="conv4-4", **QUICK)
    assert sib.network.image_shape == (1, 16, 16)
    assert not sib.network.mirror
    assert sib.predict(images[::8][:3].numpy(), [4, 1, 2], images).probabilities.shape == (len(images), 3)


class CityBlock(Predictor):
    """logits = −Σ_d |f_d − w_d|."""

    def outputs(self, features, weights):
        return -(features[..., :, None, :] - weights[..., None, :, :]).abs().sum(-1)


def test_own_predictor_and_features(tmp_path):
    bank = gaussian_bank(classes=20, images=8, dim=6)
    sib = SIB.fit(bank, predictor=CityBlock, **QUICK)
    assert isinstance(sib.model.predictor, CityBlock)
    assert sib.network is None
    predicted = sib.predict(bank.items[::8][:4], list("abcd"), bank.items)
    assert torch.equal(SIB.load(sib.save(tmp_path / "x.safetensors")).predict(
        bank.items[::8][:4], list("abcd"), bank.items).probabilities, predicted.probabilities)  # fmt: skip


def test_the_backbone_is_trained_or_used_as_it_is():
    images, labels = drawings()
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(256, 6))
    before = backbone[1].weight.clone()
    assert SIB.fit((images, labels), backbone=backbone, **{**QUICK, "epochs": 0}).network.backbone is backbone
    assert torch.equal(backbone[1].weight, before)
    SIB.fit((images, labels), backbone=backbone, **QUICK)
    assert not torch.equal(backbone[1].weight, before)


def test_floats_in_the_unit_interval_become_the_bytes_they_were():
    images, labels = drawings()
    (one, two) = (own_splits(data, seed=0, mirror=True) for data in ((images, labels), (images.double() / 255, labels)))
    for split in one.splits:
        assert torch.equal(one[split].items, two[split].items)
        assert two[split].items.dtype == torch.uint8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: (x.float(), y), "must lie in"),
        (lambda x, y: (x, y.float()), "real numbers"),
        (lambda x, y: (x.flatten(1), y), "images .* or features"),
        (lambda x, y: (x[:16], y[:16]), "2 classes cannot be split"),
        (lambda x, y: x, "no targets: give one per item"),
    ],
)
def test_errors_are_one_line(data, message):
    with pytest.raises(UserError, match=message) as error:
        SIB.fit(data(*drawings()), **QUICK)
    assert "\n" not in str(error.value)


def test_a_backbone_that_does_not_fit_is_one_line():
    with pytest.raises(UserError) as error:
        SIB.fit(drawings(), backbone=nn.Linear(3, 4), **QUICK)
    assert "\n" not in str(error.value)
    splits = ImageSplits.of(as_items(*drawings()))
    with pytest.raises(UserError, match="network takes images of"):
        SIB.fit(splits, network=SIB.fit(marked_images(image_size=20), backbone="conv4-4", **QUICK).network, **QUICK)
