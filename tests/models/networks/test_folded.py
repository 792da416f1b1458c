"""Chains of layers under many weights at once, against ``torch.func.vmap`` of the chain: values and two derivatives."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from models.networks.backbones import RepeatChannels, build_backbone
from models.networks.classifiers import build_network, mlp
from models.networks.folded import KNOWN, chain_of, fits, run
from models.networks.functional import FunctionalNetwork
from models.networks.norms import with_norm

VECTORS, ITEMS = 3, 4


@pytest.fixture(autouse=True)
def double(float64):
    pass


def tail(channels: int, size: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(channels * size * size, 2)]


IMAGES = {
    "stride, dilation and groups": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(), nn.Conv2d(4, 4, 3, dilation=2, groups=4), *tail(4, 2)
    ),
    "without biases": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(300, 2, bias=False)
    ),
    "maps": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2)),
    "pools": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(2), *tail(3, 2)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU()), nn.Sequential(*tail(3, 10), nn.Identity())),
    "one after the other": lambda: nn.Sequential(nn.Flatten(), *mlp(288, (5, 4), 2, nn.Tanh)),
    "norms without factors": lambda: with_norm(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), nn.MaxPool2d(2), *tail(4, 5)), "task"
    ),
}


def normed(norm: str):
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8, eps=0.1), nn.MaxPool2d(2), nn.ELU(), *tail(8, 5))
    for values in (network[1].running_mean, network[1].running_var, network[1].weight):
        nn.init.uniform_(values, 0.5, 1.5)
    return with_norm(network, norm, groups=4)


IMAGES |= {norm: lambda norm=norm: normed(norm) for norm in ("running", "task", "group")}


def parts_of(network: nn.Module, adapted=None) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in network.named_parameters() if adapted is None or adapted(name)}
    return {n: (p.detach() + 0.3 * torch.randn(VECTORS, *p.shape)).requires_grad_() for n, p in named.items()}


def derivatives(outputs, parts):
    """Outputs, the gradient of a nonlinear function of them, and the gradient of its square."""
    first = torch.autograd.grad(outputs.sin().sum(), list(parts.values()), create_graph=True)
    return outputs, first, torch.autograd.grad(sum(g.square().sum() for g in first), list(parts.values()))


@pytest.mark.parametrize("adapted", ["all", "weights", "last"])
@pytest.mark.parametrize("name", IMAGES)
def test_a_chain_is_the_network_under_vmap(name, adapted):
    network, x = IMAGES[name](), torch.randn(VECTORS, ITEMS, 2, 12, 12)
    last = [n for n, _ in network.named_parameters()][-1]
    chosen = {"all": None, "weights": lambda n: n.endswith("weight"), "last": lambda n: n == last}[adapted]
    parts, chain = parts_of(network, chosen), chain_of(network)
    assert fits(chain, 3)
    found = run(chain, parts, x)
    expected = vmap(lambda p, items: functional_call(network, p, (items,)))(parts, x)
    for one, other in zip(derivatives(found, parts), derivatives(expected, parts), strict=True):
        torch.testing.assert_close(one, other, check_stride=False)


def test_networks_by_name_are_chains():
    for network, dims in (
        (with_norm(build_network("conv4-2", (1, 16, 16), 3), "task"), 3),
        (build_network("lenet", (1, 28, 28), 3), 3),
        (build_network("mlp", (1, 28, 28), 3), 3),
        (build_network("mlp", (5,), 3), 1),
        (build_backbone("conv4-2", (3, 32, 32)), 3),
    ):
        assert fits(chain_of(network), dims)


@pytest.mark.parametrize("shape", [(5,), (2, 8, 8)])
def test_standardised_items(shape):
    network = build_network("mlp", shape, 3) if len(shape) == 1 else build_network("conv4-2", (2, 16, 16), 3)
    network = with_norm(network, "task")
    shape = shape if len(shape) == 1 else (2, 16, 16)
    if len(shape) == 3:
        network[0].std.fill_(3.0)
    parts, x = parts_of(network), torch.randn(VECTORS, ITEMS, *shape)
    expected = vmap(lambda p, items: functional_call(network, p, (items,)))(parts, x)
    torch.testing.assert_close(run(chain_of(network), parts, x), expected, check_stride=False)


class Unusual(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


class Wider(nn.Linear):
    pass


@pytest.mark.parametrize(
    "network",
    [
        Unusual(nn.Linear(2, 2)),
        nn.Sequential(Wider(2, 2)),
        nn.Sequential(RepeatChannels(3), nn.Flatten(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)),
        nn.LayerNorm(2),
    ],
)
def test_what_is_no_chain_of_known_layers_is_none(network):
    assert chain_of(network) is None


def test_who_listens_to_a_layer_hears_it():
    network = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert chain_of(network) is not None
    handle = network[1].register_forward_hook(lambda *_: None)
    assert chain_of(network) is None
    handle.remove()
    handle = network[0].register_forward_pre_hook(lambda *_: None)
    assert chain_of(network) is None
    handle.remove()
    network[1].forward = torch.sin
    assert chain_of(network) is None


@pytest.mark.parametrize(
    ("network", "dims"),
    [
        (nn.Sequential(nn.Linear(2, 2)), 3),
        (nn.Sequential(nn.Conv2d(2, 2, 3)), 1),
        (nn.Sequential(nn.Flatten(), nn.Conv2d(2, 2, 3)), 3),
        (nn.Sequential(nn.Flatten(2), nn.Linear(2, 2)), 3),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), 3),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.Linear(2, 2)), 3),
        (nn.Sequential(nn.Conv2d(2, 2, 3), build_network("mlp", (2, 4, 4), 2)[0]), 3),
    ],
)
def test_layers_that_stand_elsewhere_are_left_to_vmap(network, dims):
    chain = chain_of(network)
    assert {type(layer) for _, layer in chain} <= KNOWN
    assert not fits(chain, dims)


def test_layers_and_parameters_in_two_places():
    """One activation may stand twice in a chain; one parameter is none for a chain."""
    act, layer, x = nn.Tanh(), nn.Linear(3, 3), torch.randn(VECTORS, ITEMS, 3)
    twice = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act)
    assert len(chain_of(twice)) == 4
    for network in (twice, nn.Sequential(layer, act, layer)):
        functional = FunctionalNetwork(network)
        weights = torch.randn(VECTORS, functional.num_weights)
        expected = torch.stack([functional.call(*pair) for pair in zip(x, weights, strict=True)])
        torch.testing.assert_close(functional(x, weights), expected)
