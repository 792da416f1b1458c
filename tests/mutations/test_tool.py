"""The tool itself, on a tree of three lines, and the table's fit to the present code."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.mutations.__main__ import TABLE, main, matches
from tests.mutations.tool import Mutation, Verdict, Workshop, read_mutations

TESTS = """
from room import double, half

def test_double():
    assert double(3) == 6

def test_always_fails():
    assert double(3) == 7

def test_nothing():
    pass
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    """A workshop for a tree with one module and its tests."""
    root = tmp_path_factory.mktemp("root")
    (root / "room.py").write_text("def double(x):\n    return 2 * x\n\ndef half(x):\n    return x / 2\n")
    (root / "test_room.py").write_text(TESTS)
    for folder in (".venv", "runs", "inference/runs"):
        (root / folder).mkdir(parents=True)
    return Workshop(root, tmp_path_factory.mktemp("copy"))


def mutation(find: str, replace: str, *tests: str, file: str = "room.py") -> Mutation:
    """A mutation of the small tree."""
    return Mutation("double doubles", file, find, replace, tests)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (mutation("2 * x", "3 * x", "test_room.py::test_double"), Verdict.CAUGHT),
        (mutation("2 * x", "x + x", "test_room.py::test_double"), Verdict.SURVIVED),
        (mutation("2 * x", "3 * x", "test_room.py::test_nothing"), Verdict.SURVIVED),
        (mutation("4 * x", "3 * x", "test_room.py::test_double"), Verdict.STALE),
        (mutation("return", "yield", "test_room.py::test_double"), Verdict.STALE),
        (mutation("2 * x", "2 * x", "test_room.py::test_double"), Verdict.STALE),
        (mutation("2 * x", "3 * x", "test_room.py::test_double", file="gone.py"), Verdict.STALE),
        (mutation("2 * x", "3 * x", "test_gone.py"), Verdict.UNTESTED),
        (mutation("2 * x", "3 * x", "test_room.py::test_gone"), Verdict.UNTESTED),
        (mutation("2 * x", "3 * x", "test_room.py::test_always_fails"), Verdict.FAILING),
        (mutation("2 * x", "2 *", "test_room.py::test_double"), Verdict.BROKEN),
    ],
)
def test_verdicts(workshop, change, verdict):
    before = (workshop.copy / "room.py").read_text()
    assert workshop.judge(change) is verdict
    assert (workshop.copy / "room.py").read_text() == before == (workshop.root / "room.py").read_text()


def test_the_copy_has_the_code_and_not_its_results(workshop):
    assert {path.name for path in workshop.copy.iterdir()} == {"room.py", "test_room.py", "inference"}
    assert (workshop.copy / "inference" / "runs").is_dir()


def test_a_pattern_looks_at_claim_file_and_tests():
    change = mutation("2 * x", "3 * x", "test_room.py::test_double")
    assert all(matches(change, pattern) for pattern in ("", "DOUBLES", r"room\.py$", "test_double"))
    assert not matches(change, "treble")


def test_command_lists_and_names_what_it_cannot_find(capsys):
    assert main(["--list", "front_door"]) == 0
    assert "sibyl/__init__.py" in capsys.readouterr().out
    assert main(["no such claim"]) == 2
    assert capsys.readouterr().err.startswith("error: no mutation matches 'no such claim'")


@pytest.mark.parametrize("entry", read_mutations(TABLE), ids=lambda entry: entry.claim)
def test_entries_fit_the_present_code(entry):
    path: Path = ROOT / entry.file
    assert path.exists(), f"{entry.file} is gone: move the entry with its claim"
    assert entry.applied(path.read_text()) is not None, f"find does not occur exactly once in {entry.file}"
