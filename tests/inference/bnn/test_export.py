"""Which weights are saved: all, thinned by a stated rule, or those asked for."""

import pytest
import torch

from inference.bnn.export import spread_evenly, weight_content

WEIGHTS = {"large": torch.randn(3, 50, 30), "small": torch.randn(3, 7)}


def test_large_parameters_are_thinned_and_said_to_be():
    content = weight_content(WEIGHTS)
    kept = content.groups["posterior"]
    assert kept["large"].shape == (3, 1000)
    torch.testing.assert_close(kept["large"], WEIGHTS["large"].flatten(1)[:, content.coords["large_index"]])
    assert kept["small"] is WEIGHTS["small"]
    assert content.notes["thinned"].startswith("large: 1000 of 1500")
    assert content.notes["left_out"] == "none"


def test_named_parameters_are_whole_and_the_others_said_to_be_left_out():
    content = weight_content(WEIGHTS, ["large"])
    assert content.groups["posterior"].keys() == {"large"}
    assert content.groups["posterior"]["large"].shape == (3, 50, 30)
    assert content.notes == {"thinned": "none", "left_out": "small"}


def test_unknown_parameters_are_named():
    with pytest.raises(ValueError, match="no parameter 'big': choose large, small"):
        weight_content(WEIGHTS, ["big"])


@pytest.mark.parametrize("numbers", [1001, 1500, 78_400])
def test_indices_are_spread_evenly(numbers):
    index = spread_evenly(numbers, 1000)
    assert (int(index[0]), int(index[-1])) == (0, numbers - 1)
    steps = index.diff()
    assert int(steps.min()) >= 1
    assert int(steps.max() - steps.min()) <= 1
