"""Weights from files and by name: features are the library's own, and what does not fit is one line."""

import copy
import pickle
import re
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights, get_model, resnet18

from data.errors import UserError
from models.networks.feature_network import FeatureNetwork
from models.networks.libraries import has_timm
from models.networks.pretrained import own_image_size, read_file

SMALL = "shufflenet_v2_x0_5"
needs_timm = pytest.mark.skipif(not has_timm(), reason="timm is not installed")


@pytest.fixture(scope="module")
def teacher():
    """torchvision's network with a head, and statistics of batch norm that are not its defaults."""
    torch.manual_seed(0)
    network = resnet18(num_classes=7)
    network.train()(torch.randn(4, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def small():
    """A network with a head that is made in no time."""
    return get_model(SMALL, weights=None).eval()


@pytest.fixture(scope="module")
def photographs():
    return torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def reference(network, images):
    """Features of torchvision's own model, on images standardised as torchvision's transform does, in double precision."""
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (preset.mean, preset.std))
    body = copy.deepcopy(network)
    body.fc = nn.Identity()
    return body.double().eval()((images.double() / 255 - mean) / std)


@torch.no_grad()
def features(network, images):
    """In double precision: in single, another memory format alone moves features by more than 1e-6."""
    return copy.deepcopy(network).double().eval()(images)


def write(content, path):
    """``content`` as a file of either kind."""
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


@pytest.mark.parametrize(
    ("suffix", "head", "channels"),
    [(".pth", True, 3), (".safetensors", False, 1)],
)
def test_features_are_torchvisions(teacher, photographs, tmp_path, suffix, head, channels):
    state = {key: value for key, value in teacher.state_dict().items() if head or not key.startswith("fc.")}
    file = write(state, tmp_path / f"weights{suffix}")
    network = FeatureNetwork.pretrained("resnet18", file, image_size=64, channels=channels, mirror=False)
    images = photographs[:, :channels]
    torch.testing.assert_close(features(network, images), reference(teacher, images), atol=1e-6, rtol=0)
    assert network.num_features == 512
    again = FeatureNetwork.from_description(network.description())
    again.load_state_dict(network.state_dict())
    assert torch.equal(features(again, images), features(network, images))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module.backbone.{key}": value for key, value in state.items()}},
        lambda state: {"0.mean": torch.zeros(3)} | {f"model.{key}": value for key, value in state.items()},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
    ids=["nested", "module", "both", "beside", "half", "old"],
)
def test_state_dicts_of_others(small, photographs, tmp_path, wrap):
    wrapped = wrap(small.state_dict())
    file = write(wrapped, tmp_path / "weights.pt")
    network = FeatureNetwork.pretrained(SMALL, file, image_size=64, mirror=False)
    half = any(isinstance(value, torch.Tensor) and value.dtype == torch.float16 for value in wrapped.values())
    assert next(network.parameters()).dtype == torch.float32
    found, expected = features(network, photographs), reference(small, photographs)
    torch.testing.assert_close(found, expected, atol=1e-3 if half else 1e-6, rtol=0)


class TestByName:
    @pytest.fixture
    def cache(self, teacher, tmp_path, monkeypatch):
        """torchvision's cache, with a file that it takes for its own."""
        torch.manual_seed(2)
        network = resnet18().eval()
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        name = ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / name)
        return network

    def test_weights_size_and_normalisation_are_torchvisions(self, cache):
        network = FeatureNetwork.pretrained("resnet18", "DEFAULT", mirror=False)
        assert network.image_shape == (3, 224, 224)
        images = torch.randint(0, 255, (1, 3, 224, 224), dtype=torch.uint8)
        torch.testing.assert_close(features(network, images), reference(cache, images), atol=1e-6, rtol=0)
        assert network.description()["weights"] == "DEFAULT"
        named = FeatureNetwork.pretrained("resnet18", "IMAGENET1K_V1")
        assert torch.equal(named.backbone.conv1.weight, network.backbone.conv1.weight)

    def test_without_a_network_the_way_out_is_a_file(self, monkeypatch, tmp_path):
        def fail(*arguments, **options):
            raise urllib.error.URLError("no route")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("torch.hub.download_url_to_file", fail)
        with pytest.raises(UserError, match=r"IMAGENET1K_V1 of resnet18 cannot be downloaded .*no route.*\.pth.*give the file"):
            FeatureNetwork.pretrained("resnet18", "IMAGENET1K_V1")

    @pytest.mark.parametrize(
        ("name", "weights", "message"),
        [
            (
                "resnet18",
                "IMAGENET1K_V2",
                "neither a file nor weights of resnet18: did you mean IMAGENET1K_V1. torchvision has",
            ),
            ("resnet50", "xyz", "weights of resnet50: torchvision has IMAGENET1K_V1, IMAGENET1K_V2"),
            ("resnet50", "imagenet", "weights of resnet50: did you mean IMAGENET1K_V"),
            ("resnet18", "weights/mine.pth", "there is no file weights/mine.pth"),
            ("conv4-64", "DEFAULT", "DEFAULT is no file, and neither torchvision nor timm .* has weights of conv4-64"),
            ("resnet81", "DEFAULT", "has weights of resnet81"),
        ],
    )
    def test_unknown_names(self, name, weights, message):
        with pytest.raises(UserError, match=message) as error:
            FeatureNetwork.pretrained(name, weights)
        assert "\n" not in str(error.value)


class Trap:
    """A pickle that runs code."""

    def __reduce__(self):
        return (print, ("ran",))


def without(state, start):
    """Some tensors missing."""
    return {key: value for key, value in state.items() if not key.startswith(start)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: b"nothing", "damaged"),
        (lambda state: b"", "damaged"),
        (lambda state: pickle.dumps({"fc.weight": Trap()}), "more than tensors.*torch.save.network.state_dict"),
        (lambda state: list(state.values()), "holds no weights of shuff.*: it is a list without tensors by name"),
        (lambda state: {"a": 1}, "holds no weights of shuff.*: it is a dict without tensors by name"),
        (lambda state: {"a": torch.zeros(3)}, "holds no weights of shuff.*: it has a$"),
        (
            lambda state: resnet18().state_dict(),
            "holds no weights of shuff.*: it has conv1.weight, bn1.weight, .* .122 tensors",
        ),
        (lambda state: without(state, "conv5"), "does not fit shuff.*: it lacks conv5.0.weight, .*, .* … .5 tensors"),
        (
            lambda state: get_model("shufflenet_v2_x1_0").state_dict(),
            "does not fit shuff.*: .* is .*, and .* in shuf",
        ),
        (
            lambda state: without(state, "conv1.1.weight"),
            "does not fit shuff.*: it lacks conv1.1.weight$",
        ),
        (lambda state: state | {"fd.weight": torch.zeros(3)}, "does not fit shuff.*: it has fd.weight$"),
        (
            lambda state: state | {"conv1.1.weight": torch.full((24,), torch.nan)},
            "conv1.1.weight holds numbers that are not finite",
        ),
        (lambda state: state | {"conv1.1.weight": torch.zeros(24, dtype=torch.int8)}, "conv1.1.weight is of type torch.int8"),
    ],
    ids=[
        "text",
        "empty",
        "code",
        "list",
        "numbers",
        "other",
        "another",
        "shallower",
        "wider",
        "lacks",
        "more",
        "nan",
        "integers",
    ],
)
def test_files_that_do_not_fit(small, tmp_path, capsys, content, message):
    file, made = tmp_path / "weights.pth", content(small.state_dict())
    if isinstance(made, bytes):
        file.write_bytes(made)
    else:
        torch.save(made, file)
    with pytest.raises(UserError, match=message) as error:
        FeatureNetwork.pretrained(SMALL, file, image_size=64)
    assert "\n" not in str(error.value)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(small, tmp_path, suffix):
    file = write(small.state_dict(), tmp_path / f"weights{suffix}")
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="is damaged or no") as error:
        read_file(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "googlenet"])
def test_last_layers_wherever_they_are(name, tmp_path):
    """Heads in sequences and on the way; DenseNet's names of old."""
    torch.manual_seed(0)
    network = get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {})).eval()
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in network.state_dict().items()}
    found = FeatureNetwork.pretrained(name, write(state, tmp_path / "weights.pth"), image_size=64, mirror=False)
    images = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    if name == "googlenet":
        network.transform_input = True  # as torchvision's weights want it
    with torch.no_grad():
        expected = network.double()(found.double().standardize(images))
        torch.testing.assert_close(last(features(found, images)), expected, atol=1e-6, rtol=0)


def test_networks_without_a_last_layer():
    with pytest.raises(UserError, match="squeezenet1_0 ends in no linear layer"):
        FeatureNetwork("squeezenet1_0", (3, 64, 64))


class TestOwnFiles:
    def test_files_of_a_feature_network_keep_size_and_normalisation(self, tmp_path):
        from inference.runs.tensors import save_tensors

        network = FeatureNetwork("conv4-4", (1, 20, 20), mirror=False)
        images = torch.randint(0, 255, (3, 1, 20, 20), dtype=torch.uint8)
        network.standardize.fit(images)
        file = save_tensors(tmp_path / "network.safetensors", network.state_dict(), network.description())
        assert own_image_size("conv4-4", str(file)) == 20
        again = FeatureNetwork.pretrained("conv4-4", file, channels=1, mirror=False)
        assert torch.equal(features(again, images), features(network, images))
        with pytest.raises(UserError, match="is of the network conv4-4, not conv4-8: choose `backbone=conv4-4`"):
            FeatureNetwork.pretrained("conv4-8", file)
        with pytest.raises(UserError, match=r"is for images of 1×20×20 .channels×height×width., these have 3 channels"):
            FeatureNetwork.pretrained("conv4-4", file)

    def test_state_dicts_alone_keep_their_normalisation(self, tmp_path):
        network = FeatureNetwork("conv4-4", (3, 20, 20))
        images = torch.randint(0, 255, (3, 3, 20, 20), dtype=torch.uint8)
        network.standardize.fit(images)
        file = write(network.state_dict(), tmp_path / "network.pth")
        with pytest.raises(UserError, match="does not say for what images it is: give `image_size`"):
            FeatureNetwork.pretrained("conv4-4", file)
        again = FeatureNetwork.pretrained("conv4-4", file, image_size=20, mirror=False)
        assert torch.equal(features(again, images), features(network, images))
        assert again.normalisation is not None


@needs_timm
class TestTimm:
    @pytest.mark.parametrize(
        ("name", "head"), [("timm:resnet18", True), ("resnet10t", False), ("timm:vit_tiny_patch16_224", True)]
    )
    def test_features_are_timms(self, name, head, tmp_path):
        import timm
        from timm.data import resolve_model_data_config

        torch.manual_seed(0)
        network = timm.create_model(name.removeprefix("timm:")).eval()
        if not head:
            network.reset_classifier(0)
        file = write(network.state_dict(), tmp_path / "weights.pth")
        size = own_image_size(name, str(file))
        settings = resolve_model_data_config(network)
        assert size == settings["input_size"][1]
        found = FeatureNetwork.pretrained(name, file, mirror=False)
        assert found.kind == "timm"
        images = torch.randint(0, 255, (1, 3, size, size), dtype=torch.uint8)
        mean, std = (torch.tensor(settings[key]).double()[:, None, None] for key in ("mean", "std"))
        network.reset_classifier(0)
        with torch.no_grad():
            expected = network.double()((images / 255 - mean) / std)
        torch.testing.assert_close(features(found, images), expected, atol=1e-6, rtol=0)

    def test_weights_by_name(self, monkeypatch):
        import timm

        asked, create = [], timm.create_model

        def created(name, pretrained=False, **options):
            asked.append((name, pretrained))
            if pretrained:
                raise FileNotFoundError("cannot find the requested files\nanywhere")
            return create(name, **options)

        monkeypatch.setattr(timm, "create_model", created)
        with pytest.raises(UserError, match=r"a2_in1k of resnet18 cannot be downloaded \(cannot find the requested files\)"):
            FeatureNetwork.pretrained("timm:resnet18", "a2_in1k")
        assert ("resnet18.a2_in1k", True) in asked
        with pytest.raises(UserError, match=r"a9_in1k is neither a file nor weights of timm:resnet18: did you mean a\d_in1k"):
            FeatureNetwork.pretrained("timm:resnet18", "a9_in1k")
        with pytest.raises(UserError, match=r"timm has no model 'resnet19': did you mean resnet1\d"):
            FeatureNetwork("timm:resnet19", (3, 64, 64))


def test_timm_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("models.networks.libraries.has_timm", lambda: False)
    with pytest.raises(UserError, match=r"timm:resnet18 needs timm, which is not installed: pip install 'sibyl-vib\[timm\]'"):
        FeatureNetwork("timm:resnet18", (3, 64, 64))
    with pytest.raises(UserError, match=r"unknown network 'resnet81': did you mean resnet18\? choose"):
        FeatureNetwork("resnet81", (3, 64, 64))
