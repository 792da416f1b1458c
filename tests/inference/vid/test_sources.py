"""Which images a student gets."""

import pytest
import torch

from data.errors import UserError
from inference.vid.options import Size, VidOptions
from inference.vid.sources import Sources, choose_items
from tests.inference.vid.conftest import images, numbers


@pytest.fixture
def weights(tmp_path):
    """A file that says nothing of its images."""
    torch.save({}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def test_each_run_has_images_of_its_own():
    train = images(10)
    chosen = [numbers(choose_items(train, Size(4), seed=0, run=run).labelled.items) for run in (0, 1, 2, 0)]
    assert len({frozenset(one) for one in chosen}) == 3
    assert chosen[0] == chosen[3]
    labelled = [numbers(choose_items(train, Size(None, 2), seed=0, run=run).labelled.items) for run in (0, 1)]
    assert labelled[0] != labelled[1]


def test_sizes_count_images_and_labels():
    choice = choose_items(images(10), Size(6, 2), seed=0)
    assert choice.labelled.counts.tolist() == [2] * 3
    assert choice.everything.counts.tolist() == [6] * 3
    assert numbers(choice.labelled.items) < numbers(choice.everything.items)
    assert choice.images == 18
    assert choose_items(images(10), Size(6), seed=0).everything is None
    assert choose_items(images(10), Size(None), seed=0).images == 30


@pytest.mark.parametrize("size", [Size(6), Size(6, 4), Size(None, 4)])
def test_validation_images_are_nowhere_in_training(size):
    """Neither with their labels nor among the images without."""
    whole = choose_items(images(10), size, seed=0)
    choice = choose_items(images(10), size, seed=0, validation=0.5)
    held = numbers(choice.held.items)
    assert held | numbers(choice.labelled.items) == numbers(whole.labelled.items)
    assert not held & numbers(choice.labelled.items)
    if choice.everything is not None:
        assert not held & numbers(choice.everything.items)
        assert held | numbers(choice.everything.items) == numbers(whole.everything.items)
    assert choice.images == whole.images, "what the student has in all"
    assert torch.equal(choice.held.counts, torch.full((3,), int(whole.labelled.counts[0]) // 2))


def test_too_few_images_are_named():
    with pytest.raises(UserError, match="11 images"):
        choose_items(images(10), Size(11), seed=0)
    with pytest.raises(UserError, match="cannot hold out 1 images"):
        choose_items(images(10), Size(1), seed=0, validation=0.5)


def test_the_teachers_data_is_loaded_though_its_weights_are_given(monkeypatch, weights):
    loaded = []

    def load(name, root, **options):
        loaded.append(name)
        return type("Data", (), {"is_classification": True, "item_shape": (1, 16, 16)})()

    monkeypatch.setattr("inference.vid.sources.load_supervised", load)
    sources = Sources.load(VidOptions(data="letters", teacher_data="glyphs", teacher_weights=weights))
    assert loaded == ["letters", "glyphs"]
    assert sources.source is not sources.target
    alone = Sources.load(VidOptions(data="letters"))
    assert alone.source is alone.target


@pytest.mark.parametrize(("data", "teacher", "roots"), [("letters", "mnist", [None, "r"]), ("mnist", "letters", ["r", None])])
def test_a_root_in_common_is_of_the_set_that_has_files(data, teacher, roots, monkeypatch, weights):
    given, loaded = [], type("Data", (), {"is_classification": True, "item_shape": (1, 16, 16)})()
    monkeypatch.setattr("inference.vid.sources.load_supervised", lambda name, root, **_: given.append(root) or loaded)
    Sources.load(VidOptions(data=data, teacher_data=teacher, teacher_weights=weights, root="r"))
    assert given == roots


def test_images_have_the_size_of_given_weights(monkeypatch, weights):
    """Where none is given: the teacher's first."""
    sizes, loaded = [], type("Data", (), {"is_classification": True, "item_shape": (3, 224, 224)})()
    monkeypatch.setattr(
        "inference.vid.sources.load_supervised", lambda *_, image_size, **__: sizes.append(image_size) or loaded
    )
    given = {"teacher": "inception_v3", "teacher_weights": weights, "student": "resnet18", "student_weights": weights}
    Sources.load(VidOptions(**given))
    Sources.load(VidOptions(**given, image_size=64))
    Sources.load(VidOptions(**given | {"teacher": "conv4-8"}))
    Sources.load(VidOptions())
    assert sizes == [299, 64, 224, None]
