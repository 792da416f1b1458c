"""The modified Hausdorff distance by hand, and the errors that are known of it on Lake's runs."""

import math

import numpy as np
import pytest
import torch

from benchmarks.one_shot_hausdorff import SIZE, errors, ink, modified_hausdorff
from data.episodes import Episode
from data.sources.one_shot_runs import one_shot_runs


def test_the_larger_of_both_mean_distances():
    """From {(0,0), (0,2)} the nearest of {(0,0), (3,4), (0,6)} are 0 and 2 away, mean 1; back they are 0, √13 and 4."""
    a, b = np.array([[0.0, 0], [0, 2]]), np.array([[0.0, 0], [3, 4], [0, 6]])
    assert modified_hausdorff(a, b) == modified_hausdorff(b, a) == pytest.approx((0 + math.sqrt(13) + 4) / 3)
    assert modified_hausdorff(a, a) == 0


def test_ink_is_bright_and_moved_to_its_middle():
    image = torch.zeros(1, 5, 5, dtype=torch.uint8)
    image[0, 1, 2] = image[0, 3, 2] = 255
    assert ink(image).tolist() == [[-1, 0], [1, 0]]


def test_errors_are_drawings_whose_nearest_is_of_another_class():
    bar, cross = torch.zeros(1, 9, 9, dtype=torch.uint8), torch.zeros(1, 9, 9, dtype=torch.uint8)
    bar[0, 2:7, 4] = 255
    cross[0, 4, 2:7] = 255
    support, queries = torch.stack([bar, cross])[None], torch.stack([cross.roll(2, 1), bar.roll(-1, 2)])[None]
    labels = torch.tensor([[0, 1]])
    for truth, share in (([1, 0], 0.0), ([0, 1], 1.0), ([1, 1], 0.5)):
        assert errors(Episode(support, labels, queries, torch.tensor([truth]), 2)).tolist() == [share]


@pytest.mark.slow
def test_errors_on_lakes_runs(shared_data):
    """The README of the data set says 38.8 %: 155 of 400."""
    archive = shared_data / "omniglot" / "all_runs.zip"
    if not archive.is_file():
        pytest.skip(f"Lake's one-shot runs are not in {archive.parent}: put his all_runs.zip there")
    shares = errors(one_shot_runs(archive, SIZE))
    assert shares.shape == (20,)
    assert round(float(shares.mean()) * 400) == 155
