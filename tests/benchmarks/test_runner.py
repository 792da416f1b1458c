"""The runner of speed cases: programs take turns, ratios are of the same round, and all numbers are written."""

import argparse
import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.speed import growth, maml, sib, timing
from benchmarks.speed.roofline import counted
from benchmarks.speed.timing import interleave
from data.episodes import EpisodeSampler
from data.errors import UserError


class Clock:
    """Time that programs take as they say, on a machine that slows down."""

    def __init__(self):
        self.now, self.load, self.called = 0.0, 1.0, []

    def takes(self, name, seconds):
        def program():
            self.called.append(name)
            self.now += self.load * seconds
            self.load *= 1.2

        return program


def test_ratios_are_of_programs_that_take_turns(monkeypatch):
    clock = Clock()
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: clock.now)
    programs = {"slow": clock.takes("slow", 3.0), "quick": clock.takes("quick", 1.0)}
    slow, quick = interleave("case", "group", programs, rounds=4, work=10)
    assert clock.called == ["slow", "quick"] * 6, "two rounds are not counted"
    assert (slow.ratio, slow.low, slow.high) == (1, 1, 1)
    assert (quick.low, quick.ratio, quick.high) == pytest.approx((2.5, 2.5, 2.5)), "3 / 1.2 in every round"
    assert quick.per_second == pytest.approx(10 / quick.seconds)


def test_a_case_writes_its_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    rows = main(["bnn-step", "--batch", "4", "--rounds", "2", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["name"] for row in found["rows"]] == [row.name for row in rows]
    assert found["options"]["batch"] == [4]
    printed = capsys.readouterr().out
    assert all(row.name in printed for row in rows)
    assert rows[1].extra["× deterministic"] == pytest.approx(1 / rows[1].ratio)


def test_each_goes_through_as_many_tasks_at_a_batch_of_its_own(monkeypatch, capsys):
    """With a stand-in for the original's class."""

    class Classifier(torch.nn.Module):
        def __init__(self, way, width, steps):
            super().__init__()
            self.layer = torch.nn.Linear(width, way)

        def forward(self, support_x, support_y, query_x, step_size):
            return self.layer(query_x)

    asked, sample = [], EpisodeSampler.sample
    monkeypatch.setattr(sib, "LARGE", (2, 1))
    monkeypatch.setattr(sib, "classifier_of", lambda checkout: Classifier)
    monkeypatch.setattr(EpisodeSampler, "sample", lambda self, n, seed: asked.append(n) or sample(self, n, seed=seed))
    bank = sib.bank_of(None, classes=5, images=20, width=40)
    options = argparse.Namespace(original="a checkout", device="cpu", compile=False, rounds=1, clock="cpu")
    rows = sib.at_their_batches(options, bank, bank)
    assert [row.name for row in rows] == ["original, 2 a step", "original, 1 a step", "ours, default, 16 a step"]
    assert asked == ([2] * 16 + [1] * 32 + [16] * 2) * 7
    assert all(row.per_second == pytest.approx(32 / row.seconds) for row in rows)


def test_evaluation_after_the_last_step_alone_is_that(monkeypatch):
    asked = []
    monkeypatch.setattr(sib, "evaluate_readings", lambda model, guides, sampler, **how: asked.append(list(guides)))
    monkeypatch.setattr(sib, "extraction", lambda options: [])
    sib.evaluation(argparse.Namespace(original=None, features=None, device="cpu", rounds=2, clock="cpu"))
    assert asked == [[0, 1, 2, 3], [3]] * 12, "three settings in four rounds"


def test_maml_and_its_peer_take_the_same_steps(monkeypatch, tmp_path):
    """Beside a stand-in for learn2learn's class that is written down here."""

    class Loop(torch.nn.Module):
        def __init__(self, module, lr, first_order):
            super().__init__()
            self.module, self.lr, self.first_order = module, lr, first_order
            self.moved = dict(module.named_parameters())

        def clone(self):
            return Loop(self.module, self.lr, self.first_order)

        def forward(self, x):
            return torch.func.functional_call(self.module, self.moved, (x,))

        def adapt(self, loss):
            pulls = torch.autograd.grad(loss, list(self.moved.values()), create_graph=not self.first_order)
            self.moved = {n: p - self.lr * g for (n, p), g in zip(self.moved.items(), pulls, strict=True)}

    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    tasks = maml.images(2, "cpu")
    for first_order in (False, True):
        one = maml.theirs(Loop, maml.network_of(2, "cpu"), tasks, 2, first_order=first_order)
        other = maml.ours(maml.network_of(2, "cpu"), tasks, 2, first_order=first_order)
        assert [one() for _ in range(3)] == pytest.approx([other() for _ in range(3)], rel=2e-3)
    monkeypatch.setattr(maml, "WIDTHS", (2,))
    rows = main(["maml-step", "--batch", "1", "--rounds", "1"])
    assert [row.name for row in rows] == 3 * ["ours"]
    with pytest.raises(UserError, match="learn2learn="):
        main(["maml-step", "--learn2learn", str(tmp_path)])


def test_operations_and_bytes_of_a_product_are_known():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    flops, moved = counted(lambda: (a @ b).T)
    assert flops == 2 * 3 * 5 * 7
    assert moved == 4 * (15 + 35 + 21), "a view moves nothing"


def test_memory_is_what_a_program_holds_at_most():
    held = growth.peak_memory(lambda: torch.ones(2**24).add_(1).sum())
    assert 60 < held < 80, "64 MiB"


def test_exponents_are_those_of_a_power_law():
    sizes = (1, 2, 4)
    rows = [
        timing.Row("growth", "against K", f"K = {n}", 3.0 * n**2, 0, 1, 1, 1, {"size": n, "MiB": 5 * n**0.5}) for n in sizes
    ]
    found = growth.exponents(rows)
    assert list(found.values()) == pytest.approx([2, 2, 0.5, 0.5])
