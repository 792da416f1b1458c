"""Applies mutations to a copy of the tree, one at a time, and asks the named tests whether they notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

MADE_BY_RUNS = {"runs", "build", "dist"}  # folders of the root that hold results
PASSED, FAILED, NOTHING_RUN = 0, 1, (4, 5)  # pytest's exit codes; 4 and 5: no such test


class Verdict(StrEnum):
    """What became of a mutation."""

    CAUGHT = "caught"
    """A named test fails with it and passes without."""
    SURVIVED = "SURVIVED"
    """All named tests pass with it: nothing guards the claim."""
    STALE = "STALE"
    """Its text does not occur exactly once in its file: the code has changed, so must the entry."""
    UNTESTED = "UNTESTED"
    """A named test does not exist."""
    FAILING = "FAILING"
    """A named test fails without it, so it can tell nothing."""
    BROKEN = "BROKEN"
    """The tests cannot be run with it: it breaks more than the claim."""


@dataclass(frozen=True)
class Mutation:
    """One change of the code that a test must notice.

    Attributes:
        claim: what is true of the unchanged code, in words.
        file: relative to the root of the repository.
        find: text that occurs exactly once in the file.
        replace: what stands there instead.
        tests: files or node ids of pytest that guard the claim.
    """

    claim: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str | None:
        """The mutated source; ``None`` where the text does not occur exactly once, or the change is none."""
        return source.replace(self.find, self.replace) if source.count(self.find) == 1 and self.find != self.replace else None


def read_mutations(path: Path) -> list[Mutation]:
    """The entries ``[[mutation]]`` of a TOML file, in its order."""
    entries = tomllib.loads(path.read_text())["mutation"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


class Workshop:
    """A copy of the tree to break things in; the tree itself is only read.

    Args:
        root: the repository.
        folder: an empty or new folder for the copy.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.copy = root, folder / "tree"
        shutil.copytree(root, self.copy, ignore=self.left_out)
        self.sound: dict[tuple[str, ...], int] = {}

    def left_out(self, folder: str, names: list[str]) -> set[str]:
        """What of a folder is not copied: hidden and compiled files, and results."""
        own = {name for name in names if name.startswith(".") or name == "__pycache__" or name.endswith(".egg-info")}
        return own | MADE_BY_RUNS if Path(folder) == self.root else own

    def judge(self, mutation: Mutation) -> Verdict:
        """Whether the mutation's tests pass without it and fail with it."""
        path = self.copy / mutation.file
        original = path.read_text() if path.exists() else ""
        mutated = mutation.applied(original)
        if mutated is None:
            return Verdict.STALE
        if mutation.tests not in self.sound:  # mutations share tests
            self.sound[mutation.tests] = self.run_tests(mutation.tests)
        if self.sound[mutation.tests] != PASSED:
            return Verdict.UNTESTED if self.sound[mutation.tests] in NOTHING_RUN else Verdict.FAILING
        try:
            path.write_text(mutated)
            code = self.run_tests(mutation.tests)
        finally:
            path.write_text(original)
        return {PASSED: Verdict.SURVIVED, FAILED: Verdict.CAUGHT}.get(code, Verdict.BROKEN)

    def run_tests(self, tests: Iterable[str]) -> int:
        """pytest's exit code for the tests in the copy, up to the first failure."""
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        # compiled files are told apart by second and size, which a mutation may leave as they were
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.setdefault("SIBYL_DATA", str(self.root.parent / "shared" / "data"))  # beside the tree, not beside the copy
        return subprocess.run(words, cwd=self.copy, env=environment, capture_output=True).returncode
