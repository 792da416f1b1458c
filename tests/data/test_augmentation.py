"""Augmentation is seeded, and every image gets its own draw."""

import torch

from data.augmentation import LETTERS, PHOTOGRAPHS, Augmentation, Warp


def test_augmentation_is_seeded_and_differs_between_images():
    image = torch.randint(0, 255, (1, 3, 16, 16), dtype=torch.uint8).expand(8, -1, -1, -1)
    changed = PHOTOGRAPHS(image, seed=1)
    assert changed.dtype == torch.uint8
    assert torch.equal(changed, PHOTOGRAPHS(image, seed=1))
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(Augmentation()(image, seed=0), image)
    assert torch.equal(Augmentation(Warp(mirror=True))(image, seed=0).sort(-1).values, image.sort(-1).values)
    assert not LETTERS.warp.mirror
