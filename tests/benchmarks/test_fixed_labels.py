"""The benchmark of labels that classes keep: rows that the command takes, what a row measures, and going on where it was."""

import json
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from benchmarks import fixed_labels
from benchmarks.fixed_labels import ROWS, WAY, Row, cell, measured, options_of, table
from benchmarks.memorisation import slug
from tests.conftest import marked_images, marked_splits, splits_of

HOW = {"batch": 4, "learning_rate": 1e-3, "seed": 0}
NUMBERS = dict.fromkeys(("train", "anew", "test", "train_information", "test_information", "seconds"), 50.0)


def test_rows_are_options_of_the_command_on_the_same_network_and_steps(tmp_path):
    made = {name: options_of(row, tmp_path, tasks=80, **HOW) for name, row in ROWS.items()}
    assert {options.partition for name, options in made.items() if "exclusive" not in name} == {0}
    assert {options.partition for name, options in made.items() if "exclusive" in name} == {None}
    assert {(v.steps, options.backbone) for options in made.values() for v in options.variants()} == {
        (5, fixed_labels.BACKBONE)
    }
    assert len({slug(name) for name in ROWS}) == len(ROWS)


def test_the_papers_weight_is_beside_a_mean(tmp_path):
    options = options_of(Row("mr-maml", 1e-3), tmp_path, tasks=80, **HOW)
    assert options.beta == (pytest.approx(1e-3 * 80 * WAY * fixed_labels.QUERIES),)


def test_the_table_stars_the_weight_that_validation_chooses(tmp_path):
    weights = [name for name in ROWS if ROWS[name].weight is not None]
    for name, validated in zip(weights, (40.0, 60.0, 50.0, 45.0), strict=True):
        for seed in (0, 1):
            row = {**NUMBERS, "val": validated, "test": 10.0 * seed, "rate": 1234.0}
            (tmp_path / f"{seed}-{slug(name)}.json").write_text(json.dumps(row))
    (tmp_path / f"0-{slug('MAML, head')}.json").write_text(json.dumps({**NUMBERS, "val": 70.0, "rate": None}))
    head, *rows = table(tmp_path).splitlines()
    assert [row.strip().startswith("*") for row in rows] == [False, False, True, False, False]
    assert "5.0 (7.1)" in rows[2]
    assert "1234 (0) once" in rows[2]
    assert "new characters" in head


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    done = []

    def once(row, options, path):
        done.append((row.method, options.network_tasks, options.seed, path.name))
        return {**NUMBERS, "val": 50.0, "rate": None}

    monkeypatch.setattr(fixed_labels, "cell", once)
    for _ in range(2):
        asked = ["--root", str(tmp_path), "--seed", "2", "--tasks", "30", "--only", "MAML, head"]
        fixed_labels.main([str(tmp_path / "runs"), *asked])
    assert done == [(ROWS["MAML, head"].method, 30, 2, "2-maml__head")]
    assert capsys.readouterr().out.count("MAML, head") == 4 - 1


@pytest.mark.parametrize(("labels", "kept"), [("fixed", 0), ("exclusive", None)])
def test_training_tasks_are_scored_as_they_were_and_with_labels_numbered_anew(labels, kept, tmp_path, monkeypatch):
    asked, parts = [], marked_splits(classes=10)

    class Seen(NamedTuple):
        accuracy: float = 0.5
        ci95: float = 0.1

    def scored(model, guide, sampler, **_):
        asked.append((splits_of(sampler.items), sampler.spec.partition))
        return Seen()

    monkeypatch.setattr(fixed_labels, "evaluate", scored)
    monkeypatch.setattr(fixed_labels, "features_of", lambda learner, data, run, split: parts[split])
    monkeypatch.setattr(fixed_labels, "map_items", lambda space, part: part)
    monkeypatch.setattr(fixed_labels, "support_information", lambda *_, **__: torch.tensor(0.25))
    monkeypatch.setattr(fixed_labels, "shared_rate", lambda *_: None)
    options = options_of(Row("maml", labels=labels), tmp_path, tasks=16, **HOW)
    found = measured(SimpleNamespace(model=None, guide=None, space=None), options, None, None)
    assert asked == [({"train"}, kept), ({"train"}, None), ({"val"}, None), ({"test"}, None)]
    assert (found["anew"], found["anew_ci95"], found["test_information"]) == (50.0, 10.0, 0.25)


@pytest.mark.slow
def test_a_row_is_measured_on_training_tasks_and_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(fixed_labels, "load_data", lambda *_, **__: marked_images(classes=10, images=12))
    for name, number in {"TASKS": 20, "DEPENDENT": 8, "BACKBONE": "conv4-4"}.items():
        monkeypatch.setattr(fixed_labels, name, number)
    row = Row("mr-maml:steps=1:norm=task:tested=means", 1e-5)
    options = options_of(row, tmp_path, tasks=16, **HOW)
    first, again = (cell(row, options, tmp_path / "run") for _ in range(2))
    assert first == again
    assert first["rate"] > 0
    assert first["seconds"] > 0
    assert len({first[name] for name in ("train", "anew", "val", "test")}) > 1
    assert first["train_information"] != first["test_information"]
    plain = cell(Row("maml:steps=1:adapted=head"), options_of(Row("maml"), tmp_path, tasks=16, **HOW), tmp_path / "other")
    assert plain["rate"] is None
