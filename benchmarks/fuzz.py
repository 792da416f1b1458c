"""Hostile input for every command and the Python interface: is each refused in one line, with nothing left behind?

    python -m benchmarks.fuzz --cases 1000 --seed 0

Hypothesis draws options, configurations, paths, damage to data, features, weights and run folders, and Python calls; see
:mod:`benchmarks.fuzzing.cases`. Each case works on files of its own, in a copy of this process (one in ``--apart`` in a process
as a shell starts it), with bounded time and memory and without a network. It is good where it is refused in one line with exit
code 2 and leaves nothing behind, or is accepted and ends well, or works until it is interrupted, and says so. Cases are the
same for the same seed; ``--only 17,23`` runs some again and ``--keep`` leaves their files. The exit code is 0 where all are
good.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a copy of a process with threads may wait for them for ever

import torch

from benchmarks.fuzzing.cases import OPTIONS, Case, drawn, files_of
from benchmarks.fuzzing.ground import lay
from benchmarks.fuzzing.judge import BAD, GOOD, LIMIT, Outcome, forked, judge, wait


def lay_ground(ground: Path) -> None:
    """Make the sound files, each run in a process of its own."""
    ground.mkdir()

    def run(words: list[str]) -> None:
        scratch = Path(tempfile.mkdtemp(dir=ground.parent))
        (scratch / "tmp").mkdir()
        status, _ = wait(forked(Case("ground", words[0], tuple(words[1:])), ground, scratch), 600)
        if status != 0:
            raise SystemExit(f"{' '.join(words)} does not run: {(scratch / 'err').read_text()}")

    for command in OPTIONS:
        __import__(f"inference.{command}")
    lay(ground, run)


def table(found: list[tuple[Case, Outcome]]) -> str:
    """Kinds of cases × what became of them."""
    counts = Counter((case.kind, outcome.name) for case, outcome in found)
    names = [*GOOD, *BAD]
    lines = ["| cases | " + " | ".join(names) + " | in all |", "|---" * (len(names) + 2) + "|"]
    for kind in [*sorted({case.kind for case, _ in found}), None]:
        row = [sum(n for (k, o), n in counts.items() if o == name and kind in (k, None)) for name in names]
        lines.append(f"| {kind or 'all'} | " + " | ".join(map(str, [*row, sum(row)])) + " |")
    return "\n".join(lines)


def shortened(said: object, most: int = 1000) -> str:
    """A text with the middle of its very long lines left out."""
    lines = str(said).splitlines()
    return "\n".join(line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}" for line in lines)


def main() -> int:
    """Run all cases, print what is not good and a table; 0 where all are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--apart", type=int, default=40, help="one case in so many runs as a shell runs it")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="that a case may compute before it is interrupted")
    parser.add_argument("--only", help="numbers of cases to run again")
    parser.add_argument("--kind", default="", help="only kinds whose names start so")
    parser.add_argument("--out", type=Path, help="folder for the files")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    top = Path(tempfile.mkdtemp(dir=given.out))
    top.chmod(0o755)
    try:
        ground = top / "ground"
        lay_ground(ground)
        cases = list(enumerate(drawn(given.cases, given.seed, files_of(ground))))
        if given.only:
            chosen = set(map(int, given.only.split(",")))
            cases = [(number, case) for number, case in cases if number in chosen]
        found: list[tuple[Case, Outcome]] = []
        with suppress(KeyboardInterrupt):  # the table is of what was done
            for number, case in cases:
                if not case.kind.startswith(given.kind):
                    continue
                scratch = top / f"case{number}"
                scratch.mkdir(mode=0o755)
                apart = number % given.apart == 0 or bool({"ascii", "C locale"} & set(case.surroundings))
                outcome = judge(case, ground, scratch, apart=apart, limit=given.seconds)
                found.append((case, outcome))
                if outcome.name in BAD or given.verbose or given.only:
                    said = f"{shortened(case)}\n    {shortened(outcome.detail)}"
                    print(f"{number} {outcome.name} ({outcome.seconds:.1f} s): {said}\n", flush=True)
                if not given.keep:
                    shutil.rmtree(scratch, ignore_errors=True)
        print(table(found))
        return int(any(outcome.name in BAD for _, outcome in found))
    finally:
        if given.keep:
            print(f"files: {top}")
        else:
            shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
