"""The drawn data sets: seeded, of distinct classes, and with enough test images for imbalanced tasks."""

import pytest
import torch
import torch.nn.functional as F

from data.catalogue import FEW_SHOT
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.sources import glyphs as glyphs_of_many_scripts
from data.sources.glyphs import (
    draw_alphabet,
    glyph_classes,
    load_capitals,
    load_digits,
    load_glyphs,
    load_unseen_letters,
    look,
    render,
)

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


def test_the_first_image_of_a_described_letter_is_itself_clean_in_a_face_of_its_own():
    with_descriptions = load_glyphs(32, **SMALL, described=True)
    alphabet = {name: faces for letters in draw_alphabet().values() for name, faces in letters.items()}
    alone = {name for name, faces in alphabet.items() if len(faces) == 1}
    assert with_descriptions.name == "glyph-descriptions"
    for split, images in {"train": 3, "val": 3, "test": 5}.items():
        part = with_descriptions[split]
        assert part.counts.tolist() == [images + 1] * part.num_classes
        assert not alone & set(part.class_names)
        first = part.items.unflatten(0, (part.num_classes, -1))[:, 0, 0].float()
        faces = torch.stack([alphabet[name][-1] for name in part.class_names])
        assert (first.flatten(1).mode(1).values == int(0.15 * 255)).all(), "paper without noise"
        clean = torch.stack([torch.corrcoef(torch.stack([a.flatten(), zoomed(b).flatten()]))[0, 1] for a, b in zip(
            first, faces, strict=True)])  # fmt: skip
        assert clean.min() > 0.9


def zoomed(drawing):
    """A drawing of 64 pixels as a description of 32 shows it: 1.2 times as large."""
    large = F.interpolate(drawing[None, None], scale_factor=1.2, mode="bilinear")[0, 0]
    edge = (len(large) - 64) // 2
    return F.interpolate(large[None, None, edge : edge + 64, edge : edge + 64], size=32, mode="area")[0, 0]


def test_other_images_of_a_described_letter_have_other_faces():
    """Drawn without a warp, they are none of the last face."""
    letters = draw_alphabet()["test"]
    images = load_glyphs(32, **SMALL | {"test_images_per_class": 3}, described=True).test
    generator = torch.Generator().manual_seed(2)
    torch.randperm(sum(len(faces) > 1 for faces in letters.values()), generator=generator)
    own = [render(letters[name][:-1], 3, 32, generator) for name in images.class_names]
    assert torch.equal(images.items.unflatten(0, (images.num_classes, 4))[:, 1:], torch.stack(own))


def test_test_classes_serve_imbalanced_tasks():
    """The default tasks of svi_sib, 1-shot and 5-shot: next to no draw of proportions is refused."""
    test = load_glyphs(16, images_per_class=30, max_classes=6).test
    for shot in (1, 5):
        assert EpisodeSampler(test, TaskSpec(5, shot, 15, imbalance=2.0)).acceptance > 0.998


@pytest.mark.parametrize("name", ["glyphs", "glyph-descriptions"])
def test_the_number_of_classes_is_known_before_they_are_drawn(name):
    drawn = load_glyphs(16, images_per_class=1, test_images_per_class=1, described=name == "glyph-descriptions")
    assert FEW_SHOT[name].classes() == {split: drawn[split].num_classes for split in drawn.splits}


def test_letters_in_one_face_are_no_classes_with_a_description(monkeypatch):
    letters = {"A": torch.zeros(1, 4, 4), "B": torch.zeros(2, 4, 4), "C": torch.zeros(3, 4, 4)}
    monkeypatch.setattr(glyphs_of_many_scripts, "draw_alphabet", lambda: {"val": letters})
    assert glyph_classes() == {"val": 3}
    assert glyph_classes(described=True) == {"val": 2}


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
