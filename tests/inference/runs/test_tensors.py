"""Feature files: what is written reads back, and they name their data set."""

import pytest
import torch

from data.errors import UserError
from data.items import LabelledItems
from inference.runs.tensors import dataset_name, load_features, save_features
from tests.conftest import gaussian_bank


@pytest.fixture
def parts():
    return {split: gaussian_bank(classes=4, images=6, seed=i) for i, split in enumerate(("train", "val", "test"))}


def test_a_feature_file_names_its_data_set(parts, tmp_path):
    assert dataset_name(save_features(tmp_path / "a.safetensors", parts, {"dataset": "birds"})) == "birds"
    assert dataset_name(save_features(tmp_path / "flowers.safetensors", parts)) == "flowers"
    with pytest.raises(UserError, match="missing"):
        dataset_name(tmp_path / "none.safetensors")


def test_classes_of_unequal_size_read_back(parts, tmp_path):
    full = parts["train"]
    parts["train"] = LabelledItems(full.items[:-3], full.labels[:-3], full.class_names)
    again = load_features(save_features(tmp_path / "features.safetensors", parts))
    for split, part in parts.items():
        assert torch.equal(again[split].items, part.items)
        assert torch.equal(again[split].labels, part.labels)
        assert again[split].class_names == part.class_names
