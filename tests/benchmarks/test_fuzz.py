"""The fuzzer itself: its cases are the same for a seed, and it sees what is wrong."""

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzzing import judge
from benchmarks.fuzzing.calls import CALLS, VALUES
from benchmarks.fuzzing.cases import OPTIONS, Case, drawn, files_of
from benchmarks.fuzzing.damage import WAYS, damage
from benchmarks.fuzzing.ground import BASES, RUNS, draw_images, idx, lists, words_of
from inference.runs.commands import OptionParser


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Names of sound files; runs are but names."""
    place = tmp_path_factory.mktemp("ground")
    draw_images(place)
    lists(place)
    idx(place / "idx", np.random.default_rng(0))
    for name in ("images.zip", "features.safetensors", "network.pth"):
        (place / name).write_text("")
    for run, name in itertools.product(RUNS, ("config.yaml", "metrics.json", "checkpoints/a.safetensors", "logs/x")):
        (file := place / "runs" / run / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    return files_of(place)


def test_cases_are_the_same_for_a_seed_and_of_every_kind(files):
    cases = drawn(40, 3, files)
    assert cases == drawn(40, 3, files)
    assert {case.command for case in cases} >= {*OPTIONS, "python"}
    assert {case.kind.partition(":")[0] for case in cases} == {
        *("one option", "several options", "paths", "command lines", "configurations", "damaged runs", "damaged data"),
        *("surroundings", "Python"),
    }
    assert not any("logs" in file for case in cases for file, *_ in case.damages), "which nothing reads"


@pytest.mark.parametrize("command", OPTIONS)
def test_sound_command_lines_have_sound_options(command):
    parser = OptionParser(OPTIONS[command], command, "")
    for base in BASES:
        named, *words = words_of(base, "out")
        if named == command:
            parser.parse_args(words)


@pytest.mark.parametrize("way", WAYS)
def test_damage_is_the_same_for_a_number(way, tmp_path):
    file = tmp_path / "file.json"
    found = []
    for _ in range(2):
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        file.unlink(missing_ok=True)
        file.write_text('{"a": [1, {"b": null}], "c": "text"}')
        damage(file, way, 7)
        found.append(file.read_bytes() if file.is_file() else file.is_symlink())
    assert found[0] == found[1]


def test_calls_are_python():
    for function, given, names, sound in CALLS.values():
        compile(
            f"{function}({', '.join(given)}, **dict({sound}), {', '.join(f'{n}=0' for n in names.split())})", "call", "eval"
        )
    for value in VALUES:
        compile(value, "value", "eval")


ENDS = {
    "refused": "raise UserError('no')",
    "accepted": "print('yes')",
    "traceback": "{}['x']",
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "untidy": "import sys; print('one', file=sys.stderr); raise UserError('two')",
    "left behind": "Path('half').write_text(''); raise UserError('no')",
    "interrupted": "while True: pass",
    "hang": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\nwhile True: pass",
}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells by Linux's /proc what a process computes")
@pytest.mark.parametrize(("name", "program"), ENDS.items(), ids=list(ENDS))
def test_what_becomes_of_a_case_is_told(name, program, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "PRELUDE", "from pathlib import Path\nfrom data.errors import UserError\n")
    (tmp_path / "ground").mkdir()
    (scratch := tmp_path / "case").mkdir()
    before = signal.getsignal(signal.SIGINT)
    outcome = judge.judge(Case("x", "python", (program,)), tmp_path / "ground", scratch, limit=1.0)
    assert outcome.name == name, outcome.detail
    assert signal.getsignal(signal.SIGINT) == before
    assert os.getcwd() != str(scratch / "place")


@pytest.mark.parametrize(
    ("surroundings", "said", "name"),
    [
        ((), "interrupted: continue with --resume out\n", "hang"),
        (("no output",), "interrupted: continue with --resume out\n", "interrupted"),
        (("no output",), "interrupted\n", "hang"),
    ],
)
def test_a_run_works_where_it_can_be_resumed_though_its_output_goes_nowhere(surroundings, said, name):
    case = Case("surroundings", "svi_sib", (), surroundings=surroundings)
    assert judge.verdict(case, 130, said, "", interrupted=True)[0] == name
