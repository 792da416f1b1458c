"""The drawn data sets: seeded, of distinct classes, and with enough test images for imbalanced tasks."""

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.sources.glyphs import draw_alphabet, load_capitals, load_digits, load_glyphs, load_unseen_letters, look

SMALL = {"images_per_class": 3, "test_images_per_class": 5, "max_classes": 30}


@pytest.fixture(scope="module")
def glyphs():
    return load_glyphs(20, **SMALL)


def test_glyphs_are_seeded(glyphs):
    assert torch.equal(glyphs.test.items, load_glyphs(20, **SMALL).test.items)
    assert not torch.equal(glyphs.test.items, load_glyphs(20, **SMALL, seed=1).test.items)


def test_every_split_has_its_own_scripts(glyphs):
    scripts = {split: {name.split()[0] for name in glyphs[split].class_names} for split in glyphs.splits}
    assert scripts["train"] <= {"CANADIAN", "LATIN", "ARABIC", "TIFINAGH", "LAO"}
    assert scripts["val"] <= {"GREEK", "HEBREW", "NKO"}
    assert scripts["test"] <= {"CYRILLIC", "ARMENIAN", "GEORGIAN"}


def test_no_two_classes_look_the_same():
    looks = torch.stack([look(drawing[0]) for split in draw_alphabet().values() for drawing in split.values()])
    similarity = looks @ looks.T - 2 * torch.eye(len(looks))
    assert similarity.max() < 0.94


def test_more_test_images_leave_the_others_as_they_are(glyphs):
    fewer = load_glyphs(20, **SMALL | {"test_images_per_class": 3})
    for split in ("train", "val"):
        assert torch.equal(glyphs[split].items, fewer[split].items)
    assert glyphs.test.counts.tolist() == [5] * 30
    images = glyphs.test.items.unflatten(0, (30, 5))
    assert torch.equal(images[:, :3].flatten(0, 1), fewer.test.items)
    assert not (images[:, 3] == images[:, 0]).flatten(1).all(1).any(), "more images are other images"


def test_test_classes_serve_imbalanced_tasks():
    """The default tasks of svi_sib, 1-shot and 5-shot: next to no draw of proportions is refused."""
    test = load_glyphs(16, images_per_class=30, max_classes=6).test
    for shot in (1, 5):
        assert EpisodeSampler(test, TaskSpec(5, shot, 15, imbalance=2.0)).acceptance > 0.998


def test_small_images_are_refused():
    with pytest.raises(UserError, match="at least 16"):
        load_glyphs(8)


def test_digits_are_seeded_and_training_differs_from_test():
    sizes = {"train": 20, "test": 20}
    first, again, other = (load_digits(16, **sizes, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.items, again.train.items)
    assert not torch.equal(first.train.items, other.train.items)
    assert not torch.equal(first.train.items, first.test.items)
    assert first.train.counts.tolist() == [20] * 10
    assert first.train.class_names == tuple("0123456789")


def test_capitals_are_all_letters_and_unseen_letters_look_like_no_digit():
    capitals = load_capitals(16, train=2, test=1)
    assert capitals.name == "letters"
    assert "".join(capitals.train.class_names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert len(capitals.test) == 26
    unseen = load_unseen_letters(16, images=2)
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") - set(unseen.class_names) == set("IOSZ")
