"""Arguments of another kind: refused by name, in one line, whatever they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.arguments import as_number, as_path, as_truth, as_whole, check_kind, shown
from data.errors import UserError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_any_library_become_pythons(value):
    assert as_whole(value, "count") == 3
    assert type(as_whole(value, "count")) is int


@pytest.mark.parametrize("value", [True, 2.0, "3", None, -1, 2**63, float("nan"), torch.ones(2), torch.tensor(1.5), object()])
def test_what_is_no_whole_number_is_refused_by_name(value):
    with pytest.raises(UserError, match=r"`count=.*` must be a whole number, 0 or more") as raised:
        as_whole(value, "count")
    assert len(str(raised.value)) < 130


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2.0), torch.tensor(2.0)])
def test_numbers(value):
    assert as_number(value, "scale") == 2.0


@pytest.mark.parametrize("value", [0, -1, True, "2", None, float("inf"), float("nan"), 1e300, 1e-300, 10**400, torch.ones(2)])
def test_what_single_precision_cannot_compute_with_is_refused(value):
    with pytest.raises(UserError, match=r"`scale=.*` must be a number, above 0"):
        as_number(value, "scale")


def test_paths():
    assert as_path("a/b") == as_path(Path("a/b")) == Path("a/b")
    for wrong in ("", "a\0b", b"bytes", None, 3, torch.ones(2)):
        with pytest.raises(UserError, match="`out"):
            as_path(wrong, "out")


def test_truth_and_kinds():
    assert as_truth(np.bool_(True), "mirror") is True
    with pytest.raises(UserError, match="`mirror` must be true or false, not an int"):
        as_truth(1, "mirror")
    with pytest.raises(UserError, match="`network` must be a module, not None"):
        check_kind("network", None, torch.nn.Module, "a module")


def test_values_are_shown_in_few_words():
    assert shown(torch.zeros(12, 3)) == "a Tensor of shape 12×3"
    assert shown("a\nb") == "a b"
    assert shown("x" * 500) == "x" * 59 + "…"
    assert len(shown([[0.123456] * 50] * 50)) <= 60
