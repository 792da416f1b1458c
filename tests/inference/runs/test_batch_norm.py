"""Batch norm over several processes: with one it is torch's own, gradients and running statistics included."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as group
from torch import nn

from inference.runs.batch_norm import SharedBatchNorm


@pytest.fixture
def one_process():
    group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    yield
    group.destroy_process_group()


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, affine=False)])
def test_one_process_has_torchs_own(layer, one_process, float64):
    layer = layer.double()
    shared = copy.deepcopy(layer)
    callback, trainer = SharedBatchNorm(), SimpleNamespace(world_size=2)
    callback.on_fit_start(trainer, shared)
    shape = (5, 3) if isinstance(layer, nn.BatchNorm1d) else (5, 3, 4, 2)
    for _ in range(2):
        x = torch.randn(shape)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [module(each) for module, each in zip((layer, shared), inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(
            *(torch.autograd.grad(y.pow(3).sum(), each)[0] for y, each in zip(outputs, inputs, strict=True))
        )
    torch.testing.assert_close(layer.state_dict(), shared.state_dict())
    torch.testing.assert_close(layer.eval()(x), shared.eval()(x))
    callback.teardown(trainer, shared, "fit")
    assert "forward" not in vars(shared), "left as it was"


def test_a_single_process_is_left_alone():
    layer = nn.BatchNorm1d(3)
    SharedBatchNorm().on_fit_start(SimpleNamespace(world_size=1), layer)
    assert "forward" not in vars(layer)
