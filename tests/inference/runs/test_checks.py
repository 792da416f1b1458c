"""What is refused before it is built."""

import pytest

from data.catalogue import load_data, load_supervised
from data.errors import UserError
from inference.runs.checks import check_network_memory
from inference.runs.training import Loop


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("mlp", (1, 28, 28), {"hidden": (10**6, 10**6)}),
        ("mlp", (1, 28, 28), {"hidden": (10**10, 10**10)}),
        ("mlp-1000000", (4,), {}),
        ("conv4-100000", (1, 28, 28), {}),
        ("wrn-16-10000", (1, 28, 28), {}),
        ("conv4-64", (3, 20_000, 20_000), {}),
    ],
)
def test_layers_and_images_beyond_memory_are_refused_in_one_line(name, shape, options):
    with pytest.raises(UserError, match=f"^training {name} with batches of 64 items of .* takes at least .* of memory"):
        check_network_memory(name, shape, 10, 64, Loop("cpu"), **options)


def test_usual_networks_pass():
    check_network_memory("mlp", (1, 28, 28), 10, 64, Loop("cpu"), hidden=(400, 400))
    check_network_memory("conv4-64", (3, 84, 84), 64, 64, Loop("cpu"))


@pytest.mark.parametrize("load", [load_data, load_supervised])
def test_drawn_images_beyond_memory_are_refused_before_they_are_drawn(load):
    with pytest.raises(UserError, match=r"pixels .`image_size=50000`. takes at least"):
        load("glyphs", image_size=50_000)
