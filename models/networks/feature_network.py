"""Images to features: standardisation and backbone in one module, untrained, pre-trained or of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import UserError
from models.networks.backbones import Standardize, build_backbone, count_features
from models.networks.pretrained import (
    expected_images,
    find_state,
    library_of,
    load_exactly,
    read_description,
    read_weights,
)

OWN = "own"
"""The kind of a network that is a user's module."""
Normalisation = tuple[Sequence[float], Sequence[float]]


class FeatureNetwork(nn.Module):
    """Standardisation and backbone in one: images ``[n, channels, height, width]``, uint8 or floats in [0, 1], to features
    ``[n, D]``.

    Args:
        backbone: a name of :func:`~models.networks.backbones.build_backbone`, or a module of your own from standardised images
            ``[n, channels, height, width]`` to features ``[n, D]``, used as it is (not copied); D is found by a dry run.
        image_shape: (channels, height, width).
        mirror: in evaluation mode, average the normalised features of an image and its mirror image.
        normalisation: mean and standard deviation of each channel, for pixels in [0, 1], that images are standardised by;
            without it images stay in [0, 1], until ``standardize.fit(images)`` takes their own.
            Grayscale images are shown to a network that has three channels of them as colour ones.

    Raises:
        UserError: an unknown name, images that the network cannot take, or a module that gives something else than ``[n, D]``.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        image_shape: tuple[int, ...],
        *,
        mirror: bool = False,
        normalisation: Normalisation | None = None,
    ) -> None:
        super().__init__()
        self.image_shape, self.mirror = tuple(image_shape), mirror
        self.weights: str | None = None
        self.normalisation, seen = check_normalisation(normalisation, self.image_shape)
        self.standardize = Standardize(seen[0]) if self.normalisation is None else Standardize.of(*self.normalisation)
        try:
            if isinstance(backbone, nn.Module):
                self.name, self.kind = type(backbone).__name__, OWN
                self.backbone, self.num_features = backbone, count_features(backbone, seen, f"backbone ({self.name})")
            else:
                found = library_of(backbone)
                self.name, self.kind = backbone, found[0].title if found else "sibyl"
                self.backbone = build_backbone(backbone, seen)
                self.num_features = int(self.backbone.num_features)  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(str(error)) from None

    @classmethod
    def pretrained(
        cls, name: str, weights: str | Path, *, image_size: int | None = None, channels: int = 3, mirror: bool = True
    ) -> Self:
        """A network with given weights, which is ready to use.

        Args:
            name: as for :class:`FeatureNetwork`: ``resnet18``, ``timm:resnet18``, ``conv4-64``.
            weights: a state dict in a file, ``.safetensors`` or ``.pth`` (nothing but tensors is read), with or without a head,
                which is dropped; or the name of torchvision's or timm's weights (``IMAGENET1K_V1``, ``DEFAULT``), which are
                downloaded. Images are standardised as the weights expect; those of a file for a network of torchvision as for
                ImageNet. Files of Sibyl's own feature networks know their standardisation; others of its architectures leave
                pixels in [0, 1].
            image_size: height and width in pixels; the weights' own when not given.
            channels: of the images, 3 or 1; grayscale images are shown to a network of colour images as such.
            mirror: see :class:`FeatureNetwork`.

        Raises:
            UserError: no such file or weights, a file that is damaged or another network's, no network to download by, or an
                ``image_size`` that is needed.
        """
        return cls.with_head(name, weights, image_size=image_size, channels=channels, mirror=mirror)[0]

    @classmethod
    def with_head(
        cls, name: str, weights: str | Path, *, image_size: int | None = None, channels: int = 3, mirror: bool = True
    ) -> tuple[Self, nn.Linear | None]:
        """The network of :meth:`pretrained`, which explains the arguments, and the last layer that the weights have of it:
        features to classes; ``None`` where they have none.

        Raises:
            UserError: as there.
        """
        source, described = str(weights), read_description(Path(weights)) if Path(weights).is_file() else None
        if described is not None:
            return cls._described(described, name, source, image_size=image_size, channels=channels, mirror=mirror), None
        expected = expected_images(name, source)
        size = image_size or (expected.size if expected else None)
        if size is None:
            raise UserError(f"{source} does not say for what images it is: give `image_size`, height and width in pixels")
        normalisation = (expected.mean, expected.std) if expected else None
        network = cls(name, (channels, size, size), mirror=mirror, normalisation=normalisation)
        return network, network.load_backbone(source)

    @classmethod
    def _described(
        cls, described: dict[str, Any], name: str, source: str, *, image_size: int | None, channels: int, mirror: bool
    ) -> Self:
        """The network of a file that Sibyl wrote."""
        own, trained = described["backbone"], tuple(described["image_shape"])
        if own != name:
            raise UserError(f"{source} is of the network {own}, not {name}: choose `backbone={own}`")
        if described.get("normalisation") is None and channels != trained[0]:
            shape = "×".join(map(str, trained))
            raise UserError(f"{source} is for images of {shape} (channels×height×width), these have {channels} channels")
        size = image_size or trained[-1]
        network = cls.from_description({**described, "image_shape": (channels, size, size), "mirror": mirror})
        load_exactly(network, read_weights(name, source), source, name)
        network.keep_normalisation()
        return network

    def load_backbone(self, weights: str) -> nn.Linear | None:
        """Read the backbone's weights; what stands beside them of standardisation is taken too.

        Args:
            weights: see :meth:`pretrained`.

        Returns:
            The last layer that they have, which the backbone does without.

        Raises:
            UserError: see :meth:`pretrained`.
        """
        library = library_of(self.name)
        head = library[0].head(library[1]) if library else None
        state = find_state(read_weights(self.name, weights), self.backbone.state_dict().keys(), weights, self.name)
        load_exactly(self.backbone, state.tensors, weights, self.name, head=head)
        if (known := state.normalisation) and len(known[0]) in (1, len(self.standardize.mean)):
            own = self.standardize.mean.shape
            self.standardize.load_state_dict({"mean": known[0].expand(own), "std": known[1].expand(own)})
            self.keep_normalisation()
        self.weights = weights
        return state.head(head, self.num_features)

    def keep_normalisation(self) -> None:
        """Take what images are standardised by now for what the weights expect."""
        self.normalisation = tuple(tuple(part.flatten().tolist()) for part in (self.standardize.mean, self.standardize.std))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.standardize(images).contiguous(memory_format=torch.channels_last)
        features = self.backbone(maps)
        if self.training or not self.mirror:
            return features
        return (F.normalize(features, dim=-1) + F.normalize(self.backbone(maps.flip(-1)), dim=-1)) / 2

    def description(self) -> dict[str, Any]:
        """What :meth:`from_description` builds the same network from; ``kind`` says whose it is: ``sibyl``, ``torchvision``,
        ``timm``, or ``own`` for a module of the user's."""
        return {
            "backbone": self.name,
            "image_shape": self.image_shape,
            "mirror": self.mirror,
            "kind": self.kind,
            "normalisation": self.normalisation,
            "weights": self.weights,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any], backbone: nn.Module | None = None) -> Self:
        """An untrained network of the described kind.

        Args:
            description: see :meth:`description`.
            backbone: your own module, where the network was one.

        Raises:
            UserError: it was one, and is not given; the description is damaged; or see :class:`FeatureNetwork`.
        """
        name = description["backbone"]
        if not isinstance(name, str) or not isinstance(description["image_shape"], list | tuple):
            raise UserError("the description of the feature network is damaged")
        if description.get("kind") == OWN and backbone is None:
            raise UserError(f"the feature network is a module of your own ({name}): give it as `backbone`")
        shape, mean_std = tuple(description["image_shape"]), description.get("normalisation")
        network = cls(backbone or name, shape, mirror=description["mirror"], normalisation=mean_std)
        network.weights = description.get("weights")
        return network


def check_normalisation(given: Normalisation | None, image_shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """The normalisation as tuples, and the shape of images that the backbone sees.

    Raises:
        UserError: of another number of channels than the images have, or standard deviations that are not above 0.
    """
    if given is None:
        return None, image_shape
    mean, std = (tuple(map(float, part)) for part in given)
    if len(mean) != len(std) or image_shape[0] not in (1, len(mean)) or not all(value > 0 for value in std):
        raise UserError(
            f"`normalisation` must be a mean and a standard deviation above 0 for each of the images' {image_shape[0]} channels"
        )
    return (mean, std), (len(mean), *image_shape[1:])
