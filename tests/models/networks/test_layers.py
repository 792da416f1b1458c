"""Layers by name: what comes out of them, what goes in, and what cannot be captured."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.networks.layers import capture, features, layer_outputs

IMAGES = torch.zeros(2, 3, 32, 32)


class Functional(nn.Module):
    """A network whose ReLU and pooling are no modules."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.spare = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).mean((-2, -1)))


def test_inputs_of_layers_are_what_functions_gave_them():
    network, x = Functional(), torch.randn(2, 3, 8, 8)
    found = features(network, x, ["fc.input", "fc", "conv"])
    torch.testing.assert_close(found["fc.input"], F.relu(network.conv(x)).mean((-2, -1)))
    torch.testing.assert_close(found["fc"], network(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_module_of_that_very_name_wins():
    network = nn.Sequential()
    network.add_module("fc", nn.Sequential())
    network.fc.add_module("input", nn.Linear(3, 4))
    x = torch.randn(2, 3)
    torch.testing.assert_close(features(network, x, ["fc.input"])["fc.input"], network(x))


def test_layers_overwritten_in_place_are_refused():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="'0' is overwritten in place"), capture(network, ["0"]):
        network(torch.randn(2, 3))
    with capture(network, ["1"]) as found:
        network(torch.randn(2, 3))
    assert found["1"].shape == (2, 4)


@pytest.mark.parametrize("name", ["spare", "spare.input"])
def test_idle_layers_are_named(name):
    with pytest.raises(ValueError, match=f"'{name}' of the teacher takes no part"):
        layer_outputs("teacher", Functional(), IMAGES, [name])


def test_unknown_layers_are_named():
    with pytest.raises(ValueError, match=r"'nine.input': choose from conv, fc, spare, or the input of one, as in fc.input"):
        features(Functional(), IMAGES, ["nine.input"])
