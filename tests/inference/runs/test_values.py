"""Option values: ranges of numbers and several values separated by commas, from text, YAML or Python."""

import pickle

import pytest

from inference.bnn.options import Algorithm, Algorithms
from inference.runs.values import Counts, Sweep, Widths
from inference.vid.methods import Method
from inference.vid.options import LayerPairs, Methods


@pytest.mark.parametrize("given", ["1,0.1", "0.1, 1, 0.1", "[0.1, 1]", [0.1, 1], (1.0, 0.1), ["1", "0.1"]])
def test_a_sweep_is_its_numbers_ascending_however_it_is_given(given):
    assert Sweep.read(given) == (0.1, 1.0)
    assert str(Sweep.read(given)) == "0.1,1"


def test_one_number_is_a_sweep_of_one():
    assert Sweep.read(0.3) == Sweep.read("0.3") == (0.3,)


@pytest.mark.parametrize("given", ["-1", "nan", "inf", "0.1,lots", True, [None]])
def test_a_sweep_has_finite_numbers_that_are_not_negative(given):
    with pytest.raises(ValueError, match="is not a finite number, 0 or more"):
        Sweep.read(given)


def test_a_sweep_keeps_every_digit():
    values = Sweep((1e-5, 1 / 3, 123456789.0))
    assert Sweep.read(str(values)) == values


def test_counts_end_with_all():
    assert Counts.read("all, 20,5") == (5, 20, None)
    assert str(Counts.read(["all", 5])) == "5,all"
    assert Counts.read(7) == (7,)


@pytest.mark.parametrize("given", ["0", "five", "1.5", -3, True])
def test_counts_are_positive_whole_numbers(given):
    with pytest.raises(ValueError, match="is not a positive whole number, or all"):
        Counts.read(given)


def test_equal_widths_are_all_kept():
    assert Widths.read("400,400") == Widths.read([400, 400]) == (400, 400)
    assert Widths.read("") == ()
    assert Widths.read(10) == (10,)


def test_names_become_members():
    assert Algorithms.read("online,vanilla") == (Algorithm.ONLINE, Algorithm.VANILLA)
    assert str(Algorithms.read([Algorithm.ONLINE])) == "online"
    with pytest.raises(ValueError, match="magic is unknown: choose vanilla, fixed-prior"):
        Algorithms.read("online,magic")


def test_sums_of_methods_are_read_once_and_keep_their_names():
    methods = Methods.read("student,0.5*kd+2*vid")
    assert dict(methods) == {"student": Method(), "0.5*kd+2*vid": Method(((0.5, "kd"), (2.0, "vid")))}
    assert Methods.read(str(methods)) == methods


def test_pairs_of_layers():
    pairs = LayerPairs.read("1.2:1.6,1.4:1.8")
    assert pairs == (("1.2", "1.6"), ("1.4", "1.8"))
    assert LayerPairs.read(str(pairs)) == pairs


def test_nothing_is_no_value():
    with pytest.raises(ValueError, match="at least one"):
        Algorithms.read(" , ")


def test_values_travel_to_other_processes():
    for value in (Sweep((0.1, 1.0)), Counts((5, None)), Methods.read("kd+vid")):
        again = pickle.loads(pickle.dumps(value))
        assert again == value
        assert type(again) is type(value)
