"""Feature files: what is written reads back, and they name their data set."""

import json
import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from data.errors import UserError
from data.items import LabelledItems
from inference.runs import tensors
from inference.runs.tensors import dataset_name, load_features, near, save_features, save_tensors
from tests.conftest import gaussian_bank


@pytest.fixture
def parts():
    return {split: gaussian_bank(classes=4, images=6, seed=i) for i, split in enumerate(("train", "val", "test"))}


def test_a_feature_file_names_its_data_set(parts, tmp_path):
    assert dataset_name(save_features(tmp_path / "a.safetensors", parts, {"dataset": "birds"})) == "birds"
    assert dataset_name(save_features(tmp_path / "flowers.safetensors", parts)) == "flowers"
    with pytest.raises(UserError, match="missing"):
        dataset_name(tmp_path / "none.safetensors")


def test_a_feature_file_is_named_by_text_or_path(parts, tmp_path):
    file = save_features(str(tmp_path / "named.safetensors"), parts)
    assert file == tmp_path / "named.safetensors"
    assert torch.equal(load_features(str(file))["val"].items, parts["val"].items)
    with pytest.raises(UserError, match="`path` must be a path"):
        save_features(3, parts)


@pytest.mark.parametrize("in_memory", [2**28, 0])
def test_classes_of_unequal_size_read_back(parts, in_memory, tmp_path, monkeypatch):
    """From a file that counts as large, too."""
    monkeypatch.setattr(tensors, "IN_MEMORY", in_memory)
    monkeypatch.setattr("data.gather.IN_MEMORY", in_memory)
    full = parts["train"]
    parts["train"] = LabelledItems(full.items[:-3], full.labels[:-3], full.class_names)
    again = load_features(save_features(tmp_path / "features.safetensors", parts))
    for split, part in parts.items():
        assert torch.equal(again[split].items, part.items)
        assert torch.equal(again[split].labels, part.labels)
        assert again[split].class_names == part.class_names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_large_file_holds_what_a_small_one_does(dtype, tmp_path, monkeypatch):
    """In every type, and in whatever order its tensors stand."""
    written = {"features": torch.randn(3, 5, 2).to(dtype), "counts": torch.tensor([5, 4, 3]), "more": torch.ones(3)}
    file = save_tensors(tmp_path / "a.safetensors", written, {"classes": ["a", "b", "c"]})
    monkeypatch.setattr(tensors, "IN_MEMORY", 0)
    again, metadata = tensors.load_tensors(file)
    assert metadata == {"classes": ["a", "b", "c"]}
    assert {name: value.dtype for name, value in again.items()} == {name: value.dtype for name, value in written.items()}
    assert all(torch.equal(again[name], value) for name, value in written.items())


def test_a_large_file_holds_single_numbers_and_none(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "IN_MEMORY", 10)
    written = {"n": torch.tensor(3), "a": torch.randn(5), "none": torch.zeros(0, 4)}
    file = save_tensors(tmp_path / "a.safetensors", written, {})
    again, _ = tensors.load_tensors(file)
    module = torch.nn.Module()
    for name, value in written.items():
        assert torch.equal(again[name], value)
        assert again[name].dtype == value.dtype
        module.register_buffer(name, torch.ones_like(value))
    tensors.load_state(module, file)
    assert all(torch.equal(value, written[name]) for name, value in module.state_dict().items())


def raw(path, header, data=b""):
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}" + 8 * b" " + b"x",
        {"features": {"dtype": "F32", "shape": [1, 1, 1], "data_offsets": [0, 400]}},
        {"features": {"dtype": "F32", "shape": [2**40, 2**40, 1], "data_offsets": [0, 4]}},
        {"features": {"dtype": "F99", "shape": [1, 1, 1], "data_offsets": [0, 4]}},
        {"features": {"dtype": "F32", "shape": [-1, 1, 1], "data_offsets": [0, 4]}},
        {"__metadata__": {"classes": "no json"}},
        {"__metadata__": {"classes": 100_000 * "["}},
        {"__metadata__": {"classes": 5}},
    ],
)
def test_malformed_headers_are_refused_in_one_line(header, tmp_path):
    with pytest.raises(UserError, match=r"x\.safetensors is missing, damaged or no safetensors file") as error:
        load_features(raw(tmp_path / "x.safetensors", header, bytes(4)))
    assert len(str(error.value).splitlines()) == 1


def test_pipes_are_not_opened_as_features(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="give a file"):
        load_features(tmp_path / "pipe.safetensors")


ONES = torch.ones(3, 2, 4)
HUGE = torch.full((3, 2, 4), 1e300, dtype=torch.float64)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"splits": [["train"], ["val"], ["test"]]}, "'splits' must be a list of names"),
        ({}, {"splits": "tvt"}, "'splits' must be a list of names"),
        ({}, {"classes": [1, 2, 3]}, "'classes' must be a list of names"),
        ({}, {"classes": {"a": 1}}, "'classes' must be a list of names"),
        ({}, {"splits": ["train", "val", "val"]}, "no classes for test"),
        ({"features": torch.ones(3, 2, 0)}, {}, "the features are torch.float32 3×2×0, and floats, one at least"),
        ({"features": torch.ones(3, 0, 4)}, {}, "3×0×4"),
        ({"features": torch.ones(3, 2, 4, dtype=torch.int64)}, {}, "the features are torch.int64"),
        ({"features": torch.ones(3, 2, 4).to(torch.float8_e5m2)}, {}, "the features are torch.float8_e5m2"),
        ({"features": HUGE}, {}, "not finite, or too large for single precision"),
        ({"counts": torch.tensor([2, 2])}, {}, "'counts' must be int64, one per class"),
        ({"counts": torch.tensor([2.0, 2.0, 2.0])}, {}, "'counts' must be int64, one per class"),
        ({"counts": torch.tensor([2, 2, -1])}, {}, "'counts' go from -1 to 2, and classes have 0 to 2 images"),
        ({"counts": torch.tensor([2, 2, 2**62])}, {}, "'counts' go from 2 to 4611686018427387904"),
    ],
)
def test_lists_counts_and_numbers_that_are_none_are_refused(tensors, metadata, message, tmp_path):
    known = {"classes": ["a", "b", "c"], "splits": ["train", "val", "test"]} | metadata
    save_tensors(tmp_path / "x.safetensors", {"features": ONES, **tensors}, known)
    with pytest.raises(UserError, match=message):
        load_features(tmp_path / "x.safetensors")


def test_names_of_classes_stay_on_one_line(tmp_path):
    known = {"classes": ["a\nb", "b", "c"], "splits": ["train", "val", "test"], "dataset": "birds\n"}
    save_tensors(tmp_path / "x.safetensors", {"features": ONES}, known)
    assert load_features(tmp_path / "x.safetensors")["train"].class_names == ("a\\nb",)
    assert dataset_name(tmp_path / "x.safetensors") == "birds\\n"


def test_items_lie_near_a_gpu_as_far_as_they_fit(monkeypatch):
    """What is larger than memory stays in its file, and labels stay where samplers count them."""
    bank, gpu = gaussian_bank(), torch.device("cuda")
    free = 4 * bank.items.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = near(bank, gpu)
    assert there.items.device.type == "cuda"
    assert there.labels is bank.labels
    assert near(bank, torch.device("cpu")) is bank
    monkeypatch.setattr(tensors, "IN_MEMORY", bank.items.nbytes - 1)
    assert near(bank, gpu) is bank
    monkeypatch.setattr(tensors, "IN_MEMORY", bank.items.nbytes)
    free -= 1
    assert near(bank, gpu) is bank
