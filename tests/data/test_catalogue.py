"""Every data set by name: sizes, roots, and the real files where they are at hand."""

import shutil

import pytest

from data.catalogue import DOMAINS, FEW_SHOT, SUPERVISED, load_data, load_domains, load_supervised
from data.errors import UserError
from data.sources.folder import load_tree

LOADERS = ((load_data, FEW_SHOT), (load_domains, DOMAINS), (load_supervised, SUPERVISED))


@pytest.mark.parametrize(("load", "table"), LOADERS)
def test_unknown_names_are_answered_with_the_known_ones(load, table):
    with pytest.raises(UserError, match=f"unknown data set 'imagenet': choose {', '.join(table)}"):
        load("imagenet")


@pytest.mark.parametrize(
    ("load", "name"), [(load, name) for load, table in LOADERS for name, entry in table.items() if not entry.embedded]
)
def test_sets_that_are_not_embedded_need_a_root(load, name):
    with pytest.raises(UserError, match=f"the data set '{name}' needs `root`"):
        load(name)


@pytest.mark.parametrize(
    ("load", "name"), [(load, name) for load, table in LOADERS for name, entry in table.items() if entry.embedded]
)
def test_embedded_sets_refuse_a_root(load, name):
    with pytest.raises(UserError, match=f"the data set '{name}' is drawn, and reads no files: leave out `root=images`"):
        load(name, "images")


def test_image_size_is_the_data_sets_own_unless_given(tree):
    assert load_data("folder", tree).image_shape == (3, 84, 84)
    assert load_data("folder", tree, image_size=20).image_shape == (3, 20, 20)
    assert load_supervised("folder", tree_of_two(tree)).item_shape == (3, 32, 32)


def tree_of_two(tree):
    """The same tree with the same classes in training and test."""
    (tree / "val").rename(tree.parent / "unused")
    shutil.rmtree(tree / "test")
    shutil.copytree(tree / "train", tree / "test")
    return tree


def test_seed_reaches_the_loaders():
    targets = [load_supervised("curve", seed=seed).train.labels for seed in (0, 0, 1)]
    assert (targets[0] == targets[1]).all()
    assert (targets[0] != targets[2]).any()


@pytest.mark.slow
def test_omniglot_archive(shared_data):
    name = "images_background_small1.zip"
    data = load_data("omniglot", shared_data / "omniglot" / name, image_size=28)
    assert sum(data[s].num_classes for s in data.splits) == 136
    assert all((data[s].counts == 20).all() for s in data.splits)
    assert load_tree(shared_data / "omniglot" / name, 28).num_classes == sum(data[s].num_classes for s in data.splits)


def test_mnist(shared_data):
    data = load_supervised("mnist", shared_data)
    assert data.name == "mnist"
    assert data.train.items.shape == (60_000, 1, 28, 28)
    assert len(data.test) == 10_000
    assert not data.mirror
