"""Small convolutional networks of images that are vectors of pixels, beside torch's functions and sums written out by hand."""

import pytest
import torch
import torch.nn.functional as F

from models.networks.strided import OfPixels, strided_layers


@pytest.mark.parametrize("size", [16, 11])
def test_it_is_convolutions_of_stride_two_and_a_linear_layer(size):
    torch.manual_seed(0)
    layers = strided_layers((1, size, size), 5, filters=(3, 4)).double()
    parameters = [p.detach() for p in layers.parameters()]
    x = torch.rand(6, 1, size, size, dtype=torch.float64)
    hidden = x
    for weight, bias in (parameters[:2], parameters[2:4]):
        hidden = F.relu(F.conv2d(hidden, weight, bias, stride=2, padding=1))
    assert hidden.shape[-1] == -(-size // 4)
    torch.testing.assert_close(layers(x), hidden.flatten(1) @ parameters[4].T + parameters[5])
    assert layers(x).shape == (6, 5)


def test_a_convolution_of_a_picture_is_a_sum_of_its_pixels():
    torch.manual_seed(1)
    layers = strided_layers((1, 4, 4), 2, filters=(1,)).double()
    kernel, bias = layers[0].weight.detach()[0, 0], layers[0].bias.detach()
    x = torch.rand(4, 4, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1))
    hidden = torch.stack([(padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * kernel).sum() for i in (0, 1) for j in (0, 1)])
    expected = layers[-1](F.relu(hidden + bias))
    torch.testing.assert_close(layers(x[None, None])[0], expected)


def test_rows_of_pixels_are_images_whatever_stands_before_them():
    torch.manual_seed(2)
    network = OfPixels(strided_layers((2, 6, 5), 3, filters=(2,)), (2, 6, 5)).double()
    x = torch.rand(4, 3, 60, dtype=torch.float64)
    found = network(x)
    assert found.shape == (4, 3, 3)
    torch.testing.assert_close(found[1, 2], network.network(x[1, 2].view(1, 2, 6, 5))[0])
    torch.testing.assert_close(network(x[0]), found[0])
