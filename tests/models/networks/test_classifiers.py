"""Networks by name have the sizes of their papers."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from data.errors import UserError
from models.networks.classifiers import build_network, pretrained_network
from models.networks.frozen import freeze, freeze_batch_norm


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


class TestPretrained:
    def test_heads_are_kept_replaced_or_missed(self, tmp_path):
        torch.manual_seed(0)
        source, file = get_model("shufflenet_v2_x0_5", weights=None, num_classes=7).eval(), tmp_path / "weights.pth"
        torch.save(source.state_dict(), file)
        images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        for outputs in (None, 7):
            network = pretrained_network("shufflenet_v2_x0_5", str(file), (3, 32, 32), outputs).eval()
            torch.testing.assert_close(network(images), source((images / 255 - mean) / std), atol=1e-6, rtol=0)
        other = pretrained_network("shufflenet_v2_x0_5", str(file), (3, 32, 32), 3).eval()
        assert other(images).shape == (2, 3)
        torch.testing.assert_close(other[:-1](images), network[:-1](images))
        assert network.state_dict().keys() == build_network("shufflenet_v2_x0_5", (3, 32, 32), 7).state_dict().keys()

    @pytest.mark.parametrize("name", ["mlp-8", "conv4-4", "lenet"])
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_own_files(self, name, suffix, tmp_path):
        """Tensors of safetensors files come in the order of their names' letters: 10 before 2."""
        network, file = build_network(name, (1, 16, 16), 4).eval(), tmp_path / f"network{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), file)
        x = torch.randint(0, 255, (2, 1, 16, 16), dtype=torch.uint8)
        torch.testing.assert_close(pretrained_network(name, str(file), (1, 16, 16)).eval()(x), network(x))
        assert pretrained_network(name, str(file), (1, 16, 16), 5)[-1].out_features == 5

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("resnet18", b"nothing", "is damaged or no state dict|holds more than tensors"),
            ("resnet18", {"a": 1}, "holds no weights of resnet18"),
            ("resnet18", {"fc.weight": torch.zeros(3, 4)}, "holds no weights of resnet18"),
            ("resnet18", None, "neither a file nor weights of resnet18: torchvision has IMAGENET1K_V1"),
            ("wrn-16-1", None, "neither torchvision nor timm .* has weights of wrn-16-1"),
            ("mlp", {"a.weight": torch.zeros(3, 4)}, "holds no weights of mlp: give a file of Sibyl's"),
            ("lenet", {"0.weight": torch.zeros(3)}, "has no linear layer"),
            ("lenet", {"1.weight": torch.zeros(3, 4)}, "does not fit lenet"),
        ],
    )
    def test_bad_files(self, name, content, message, tmp_path):
        file = tmp_path / ("weights.pth" if content is not None else "nothing")
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            torch.save(content, file)
        with pytest.raises(UserError, match=message):
            pretrained_network(name, str(file) if content is not None else "weights", (3, 32, 32))


@pytest.mark.parametrize("name", ["conv4-0", "wrn-10-0", "mlp-0"])
def test_networks_have_units(name):
    with pytest.raises(ValueError, match=f"{name} has no units: give a width of 1 or more"):
        build_network(name, (3, 32, 32), 5)


def test_frozen_networks_compute_the_same_and_learn_nothing():
    torch.manual_seed(0)
    network = get_model("shufflenet_v2_x0_5", weights=None)
    network(torch.randn(8, 3, 32, 32))  # statistics that are not those of the start
    x = torch.randn(2, 3, 32, 32)
    expected = network.eval()(x)
    frozen = freeze(freeze_batch_norm(network)).train()
    torch.testing.assert_close(frozen(x), expected, atol=1e-5, rtol=1e-5)
    assert not list(frozen.parameters())
