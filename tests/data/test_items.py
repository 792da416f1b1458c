"""Labelled items: choices, hold-outs, class splits, and the check of images that users give."""

import pytest
import torch

from data.errors import UserError
from data.items import SPLITS, ImageSplits, LabelledItems, as_images, split_classes
from data.regression import load_curve
from tests.conftest import classes_of, marked_images, marked_splits, splits_of
from tests.data.test_episodes import numbered


def test_hold_out_keeps_the_rest():
    kept, held = numbered().hold_out(10)
    assert (held.counts == 10).all()
    assert torch.equal(kept.counts + 10, numbered().counts)
    assert not set(kept.items[:, 0].tolist()) & set(held.items[:, 0].tolist())
    with pytest.raises(UserError, match="hold out"):
        numbered().hold_out(25)


def test_items_are_numbered_inside_their_class():
    labels = torch.tensor([2, 0, 2, 2, 0, 1])
    assert LabelledItems(labels, labels, ("a", "b", "c")).ranks().tolist() == [0, 0, 1, 2, 1, 0]


def test_class_split_is_seeded_and_complete():
    names = [f"c{i}" for i in range(100)]
    split = split_classes(names, 0)
    assert split == split_classes(names[::-1], 0) != split_classes(names, 1)
    assert [list(split.values()).count(s) for s in SPLITS] == [64, 16, 20]
    with pytest.raises(UserError, match="at least 3"):
        split_classes(["a", "b"], 0)


def test_choosing_items():
    data = load_curve().train
    chosen = data.choose(10, 0)
    assert len(chosen) == 10
    assert torch.equal(chosen.items, data.choose(10, 0).items)
    assert data.choose(None, 0) is data
    with pytest.raises(UserError, match="121 items asked for, but there are 120"):
        data.choose(121, 0)


def test_choosing_items_per_class():
    data = numbered()
    few, more = data.choose_per_class(3, 0), data.choose_per_class(5, 0)
    assert few.counts.tolist() == [3] * 5
    assert torch.equal(few.labels, (few.items[:, 0] // 1000).long())
    assert set(few.items[:, 0].tolist()) < set(more.items[:, 0].tolist())
    with pytest.raises(UserError, match="class c has 25"):
        data.choose_per_class(26, 0)


def test_each_split_answers_to_its_own_name():
    data = marked_images()
    assert [splits_of(data[split].items) for split in SPLITS] == [{split} for split in SPLITS]
    assert data["val"] is data.val


def test_marks_survive_every_place_they_are_read_from():
    for split, part in marked_splits().items():
        assert splits_of(part.items) == {split}
        assert torch.equal(classes_of(part.items), part.labels)
    images = marked_images(image_size=20)
    assert torch.equal(classes_of(images.test.items), images.test.labels)
    assert splits_of(torch.cat([images.val.items, images.train.items])) == {"train", "val"}


def test_images_that_fit_pass_and_floats_give_the_numbers_of_uint8():
    images = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    assert as_images(images, (3, 8, 8)) is images
    for dtype in (torch.float32, torch.float64, torch.float16):
        floats = as_images(images.to(dtype) / 255, (3, 8, 8))
        assert floats.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(floats.float(), images / 255, atol=3e-4 if dtype == torch.float16 else 0, rtol=0)
    assert as_images(images[:, :0], (3, 8, 8)).shape[1] == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 1, 8, 8), "takes images of 3×8×8 .*, not 1×8×8"),
        (torch.zeros(4, 3, 9, 8), "takes images of 3×8×8 .*, not 3×9×8"),
        (torch.zeros(4, 8, 8, 3), "takes images of 3×8×8 .*, not 8×8×3"),
        (torch.zeros(8, 8), "takes images of 3×8×8 .*, not 8×8"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), "not torch.int64"),
        (torch.full((4, 3, 8, 8), 255.0), r"must lie in \[0, 1\], these in \[255, 255\]: divide by 255"),
        (torch.full((4, 3, 8, 8), -0.1), r"must lie in \[0, 1\]"),
        (torch.full((4, 3, 8, 8), torch.nan), r"must lie in \[0, 1\]"),
    ],
)
def test_images_that_do_not_fit_are_answered_in_one_line(images, message):
    with pytest.raises(UserError, match=message) as caught:
        as_images(images, (3, 8, 8))
    assert "\n" not in str(caught.value)


class TestOwnSplits:
    def test_classes_are_shared_out_with_all_their_items(self):
        labels = torch.arange(40) % 10
        items = LabelledItems(torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1), labels, tuple("abcdefghij"))
        splits = ImageSplits.of(items, seed=3)
        names = [name for split in splits.splits for name in splits[split].class_names]
        assert sorted(names) == list("abcdefghij")
        assert [splits[split].num_classes for split in splits.splits] == [6, 2, 2]
        for split in splits.splits:
            part = splits[split]
            assert part.counts.tolist() == [4] * part.num_classes
            for item, label in zip(part.items.flatten().tolist(), part.labels.tolist(), strict=True):
                assert part.class_names[label] == "abcdefghij"[item % 10]

    def test_classes_without_items_are_left_out(self):
        items = LabelledItems(torch.zeros(6, 1), torch.tensor([0, 0, 2, 2, 3, 3]), ("a", "b", "c", "d"))
        splits = ImageSplits.of(items)
        assert sorted(name for split in splits.splits for name in splits[split].class_names) == ["a", "c", "d"]

    def test_real_targets_are_refused(self):
        with pytest.raises(UserError, match="real numbers"):
            ImageSplits.of(LabelledItems(torch.zeros(2, 1), torch.zeros(2), ()))


def test_two_classes_of_one_name_are_refused():
    """Chosen by name, one of them would be lost."""
    items = LabelledItems(torch.zeros(8, 2), torch.arange(4).repeat(2), ("crane", "crane", "owl", "ant"))
    with pytest.raises(UserError, match="crane is the name of two classes"):
        ImageSplits.of(items)
    assert len(items.of_classes(["ant", "owl"])) == 4
