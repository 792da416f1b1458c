"""Omniglot from one place and from several: which drawing goes where, which alphabet into which split, and what is wrong."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.catalogue import load_data
from data.errors import UserError
from data.items import LabelledItems
from data.sources import omniglot as source
from data.sources.omniglot import load_omniglot, with_rotations
from tests.data.conftest import save_image

SMALL = tuple(f"images_background_small{n}" for n in (1, 2))
SPLIT = {"val_alphabets": ["Early_Aramaic"], "test_alphabets": ["Sanskrit", "Tagalog", "Balinese"]}


def draw(folder: Path, alphabets: dict[str, int], characters: int = 2) -> Path:
    """``folder/alphabet/character/<name>.png``: two drawings a character, whose gray is the alphabet's number and more."""
    for alphabet, number in alphabets.items():
        for c in range(characters):
            for i in range(2):
                save_image(folder / alphabet / f"character{c}" / f"{number}{c}_{i}", 20 * number + 4 * c + 2 * i, mode="L")
    return folder


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder with two archives of four and three alphabets, of which Greek is in both."""
    for name, alphabets in zip(
        SMALL, ({"Greek": 1, "Korean": 2, "Bengali": 3, "Magi": 4}, {"Greek": 1, "Tagalog": 5}), strict=True
    ):
        draw(tmp_path / "trees" / name, alphabets)
        shutil.make_archive(str(tmp_path / "sets" / name), "zip", tmp_path / "trees", name)
    return tmp_path / "sets"


def alphabets(part: LabelledItems) -> set[str]:
    return {name.split("/")[0] for name in part.class_names}


def test_several_archives_are_merged_by_alphabet_and_character(sets):
    named = [sets / f"{name}.zip" for name in SMALL]
    ways = (named, f"{named[0]}, {named[1]}", sets, sets.parent / "trees", [sets.parent / "trees" / SMALL[0], named[1]])
    first = load_data("omniglot", named, image_size=16, val_alphabets="Korean", test_alphabets=["Tagalog", "Magi"])
    assert [alphabets(first[s]) for s in first.splits] == [{"Greek", "Bengali"}, {"Korean"}, {"Tagalog", "Magi"}]
    for split in first.splits:
        part = first[split]
        assert part.counts.tolist() == [2] * part.num_classes, "drawings of both are there once"
        for name, label in zip(part.class_names, range(part.num_classes), strict=True):
            number = {"Greek": 1, "Korean": 2, "Bengali": 3, "Magi": 4, "Tagalog": 5}[name.split("/")[0]]
            expected = [255 - 20 * number - 4 * int(name[-1]) - 2 * i for i in range(2)]
            assert part.items[part.labels == label][:, 0, 8, 8].tolist() == expected, name
    for root in ways:
        again = load_omniglot(root, 16, val_alphabets=["Korean"], test_alphabets=["Tagalog", "Magi"])
        for split in first.splits:
            assert again[split].class_names == first[split].class_names
            assert torch.equal(again[split].items, first[split].items)


def test_without_names_the_seed_splits_alphabets_and_none_leaks(sets):
    for seed in range(4):
        data = load_omniglot(sets, 16, seed)
        parts = [alphabets(data[s]) for s in data.splits]
        assert set.union(*parts) == {"Greek", "Korean", "Bengali", "Magi", "Tagalog"}
        assert sum(map(len, parts)) == 5
    assert sum(data[s].num_classes for s in data.splits) == 10


def test_one_archive_is_read_as_ever(sets):
    one, folder = sets / f"{SMALL[0]}.zip", load_data("folder", sets / f"{SMALL[0]}.zip", image_size=16, seed=3)
    data = load_omniglot(one, 16, 3)
    for split in data.splits:
        assert data[split].class_names == folder[split].class_names
        assert torch.equal(data[split].items, 255 - folder[split].items)


@pytest.mark.parametrize("given", ["val_alphabets", "test_alphabets"])
def test_the_seed_chooses_what_is_not_named(sets, given):
    split = given.partition("_")[0]
    found = {frozenset(alphabets(load_omniglot(sets, 16, seed, **{given: ["Greek"]})[split])) for seed in range(3)}
    assert found == {frozenset({"Greek"})}
    others = [load_omniglot(sets, 16, seed, **{given: ["Greek"]}) for seed in range(6)]
    chosen = {frozenset(alphabets(data["val" if split == "test" else "test"])) for data in others}
    assert len(chosen) > 1
    assert all(len(one) == 1 for one in chosen)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"test_alphabets": ["Tagalo"]},
            "`test_alphabets=Tagalo`: .* choose Bengali, Greek, Korean, Magi, Tagalog; did you mean T",
        ),
        (
            {"val_alphabets": "Greek,Magi", "test_alphabets": "Magi"},
            "the alphabet Magi is in `val_alphabets` and in `test_alph",
        ),
        ({"val_alphabets": "Greek,Magi", "test_alphabets": "Bengali,Korean,Tagalog"}, "0 of 5 alphabets are left"),
        ({"test_alphabets": "Bengali,Korean,Tagalog"}, "2 of 5 alphabets are left, too few"),
        ({"test_alphabets": 3}, "`test_alphabets` must be a list of names, not an int"),
        ({"rotations": "yes"}, "`rotations` must be true or false"),
        ({"mirror": True}, "the data set 'omniglot' has no mirror: leave it out"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(sets, named, message):
    with pytest.raises(UserError, match=message) as error:
        load_data("omniglot", sets, image_size=16, **named)
    assert "\n" not in str(error.value)


def test_places_that_cannot_be_merged_are_one_line(sets, tree, tmp_path):
    flat = draw(tmp_path / "alone", {"Greek": 1})
    for root, named, message in (
        ([sets, tmp_path / "none"], {}, "no such file or folder: .*none"),
        (f"{sets},{tmp_path / 'none'}", {}, "no such file or folder: .*none"),
        ([], {}, "`root` names no folder"),
        ([sets, tree], {}, "tree has train/, val/ and test/: give it alone"),
        (tree, {"val_alphabets": "train0"}, "tree has train/, val/ and test/: give it alone, and without `val_alphabets`"),
        ([sets / f"{SMALL[0]}.zip", flat], {}, "alone holds characters of one alphabet alone, or of none"),
        (flat, {"val_alphabets": "Greek"}, "need alphabets, and there are none"),
    ):
        with pytest.raises(UserError, match=message):
            load_data("omniglot", root, image_size=16, **named)
    with pytest.raises(UserError, match="`root` must be a path, not a list"):
        load_data("folder", [sets, sets])
    with pytest.raises(UserError, match="the data set 'glyphs' has no rotations"):
        load_data("glyphs", rotations=True)


def test_two_drawings_of_one_name_are_refused_and_one_of_two_names_is_there_once(tmp_path):
    for name in SMALL:
        draw(tmp_path / name, {"Greek": 1, "Latin": 2, "Magi": 3})
    twin = tmp_path / SMALL[1] / "Greek" / "character0"
    shutil.copy(twin / "10_0.png", twin / "again.png")
    data = load_omniglot([tmp_path / name for name in SMALL], 16)
    assert all((data[s].counts == 2).all() for s in data.splits)
    save_image(twin / "10_0", 200, mode="L")
    with pytest.raises(UserError, match=r"Greek/character0 has two different drawings 10_0\.png: .* and "):
        load_omniglot([tmp_path / name for name in SMALL], 16)


def torchvisions(root: Path) -> Path:
    """torchvision's layout: five alphabets of the background, two to evaluate on."""
    for folder, letters in {"images_background": "ABCDE", "images_evaluation": "XY"}.items():
        for index, alphabet in enumerate(letters):
            save_image(root / "omniglot-py" / folder / alphabet / "character1" / "0", 10 * index, mode="L")
    return root


@pytest.fixture
def downloaded(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(source, "from_torchvision", lambda *_, **__: None)
    return torchvisions(tmp_path / "torchvision")


def test_torchvisions_evaluation_alphabets_are_the_test(downloaded):
    data = load_omniglot(downloaded, 20)
    assert set(data.test.class_names) == {"X/character1", "Y/character1"}
    assert {*data.train.class_names, *data.val.class_names} == {f"{letter}/character1" for letter in "ABCDE"}
    assert [data[s].num_classes for s in data.splits] == [4, 1, 2]
    for split in ("train", "val"):
        inks = [255 - 10 * "ABCDE".index(name[0]) for name in data[split].class_names]
        assert data[split].items[:, 0, 9, 9].tolist() == inks, "white paper became black"


def test_alphabets_of_torchvisions_can_be_named(downloaded):
    data = load_omniglot(downloaded, 20, val_alphabets=["B", "C"])
    assert [alphabets(data[s]) for s in data.splits] == [{"A", "D", "E"}, {"B", "C"}, {"X", "Y"}]
    data = load_omniglot(downloaded, 20, val_alphabets=["X"])
    assert [alphabets(data[s]) for s in data.splits] == [set("ABCDE"), {"X"}, {"Y"}]
    data = load_omniglot(downloaded, 20, val_alphabets=["X"], test_alphabets=["A"])
    assert [alphabets(data[s]) for s in data.splits] == [{"B", "C", "D", "E", "Y"}, {"X"}, {"A"}]


def test_training_classes_are_turned_and_no_others(sets):
    named = {"val_alphabets": ["Korean"], "test_alphabets": ["Tagalog"]}
    data, turned = (load_omniglot(sets, 16, rotations=flag, **named) for flag in (False, True))
    assert turned.train.num_classes == 4 * data.train.num_classes
    assert len(turned.train) == 4 * len(data.train)
    for split in ("val", "test"):
        assert torch.equal(turned[split].items, data[split].items)
        assert turned[split].class_names == data[split].class_names


def test_a_turned_class_is_a_class_of_its_own():
    images = torch.arange(16, dtype=torch.uint8).view(4, 1, 2, 2)
    turned = with_rotations(LabelledItems(images, torch.tensor([1, 0, 1, 0]), ("Greek/a", "Greek/b")))
    assert turned.class_names[:4] == ("Greek/a", "Greek/b", "Greek/rot90/a", "Greek/rot90/b")
    assert turned.class_names[4:] == ("Greek/rot180/a", "Greek/rot180/b", "Greek/rot270/a", "Greek/rot270/b")
    assert turned.labels.tolist() == [1, 0, 1, 0, 3, 2, 3, 2, 5, 4, 5, 4, 7, 6, 7, 6]
    assert turned.items[[1, 5, 9, 13], 0].tolist() == [[[4, 5], [6, 7]], [[5, 7], [4, 6]], [[7, 6], [5, 4]], [[6, 4], [7, 5]]]


@pytest.mark.slow
def test_the_two_small_sets_have_242_characters(shared_data):
    """136 and 156, of which Greek's 24 and Latin's 26 are in both; nothing is decoded but what the split needs."""
    named = {"val": tuple(SPLIT["val_alphabets"]), "test": tuple(SPLIT["test_alphabets"])}
    members = source.split_characters(source.places_of(shared_data / "omniglot"), named, seed=0)
    assert {split: len(characters) for split, characters in members.items()} == {"train": 137, "val": 22, "test": 83}
    sizes = {"Greek": 24, "Japanese_(katakana)": 47, "Korean": 40, "Latin": 26}
    assert {name: sum(k[0] == name for k in members["train"]) for name in sizes} == sizes
    assert {len(files) for characters in members.values() for files in characters.values()} == {20}
    with Image.open(members["train"]["Greek", "character01"][0]) as image:
        assert image.size == (105, 105)
