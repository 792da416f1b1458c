"""Methods by name: what they compare, and with which λ."""

import pytest
import torch
from torch import nn

from data.errors import UserError
from inference.vid.methods import KINDS, Method, few_layers
from models.distillation.losses import Transfer
from tests.inference.vid.conftest import images, network


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("student", Method()),
        ("vid+at", Method(((1.0, "vid"), (1.0, "at")))),
        ("0.5*kd + 2*vid", Method(((0.5, "kd"), (2.0, "vid")))),
        ("finetuned+vid", Method(((1.0, "vid"),), finetuned=True)),
        ("fitnet-stages", Method(((1.0, "kd"),), stages=True)),
    ],
)
def test_methods_parse(text, method):
    assert Method.parse(text) == method


@pytest.mark.parametrize(
    ("text", "message"), [("magic", "unknown method 'magic': choose student, finetuned"), ("0*vid", "coefficient '0'")]
)
def test_bad_methods_are_named(text, message):
    with pytest.raises(UserError, match=message):
        Method.parse(text)


def test_coefficients_of_a_sum_multiply_their_terms():
    """0.5*kd+2*vid at strength 3: λ is 3 · 0.5 · KD's and 3 · 2 · VID's."""
    where = network("conv4-8"), network(), images(2).items
    plain, summed = (Method.parse(text).pairs(*where, strength) for text, strength in (("kd+vid", 1.0), ("0.5*kd+2*vid", 3.0)))
    assert [pair[:2] for pair in plain] == [pair[:2] for pair in summed]
    assert {pair.transfer for pair in plain} == {Transfer.KD, Transfer.VID}
    for before, after in zip(plain, summed, strict=True):
        factor = 1.5 if before.transfer is Transfer.KD else 6.0
        assert after.weight == pytest.approx(factor * before.weight)


def test_weights_are_per_layer_or_per_number():
    (kd,) = Method.parse("kd").pairs(network("conv4-8"), network(), images(2).items, 1.0)
    assert kd.weight == KINDS["kd"].weight
    first, *_ = Method.parse("vid").pairs(network("conv4-8"), network(), images(2).items, 1.0)
    assert first.weight == pytest.approx(KINDS["vid"].weight / (8 * 8 * 8)), "the first pool has 8 channels of 8 × 8"


def test_logits_meet_the_input_of_the_last_linear_layer():
    (pair,) = Method.parse("vid-logits").pairs(network("conv4-8"), network(), images(2).items, 1.0)
    assert (pair.teacher, pair.student) == ("2", "2.input")


def test_a_single_pair_of_layers_is_told():
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 49, 3))
    x = torch.rand(2, 1, 16, 16)
    assert few_layers(Method.parse("kd+vid"), flat, flat, x).startswith("only one pair of layers was found, 1 of the teacher")
    assert few_layers(Method.parse("kd"), flat, flat, x) is None, "which looks at logits alone"
    assert few_layers(Method.parse("vid"), network(), network(), images(2).items) is None
    mlp = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    assert few_layers(Method.parse("vid"), mlp, mlp, torch.rand(2, 5)) is None, "one hidden layer is all there is"
