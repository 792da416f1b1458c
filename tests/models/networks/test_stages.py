"""Which layers represent a network, and which of two networks' layers are pairs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.networks.classifiers import build_network
from models.networks.layers import features, layer_outputs
from models.networks.stages import Layer, intermediate_layers, logits_layer, match_by_depth, match_layers, penultimate_layer

IMAGES = torch.zeros(2, 3, 32, 32)


def build(name):
    return build_network(name, (3, 32, 32), 10)


def names(network, images=IMAGES):
    return [layer.name for layer in intermediate_layers(network, images)]


@pytest.mark.parametrize(
    ("name", "inside", "logits"),
    [
        ("wrn-16-1", ["1.groups.0.1", "1.groups.1.1", "1.groups.2.1"], "2"),
        ("resnet18", [f"1.layer{i}.1" for i in range(1, 5)], "2"),
        ("vgg9", [f"1.0.{i}" for i in (3, 7, 14, 21, 28)], "2"),
        ("lenet", ["3", "6"], "12"),
        ("mlp-64", ["3", "5", "7", "9"], "10"),
        ("conv4-16", ["1.2", "1.6", "1.10", "1.14"], "2"),
    ],
)
def test_layers_that_represent_a_network(name, inside, logits):
    network = build(name)
    assert names(network) == inside
    assert logits_layer(network, IMAGES) == logits
    assert penultimate_layer(network, IMAGES) == f"{logits}.input"
    assert not any(module._forward_hooks for module in network.modules())


class Block(nn.Module):
    """A bottleneck block, whose first convolution sees the resolution of the stage before it."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, 4, 1), nn.Conv2d(4, outputs, 3, stride, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class OwnResNet(nn.Module):
    """Written by hand: a stem with or without a max-pool, three stages, and functions where others have modules."""

    def __init__(self, pool):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2) if pool else nn.Identity()
        self.stages = nn.ModuleList(nn.Sequential(Block(8, 8, stride), Block(8, 8, 1)) for stride in (1, 2, 2))
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return self.fc(F.relu(self.norm(x)).mean((-2, -1)))


@pytest.mark.parametrize("pool", [False, True])
def test_stages_of_networks_written_by_hand(pool):
    network = OwnResNet(pool)
    found = intermediate_layers(network, IMAGES)
    assert [layer.name for layer in found] == ["stages.0", "stages.1", "norm"], "and not the stem or its max-pool alone"
    sizes = [16, 8, 4] if pool else [32, 16, 8]
    assert [layer.size for layer in found] == [(size, size) for size in sizes]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("densenet121", [8, 4, 2, 1]),
        ("shufflenet_v2_x0_5", [4, 2, 1]),
        ("mobilenet_v2", [16, 8, 4, 2, 1]),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torchvision's
def test_stages_of_networks_that_are_no_resnets(name, sizes):
    network = build(name)
    found = intermediate_layers(network, IMAGES)
    assert [layer.size[0] for layer in found] == sizes, "each resolution but the stem's"
    assert all(layer.module is not network[1].features.pool0 for layer in found) if name == "densenet121" else True
    layer_outputs("student", network, IMAGES, [layer.name for layer in found])


def test_penultimate_layer_is_what_the_last_linear_layer_sees():
    """Whatever functional ReLU or pooling stands before it."""
    x = torch.rand(2, 3, 32, 32)
    wide, own = build("wrn-16-1").eval(), OwnResNet(False).eval()
    maps = F.relu(wide[1].norm(wide[1].groups(wide[1].stem(wide[0](x)))))
    torch.testing.assert_close(features(wide, x, ["2.input"])[penultimate_layer(wide, x)], maps.mean((-2, -1)))
    name = penultimate_layer(own, x)
    assert features(own, x, [name])[name].shape == (2, 8)
    torch.testing.assert_close(own.fc(features(own, x, [name])[name]), own(x))


def test_groups_end_where_their_shape_does():
    shapes = [t.shape[1:] for t in layer_outputs("", build("wrn-16-1"), IMAGES, ["1.groups.0.1", "1.groups.2.1"]).values()]
    assert shapes == [(16, 32, 32), (64, 8, 8)]


def maps(**sizes):
    return [Layer(name, nn.Identity(), (4, size, size)) for name, size in sizes.items()]


class TestMatching:
    def test_equal_sizes_are_pairs(self):
        """As ResNet-34 and VGG-9 on 32×32 images."""
        pairs = match_layers(maps(a=8, b=4, c=2, d=1), maps(v=16, w=8, x=4, y=2, z=1))
        assert pairs == [("a", "w"), ("b", "x"), ("c", "y"), ("d", "z")]

    def test_networks_alike_are_matched_one_by_one(self):
        assert match_layers(maps(a=14, b=7, c=3, d=1), maps(w=14, x=7, y=3, z=1)) == [*zip("abcd", "wxyz", strict=True)]

    def test_sizes_are_nearest_where_none_are_equal(self):
        assert match_layers(maps(a=12, b=6), maps(x=28, y=14, z=7)) == [("a", "y"), ("b", "z")]

    def test_an_octave_is_too_far(self):
        assert match_layers(maps(a=32, b=16, c=8), maps(w=16, x=8, y=4, z=2)) == [("b", "w"), ("c", "x")]

    def test_of_several_layers_of_a_size_the_last_is_taken(self):
        assert match_layers(maps(a=8, b=8), maps(z=8)) == [("b", "z")]

    def test_vectors_are_matched_by_depth(self):
        vectors = [Layer(name, nn.Identity(), (5,)) for name in "xy"]
        assert match_layers(maps(a=8, b=4, c=2, d=1), vectors) == [("b", "x"), ("d", "y")]

    def test_depth_spreads_evenly(self):
        assert match_by_depth("abc", "xyz") == [("a", "x"), ("b", "y"), ("c", "z")]
        assert match_by_depth("abc", "vwxyz")[-1] == ("c", "z")
        assert match_by_depth("abcd", "xy") == [("b", "x"), ("d", "y")]
        assert match_by_depth("a", "xyz") == [("a", "z")]


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


def test_a_single_layer_has_none_before_it():
    with pytest.raises(ValueError, match="none before its logits"):
        penultimate_layer(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3))
