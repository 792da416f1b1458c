"""A small convolutional network for images that come as vectors of pixels, as tasks of regression have them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

FILTERS = (16, 32, 64)


def strided_layers(image_shape: Sequence[int], outputs: int, filters: Sequence[int] = FILTERS) -> nn.Sequential:
    """Rectified 3×3 convolutions of stride 2, and a linear layer: ``[n, *image_shape]`` to ``[n, outputs]``.

    As in the authors' code of Yin et al. 2020 for poses, whose 128×128 images have 32, 48 and 64 filters and a pool.

    Args:
        image_shape: channels, height and width.
        outputs: numbers of the last layer.
        filters: of each convolution.
    """
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    for count in filters:
        layers += [nn.Conv2d(channels, count, 3, stride=2, padding=1), nn.ReLU()]
        channels, height, width = count, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, outputs))


class OfPixels(nn.Module):
    """A network of images, for vectors of pixels in any number of rows: ``[..., pixels]`` to ``[..., outputs]``.

    Args:
        network: ``[n, *image_shape]`` to ``[n, outputs]``.
        image_shape: of an image.
    """

    def __init__(self, network: nn.Module, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.network, self.image_shape = network, tuple(image_shape)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, *self.image_shape)
        return self.network(rows).unflatten(0, x.shape[:-1])
