"""Sums in full precision inside autocast."""

import torch

from models.precision import full_precision


def test_autocast_is_off_inside_and_on_again_outside():
    x, cpu = torch.ones(2, 2), torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(cpu):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_a_device_without_autocast_needs_nothing():
    with full_precision(torch.device("meta")):
        assert (torch.ones(2, 2, device="meta") @ torch.ones(2, 2, device="meta")).dtype == torch.float32
