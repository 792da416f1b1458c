"""The benchmark of poses: rows that a run of the command has too, what a row measures, and that it goes on where it was."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import poses
from benchmarks.memorisation import slug
from benchmarks.poses import ROWS, cell, table
from inference.meta.regression_options import DEFAULT
from inference.meta.settings import MetaSchedule

ERRORS = {f"{split}_{kind}": 0.5 for split in ("train", "val", "test") for kind in ("mse", "median")}


def test_rows_are_those_of_the_command():
    assert sorted(method for method, _ in ROWS.values()) == sorted(DEFAULT["poses"])
    assert len({slug(name) for name in ROWS}) == len(ROWS)


def test_the_table_has_means_and_deviations_of_seeds(tmp_path):
    for seed, error in ((0, 2.0), (1, 4.0)):
        row = ERRORS | {"test_mse": error, "seconds": 30.0, "shared_rate": 100.0, "code_rate": None}
        (tmp_path / f"{seed}-{slug('MR-CNP (W)')}.json").write_text(json.dumps(row))
    row = ERRORS | {"seconds": 30.0, "shared_rate": None, "code_rate": 1.25, "train_mse": None}
    (tmp_path / f"0-{slug('MR-CNP (A)')}.json").write_text(json.dumps(row))
    _, codes, weights = table(tmp_path).splitlines()
    assert codes.split() == ["MR-CNP", "(A)", "-", "0.50", "0.50", "-", "1.25", "30"]
    words = ["MR-CNP", "(W)", "0.50", "(0.00)", "3.00", "(1.41)", "0.50", "(0.00)", "2.89", "(.18)", "100", "(0)", "once"]
    assert weights.split() == [*words, "30", "(0)"]


def test_rates_of_codes_are_of_one_query_and_tasks_have_fifteen(tmp_path, monkeypatch):
    setups, drawn = [], []

    class Setup:
        def __init__(self, problem, guide, schedule, queries):
            self.problem, self.schedule = problem, schedule
            setups.append(queries)

        def draw(self, tasks, seed, *, split):
            drawn.append((tasks, split))
            return split

    fit = SimpleNamespace(objective=SimpleNamespace(elbo=SimpleNamespace(beta=1.0)), state_dict=lambda: {"w": torch.ones(1)})
    entry = SimpleNamespace(variants=lambda swept, problem: [None], train=lambda setup, variant: fit)
    monkeypatch.setattr(poses, "Setup", Setup)
    monkeypatch.setattr(poses, "REGRESSION_METHODS", {"fake": entry})
    monkeypatch.setattr(poses, "measure", lambda fit, split: ({"mse": 1.0, "mse_median": 0.5, "rate": 30.0}, None))
    monkeypatch.setattr(poses, "shared_rate", lambda fit, tasks: None)
    found = cell("fake", MetaSchedule(20, batch=10, seed=0), tmp_path / "net.safetensors")
    assert found["code_rate"] == 2.0
    assert setups == [15]
    assert drawn == [(200, "train"), (200, "val"), (200, "test")]


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    done = []

    def once(method, schedule, network):
        done.append((method, schedule.tasks, schedule.seed, network.name))
        return ERRORS | {"seconds": 1.0, "shared_rate": None, "code_rate": None}

    monkeypatch.setattr(poses, "cell", once)
    for _ in range(2):
        poses.main([str(tmp_path / "runs"), "--seed", "2", "--tasks", "30", "--only", "CNP"])
    assert done == [(ROWS["CNP"][0], 30, 2, "2-cnp.safetensors")]
    assert capsys.readouterr().out.count("8.48 (.12)") == 2


@pytest.mark.slow
def test_a_row_is_of_training_letters_and_of_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(poses, "TASKS", 40)
    path, schedule = tmp_path / "net.safetensors", MetaSchedule(20, batch=10, seed=0)
    first, again = (cell("mr-cnp:code=5:width=8:noise=1:penalty=codes:weight=0.01", schedule, path) for _ in range(2))
    assert first == again
    assert len({first[f"{split}_mse"] for split in ("train", "val", "test")}) == 3
    assert first["train_mse"] == pytest.approx(8.33, abs=2)
    assert first["code_rate"] > 0
    assert first["shared_rate"] is None
    weights = cell("mr-cnp:code=5:width=8:noise=1:weight=1e-6", schedule, tmp_path / "other.safetensors")
    assert weights["shared_rate"] > 0
