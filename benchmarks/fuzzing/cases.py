"""Cases: command lines, files and Python calls that nobody should write, drawn by Hypothesis."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from benchmarks.fuzzing.calls import programs
from benchmarks.fuzzing.damage import ANY, HOSTILE, STRUCTURED, another_runs
from benchmarks.fuzzing.ground import BASES, words_of
from benchmarks.fuzzing.values import EXTRA, ODD, PATHS, PLACES, TEXT, hostile
from inference.bnn.options import BnnOptions
from inference.diagnose import DiagnoseOptions
from inference.meta.family_options import MetaOptions
from inference.meta.options import SibOptions
from inference.predict import PredictOptions
from inference.vid.options import VidOptions

OPTIONS = {
    "svi_sib": SibOptions,
    "svi_bnn": BnnOptions,
    "svi_vid": VidOptions,
    "svi_meta": MetaOptions,
    "predict": PredictOptions,
    "diagnose": DiagnoseOptions,
}
OUT = "out"
"""The folder of a run that a case begins."""
SURROUNDINGS = ("ascii", "C locale", "no home", "no temporary folder", "no output", "read-only place", "closed input")


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Attributes:
        kind: of case, a row of the table.
        command: a module below ``inference``, or ``python``.
        words: of the command line; of Python the program.
        damages: (file, way, number) done before it.
        surroundings: names of :data:`SURROUNDINGS`.
    """

    kind: str
    command: str
    words: tuple[str, ...]
    damages: tuple[tuple[str, str, int], ...] = ()
    surroundings: tuple[str, ...] = ()

    def __str__(self) -> str:
        done = [f"{way} {file!r} ({number})" for file, way, number in self.damages] + list(self.surroundings)
        line = self.words[0] if self.command == "python" else shlex.join(self.words)
        return f"{self.command} {line}".encode("utf-8", "backslashreplace").decode() + (
            f"   # {', '.join(done)}" if done else ""
        )


def hints(command: str) -> dict[str, Any]:
    """Option -> its type."""
    types_ = get_type_hints(OPTIONS[command])
    return {field.name: types_[field.name] for field in fields(OPTIONS[command])}


@st.composite
def option_values(draw: Any, most: int = 1) -> Case:
    """A sound command line with other values of one option or of several."""
    base = draw(st.sampled_from(sorted(BASES)))
    command, *words = words_of(base, OUT)
    known = hints(command)
    names = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=most, unique=True))
    more = [f"--{name.replace('_', '-')}={draw(hostile(name, known[name]))}" for name in names]
    kind = "one option" if most == 1 else "several options"
    return Case(f"{kind}: {command}", command, (*words, *more), EXTRA if any(name in PATHS for name in names) else ())


@st.composite
def places(draw: Any) -> Case:
    """A sound command line with a path that is none of the kind."""
    base = draw(st.sampled_from(sorted(BASES)))
    command, *words = words_of(base, OUT)
    name = draw(
        st.sampled_from(sorted({*hints(command), "config", *(["resume"] if command.startswith("svi") else [])} & PATHS))
    )
    if name == "resume":
        return Case("paths", command, (f"--resume={draw(PLACES)}",), EXTRA)
    return Case("paths", command, (*words, f"--{name.replace('_', '-')}={draw(PLACES)}"), EXTRA)


@st.composite
def command_lines(draw: Any) -> Case:
    """Words that are no options, options without values, the same twice."""
    command, *words = words_of(draw(st.sampled_from(sorted(BASES))), OUT)
    flags = st.sampled_from(sorted(f"--{name}" for name in hints(command)))
    odd = st.sampled_from(ODD)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(words)))
        words[place:place] = [
            draw(TEXT | odd | flags | flags.map(lambda flag: flag + "=") | flags.map(lambda flag: flag[:-1] + "=1"))
        ]
    if draw(st.booleans()):
        del words[draw(st.integers(0, len(words) - 1))]
    return Case("command lines", command, tuple(words))


@st.composite
def configurations(draw: Any) -> Case:
    """``--config`` with a value of another kind, or that is no configuration."""
    command, *words = words_of(draw(st.sampled_from(sorted(BASES))), OUT)
    name = draw(st.sampled_from(sorted(hints(command))))
    value = draw(
        st.sampled_from(HOSTILE)
        | st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXT, nest, max_leaves=6)
    )
    content = json.dumps({name: value}) if draw(st.integers(0, 3)) else json.dumps(value)
    words = [*without(words, name), "--config=made.yaml"]
    return Case("configurations", command, tuple(words), (("made.yaml", f"={content}", 0),))


def nest(inner: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Lists and mappings."""
    return st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)


def without(words: Sequence[str], name: str) -> list[str]:
    """A command line without one of its options."""
    pairs = [words[i : i + 2] for i in range(0, len(words), 2)]
    return [word for pair in pairs if pair[0] != f"--{name.replace('_', '-')}" for word in pair]


READERS = {
    "runs/sib": (
        *("svi_sib --resume runs/sib", "predict tasks", "predict other images", "predict own images"),
        "diagnose --run runs/sib --tasks 4",
    ),
    "runs/linear": ("svi_sib --resume runs/linear", "diagnose regression"),
    "runs/bnn": ("svi_bnn --resume runs/bnn", "diagnose networks"),
    "runs/vid": ("svi_vid --resume runs/vid", "diagnose --run runs/vid"),
    "runs/meta": ("svi_meta --resume runs/meta", "predict by a method"),
}
"""Run -> what reads it."""


@st.composite
def damaged_runs(draw: Any, files: dict[str, list[str]]) -> Case:
    """A run with a file that is not what it was, continued or read; with its manifest or without."""
    run = draw(st.sampled_from(sorted(READERS)))
    reader = draw(st.sampled_from(READERS[run]))
    command, *words = words_of(reader) if reader in BASES else reader.split()
    file = draw(st.sampled_from(files[run]))
    done = [(file, draw(ways(file, another_runs)), draw(st.integers(0, 999)))]
    if draw(st.booleans()):
        done.append((f"{run}/manifest.json", "gone", 0))
    if "--resume" in words:
        gone = draw(
            st.sampled_from(["metrics.json", "checkpoints/*.safetensors", "features.safetensors", "checkpoints/*/last.ckpt"])
        )
        done += [(found, "gone", 0) for found in files[run] if Path(found).match(f"{run}/{gone}") and found != file]
    return Case(f"damaged runs: {command}", command, tuple(words), tuple(done))


def ways(file: str, *more: Any) -> SearchStrategy[str]:
    """Names of ways to damage a file."""
    own = STRUCTURED.get(Path(file).suffix, ())
    return st.sampled_from([way.__name__ for way in (*ANY, *more, *own, *own)])


@st.composite
def damaged_data(draw: Any, files: dict[str, list[str]]) -> Case:
    """Data, features or weights that are not what they were."""
    readers = {
        "images": ("sib on images", "predict other images"), "images.zip": ("sib on an archive",), "lists": ("sib on lists",),
        "pairs": ("bnn on images", "vid"), "idx": ("bnn on idx files",), "features.safetensors": ("sib on features",),
        "labelled": ("predict own images",), "new": ("predict own images",), "network.pth": ("predict without a run",),
    }  # fmt: skip
    top = draw(st.sampled_from(sorted(readers)))
    command, *words = words_of(draw(st.sampled_from(readers[top])), OUT)
    file = draw(st.sampled_from(files[top]))
    done = [(file, draw(ways(file)), draw(st.integers(0, 999)))]
    if top in ("images", "lists", "pairs", "idx") and draw(st.booleans()):
        other = draw(st.sampled_from(files[top]))
        done.append((other, draw(ways(other)), draw(st.integers(0, 999))))
    return Case(f"damaged data: {top}", command, tuple(words), tuple(done))


@st.composite
def surrounded(draw: Any) -> Case:
    """A sound command line, or one that is refused, in a process whose surroundings are not."""
    command, *words = words_of(
        draw(st.sampled_from(["sib on features", "bnn on a curve", "predict tasks", "sib by regression"])), OUT
    )
    more = draw(st.sampled_from([[], [], ["--steps=é"], ["--data=\udcff"], ["--nonsense=ü"], ["--help"], ["--print-config"]]))
    return Case("surroundings", command, (*words, *more), (), (draw(st.sampled_from(SURROUNDINGS)),))


def kinds(files: dict[str, list[str]]) -> list[tuple[SearchStrategy[Case], int]]:
    """Kinds of cases with their share in a thousand.

    Args:
        files: top folder or run -> the sound files there.
    """
    return [
        (option_values(), 280),
        (option_values(4), 100),
        (places(), 100),
        (command_lines(), 60),
        (configurations(), 100),
        (damaged_runs(files), 150),
        (damaged_data(files), 120),
        (surrounded(), 20),
        (programs().map(lambda program: Case("Python", "python", (program,))), 170),
    ]


def files_of(ground: Path) -> dict[str, list[str]]:
    """The sound files, by the top folder that they lie in, or by their run."""
    found: dict[str, list[str]] = {}
    for file in sorted(ground.rglob("*")):
        if file.is_file():
            name = file.relative_to(ground)
            top = "/".join(name.parts[:2]) if name.parts[0] == "runs" else name.parts[0]
            found.setdefault(top, []).append(name.as_posix())
    for run in READERS:  # a run has many logs and pictures, which nothing reads
        found[run] = [name for name in found[run] if not {"logs", "plots"} & set(Path(name).parts)]
    return found


def drawn(count: int, seed: int, files: dict[str, list[str]]) -> list[Case]:
    """``count`` cases or a few more, the same for the same ``seed``, in turn of every kind."""
    total = sum(share for _, share in kinds(files))
    made = [examples(strategy, -(-count * share // total), seed) for strategy, share in kinds(files)]
    return [case for row in itertools.zip_longest(*made) for case in row if case is not None]


def examples(strategy: SearchStrategy[Case], count: int, seed: int) -> list[Case]:
    """The first ``count`` examples of a strategy."""
    import hypothesis

    found: list[Case] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        phases=[hypothesis.Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found
