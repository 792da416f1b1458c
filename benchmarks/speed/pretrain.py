"""The training step of a feature network, as pre-training takes it, and what the host costs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.timing import Row, interleave
from data.augmentation import PHOTOGRAPHS
from inference.runs.updates import to_device
from models.likelihoods import CategoricalLikelihood
from models.networks.backbones import CosineClassifier
from models.networks.feature_network import FeatureNetwork

BATCHES = (64, 256)
CLASSES, IMAGES = 64, 4096
PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""FLOP/s of dense products in bfloat16, by part of a GPU's name. Source: NVIDIA's data sheets."""


def training_step(options: argparse.Namespace, batch: int, *, read: bool) -> Callable[[], None]:
    """Augmentation, forward and backward pass in bfloat16 under float32 weights, fused AdamW.

    Args:
        options: the network, its images' size and the device.
        batch: images.
        read: whether the images are read from the host's memory in each step; else they are where the network is.
    """
    torch.manual_seed(0)
    device, shape = torch.device(options.device), (3, options.image_size, options.image_size)
    network = FeatureNetwork(options.backbone, shape).to(device, memory_format=torch.channels_last)
    head = CosineClassifier(network.num_features, CLASSES).to(device)
    images, labels = torch.randint(256, (IMAGES, *shape), dtype=torch.uint8), torch.randint(CLASSES, (IMAGES,))
    chosen = torch.randperm(IMAGES)[:batch]
    held = images[chosen].to(device), labels[chosen].to(device)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], 1e-3, fused=True)

    def step() -> None:
        x, y = (to_device(part[chosen], device) for part in (images, labels)) if read else held
        x = PHOTOGRAPHS(x, seed=0).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            loss = -CategoricalLikelihood()(head(network(x)).float()).log_prob(y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def steps(options: argparse.Namespace) -> list[Row]:
    """``pretrain-step``: images a second, with the share of what a plain product in bfloat16 reaches here and, of GPUs that are
    known, of their peak."""
    side = 8192 if options.device == "cuda" else 512
    square = torch.randn(side, side, device=options.device, dtype=torch.bfloat16)
    (product,) = interleave("pretrain-step", "bfloat16", {"plain product": lambda: square @ square}, rounds=10)
    reached, rows = 2 * side**3 / product.seconds, [replace(product, extra={"TFLOP/s": 2e-12 * side**3 / product.seconds})]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    for batch in options.batch or BATCHES:
        programs = {
            "images on the device": training_step(options, batch, read=False),
            "images read and moved": training_step(options, batch, read=True),
        }
        with FlopCounterMode(display=False) as counted:
            programs["images on the device"]()
        group = f"{options.backbone}, {options.image_size}×{options.image_size}, batch {batch}"
        for row in interleave("pretrain-step", group, programs, rounds=max(3, options.rounds // 4), work=batch):
            flops = counted.get_total_flops() / row.seconds
            extra = {"TFLOP/s": flops / 1e12, "of the product": flops / reached} | ({"of peak": flops / peak} if peak else {})
            rows.append(replace(row, extra=extra))
    return rows
