"""Draws as ArviZ takes them: chains, thinning, names, files."""

import arviz
import pytest
import torch

from inference.evaluation.arviz import (
    Group,
    choose_observed,
    parameter_dims,
    save_posteriors,
    spread_evenly,
    thinned,
    to_inference_data,
    whole_chains,
)
from inference.runs.folder import RunFolder
from sibyl import __version__


class TestChains:
    def test_are_blocks_of_draws(self):
        data = to_inference_data({"posterior": Group({"w": torch.arange(16.0)})})
        assert data.posterior["w"].values.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]

    def test_of_draws_in_turn_are_taken_apart(self):
        data = to_inference_data({"posterior": Group({"w": torch.arange(6.0)})}, chains=2, in_turn=True)
        assert data.posterior["w"].values.tolist() == [[0, 2, 4], [1, 3, 5]]

    def test_hold_equally_many_of_each_component(self):
        assert (whole_chains(200), whole_chains(5), whole_chains(100, 3), whole_chains(9, 1, 2)) == (200, 16, 108, 10)

    def test_of_unequal_length_are_refused(self):
        with pytest.raises(ValueError, match="6 draws do not make 4 chains"):
            to_inference_data({"posterior": Group({"w": torch.arange(6.0)})})

    def test_observed_data_have_none(self):
        data = to_inference_data({"observed_data": Group({"y": torch.arange(6)}, {"y": ["item"]})})
        assert data.observed_data["y"].dims == ("item",)


class TestThinning:
    def test_keeps_at_most_so_many_numbers_and_says_which(self):
        weights = {"0.weight": torch.randn(3, 50, 30), "0.bias": torch.randn(3, 50), "1.weight": torch.randn(3, 7, 2)}
        group, note = thinned(weights, parameter_dims({name: value.shape[1:] for name, value in weights.items()}))
        assert note.startswith("0.weight: 33×30 of 50×30; 0.bias: 33 of 50; evenly spaced")
        units = torch.tensor(group.coords["0.unit"])
        assert (len(units), int(units[0]), int(units[-1])) == (33, 0, 49)
        torch.testing.assert_close(group.values["0.weight"], weights["0.weight"][:, units])
        torch.testing.assert_close(group.values["0.bias"], weights["0.bias"][:, units])
        torch.testing.assert_close(group.values["1.weight"], weights["1.weight"])

    def test_leaves_small_variables_alone(self):
        group, note = thinned({"w": torch.randn(2, 10, 100)}, {"w": ["a", "b"]})
        assert group.values["w"].shape == (2, 10, 100)
        assert note == "none"

    def test_dimensions_that_stay_whole_do_not_count(self):
        group, _ = thinned({"w": torch.randn(2, 500, 40)}, {"w": ["task", "feature"]}, whole=["task"])
        assert group.values["w"].shape == (2, 500, 40)

    @pytest.mark.parametrize("numbers", [1001, 1500, 78_400])
    def test_indices_are_spread_evenly(self, numbers):
        index = spread_evenly(numbers, 1000)
        assert (int(index[0]), int(index[-1])) == (0, numbers - 1)
        steps = index.diff()
        assert int(steps.min()) >= 1
        assert int(steps.max() - steps.min()) <= 1


def test_parameters_of_a_layer_share_its_dimensions():
    shapes = {
        "a.weight": (8, 4, 3, 3),
        "a.bias": (8,),
        "weight": (2, 5),
        "t.weight": (3, 6, 1, 1),
        "t.bias": (6,),
        "deep": (1,) * 5,
    }
    dims = parameter_dims({name: torch.Size(shape) for name, shape in shapes.items()})
    assert dims["a.weight"] == ["a.unit", "a.input", "a.row", "a.column"]
    assert dims["a.bias"] == ["a.unit"]
    assert dims["weight"] == ["unit", "input"]
    assert dims["t.bias"] == ["t.bias_dim_0"], "a transposed convolution has its units elsewhere"
    assert dims["deep"] == [f"deep_dim_{i}" for i in range(5)]


def test_observed_items_are_a_seeded_choice_in_order():
    assert choose_observed(5, 10, 0).tolist() == [0, 1, 2, 3, 4]
    chosen = choose_observed(100, 10, 0)
    assert len(chosen.unique()) == 10
    assert bool((chosen.diff() > 0).all())
    assert not torch.equal(chosen, choose_observed(100, 10, 1))


def test_every_posterior_has_a_file_and_the_chosen_one_two(tmp_path):
    run = RunFolder(tmp_path)

    def make(number):
        return to_inference_data(
            {"posterior": Group({"w": torch.full((16,), number)})}, attributes={"method": f"m{number:g}", "beta": None}
        )

    save_posteriors({"one": lambda: make(1.0), "two": lambda: make(2.0)}, "one", run)
    assert {p.name for p in run.posteriors.iterdir()} == {"one.nc", "two.nc"}
    found = {name: arviz.from_netcdf(path) for name, path in (("two", run.posteriors / "two.nc"), ("chosen", run.posterior))}
    assert {name: float(data.posterior["w"].mean()) for name, data in found.items()} == {"two": 2.0, "chosen": 1.0}
    assert found["chosen"].attrs["version"] == __version__
    assert "beta" not in found["chosen"].attrs
