"""Applies one-line mutations and reports those that no test notices.

    python -m tests.mutations                 # all, one after another
    python -m tests.mutations beta            # those whose claim, file or tests match the regular expression
    python -m tests.mutations --list

The exit code is 0 where every mutation was caught.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.mutations.tool import Mutation, Verdict, Workshop, read_mutations

HERE = Path(__file__).resolve().parent
TABLE = HERE / "mutations.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="", help="regular expression; all mutations when not given")
    parser.add_argument("--list", action="store_true", help="print the mutations and run nothing")
    options = parser.parse_args(arguments)
    chosen = [mutation for mutation in read_mutations(TABLE) if matches(mutation, options.pattern)]
    if not chosen:
        print(f"error: no mutation matches {options.pattern!r}: --list prints them", file=sys.stderr)
        return 2
    if options.list:
        for mutation in chosen:
            print(f"{mutation.claim}\n    {mutation.file}: {', '.join(mutation.tests)}")
        return 0
    return judge_all(chosen)


def matches(mutation: Mutation, pattern: str) -> bool:
    """Whether the pattern is found in the claim, the file or the tests."""
    texts = (mutation.claim, mutation.file, *mutation.tests)
    return any(re.search(pattern, text, re.IGNORECASE) for text in texts)


def judge_all(mutations: Sequence[Mutation]) -> int:
    """Print each verdict as it is known, then their numbers."""
    count: Counter[Verdict] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(HERE.parent.parent, Path(folder))
        for number, mutation in enumerate(mutations, 1):
            start = time.monotonic()
            verdict = workshop.judge(mutation)
            count[verdict] += 1
            print(
                f"{number:>3}/{len(mutations)}  {verdict:<8}  {time.monotonic() - start:4.0f} s  {mutation.claim}", flush=True
            )
            if verdict is not Verdict.CAUGHT:
                print(f"          {mutation.file}: {', '.join(mutation.tests)}", flush=True)
    print(", ".join(f"{number} {verdict}" for verdict, number in count.items()))
    return 0 if set(count) == {Verdict.CAUGHT} else 1


if __name__ == "__main__":
    sys.exit(main())
