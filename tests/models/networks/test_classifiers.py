"""Networks by name have the sizes of their papers."""

import pytest
from torch import nn

from models.networks.classifiers import build_network


def build(name):
    return build_network(name, (3, 32, 32), 10)


@pytest.mark.parametrize(("name", "millions"), [("wrn-40-2", 2.243546), ("wrn-16-1", 0.175066)])
def test_wide_resnets_have_the_published_sizes(name, millions):
    """Zagoruyko and Komodakis 2016, table 4: WRN-40-2 has 2.2 million parameters, WRN-16-1 0.2 million."""
    assert sum(p.numel() for p in build(name).parameters()) == round(1e6 * millions)


def test_vgg9_has_nine_layers_and_five_pools():
    modules = list(build("vgg9").modules())
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in modules) == 9
    assert sum(isinstance(m, nn.MaxPool2d) for m in modules) == 5
