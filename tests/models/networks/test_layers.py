"""Layers by name, and which of them represent a network."""

import pytest
import torch
from torch import nn

from models.networks.classifiers import build_network
from models.networks.layers import capture, intermediate_layers, layer_outputs, logits_layer, match_layers, penultimate_layer

IMAGES = torch.zeros(2, 3, 32, 32)


def build(name):
    return build_network(name, (3, 32, 32), 10)


@pytest.mark.parametrize(
    ("name", "inside", "penultimate", "logits"),
    [
        ("wrn-16-1", ["1.groups.0.1", "1.groups.1.1", "1.groups.2.1"], "1.norm", "2"),
        ("resnet18", [f"1.layer{i}.1" for i in range(1, 5)], "1.fc", "2"),
        ("vgg9", [f"1.0.{i}" for i in (3, 7, 14, 21, 28)], "1.2", "2"),
        ("lenet", ["3", "6"], "11", "12"),
        ("mlp-64", ["3", "5", "7", "9"], "9", "10"),
        ("conv4-16", ["1.2", "1.6", "1.10", "1.14"], "1.16", "2"),
    ],
)
def test_layers_that_represent_a_network(name, inside, penultimate, logits):
    network = build(name)
    assert intermediate_layers(network, IMAGES) == inside
    assert penultimate_layer(network, IMAGES) == penultimate
    assert logits_layer(network, IMAGES) == logits
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(("name", "millions"), [("wrn-40-2", 2.243546), ("wrn-16-1", 0.175066)])
def test_wide_resnets_have_the_published_sizes(name, millions):
    """Zagoruyko and Komodakis 2016, table 4: WRN-40-2 has 2.2 million parameters, WRN-16-1 0.2 million."""
    assert sum(p.numel() for p in build(name).parameters()) == round(1e6 * millions)


def test_vgg9_has_nine_layers_and_five_pools():
    modules = list(build("vgg9").modules())
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in modules) == 9
    assert sum(isinstance(m, nn.MaxPool2d) for m in modules) == 5


def test_groups_end_where_their_shape_does():
    shapes = [t.shape[1:] for t in layer_outputs("", build("wrn-16-1"), IMAGES, ["1.groups.0.1", "1.groups.2.1"]).values()]
    assert shapes == [(16, 32, 32), (64, 8, 8)]


def test_matching_spreads_over_depth():
    assert match_layers("abc", "xyz") == [("a", "x"), ("b", "y"), ("c", "z")]
    assert match_layers("abc", "vwxyz")[-1] == ("c", "z")
    assert match_layers("abcd", "xy") == [("b", "x"), ("d", "y")]
    assert match_layers("a", "xyz") == [("a", "z")]


def test_layers_overwritten_in_place_are_refused():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="'0' is overwritten in place"), capture(network, ["0"]):
        network(torch.randn(2, 3))
    with capture(network, ["1"]) as found:
        network(torch.randn(2, 3))
    assert found["1"].shape == (2, 4)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), "name the layers"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no linear layer"),
    ],
)
def test_networks_without_such_layers(network, message):
    with pytest.raises(ValueError, match=message):
        (logits_layer if "linear" in message else intermediate_layers)(network, IMAGES)


def test_idle_layers_are_named():
    with pytest.raises(ValueError, match="'spare' of the teacher takes no part"):
        layer_outputs("teacher", build_with_spare(), IMAGES, ["spare"])


def build_with_spare():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Flatten(), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    return Net()
