"""Images to features: standardisation and backbone in one module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.backbones import Standardize, build_backbone


class FeatureNetwork(nn.Module):
    """Standardisation and backbone in one: uint8 images ``[n, channels, height, width]`` to features ``[n, D]``.

    Args:
        backbone: a name of :func:`~models.networks.backbones.build_backbone`.
        image_shape: (channels, height, width).
        mirror: in evaluation mode, average the normalised features of an image and its mirror image.
    """

    def __init__(self, backbone: str, image_shape: tuple[int, ...], *, mirror: bool = False) -> None:
        super().__init__()
        self.name, self.image_shape, self.mirror = backbone, tuple(image_shape), mirror
        self.standardize = Standardize(image_shape[0])
        self.backbone = build_backbone(backbone, image_shape)
        self.num_features = int(self.backbone.num_features)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.standardize(images).contiguous(memory_format=torch.channels_last)
        features = self.backbone(maps)
        if self.training or not self.mirror:
            return features
        return (F.normalize(features, dim=-1) + F.normalize(self.backbone(maps.flip(-1)), dim=-1)) / 2

    def description(self) -> dict[str, Any]:
        """What :meth:`from_description` builds the same network from."""
        return {"backbone": self.name, "image_shape": self.image_shape, "mirror": self.mirror}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> FeatureNetwork:
        """An untrained network of the kind that a :meth:`description` describes."""
        return cls(description["backbone"], tuple(description["image_shape"]), mirror=description["mirror"])
