"""Pyro's own tests of ``TraceMeanField_ELBO``, run with our objective in its place (β = 1).

    git clone --branch 1.9.1 https://github.com/pyro-ppl/pyro /somewhere/pyro
    python -m benchmarks.pyro_tests /somewhere/pyro

The tests are taken from the checkout, Pyro itself from this environment. Every test of three files is run whose name has
``MeanField`` or ``mean_field``; those of the compiled variant (``JitTraceMeanField_ELBO``) are Pyro's own and left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyro.infer

from inference.elbo import RateDistortionELBO

ROOT = Path(__file__).resolve().parent.parent
FILES = ("tests/infer/test_gradient.py", "tests/infer/test_valid_models.py", "tests/infer/autoguide/test_inference.py")
CHOSEN = "(MeanField or mean_field) and not Jit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of Pyro")
    parser.add_argument("pytest_options", nargs="*", help="handed on to pytest, after --")
    options = parser.parse_args()
    if missing := [name for name in FILES if not (options.checkout / name).is_file()]:
        parser.error(f"{options.checkout} is no checkout of Pyro: it has no {missing[0]}")
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", __spec__.name, "-p", "no:cacheprovider", "-k", CHOSEN]
    words = [*command, *FILES, *options.pytest_options]  # -P: not the checkout's own pyro
    sys.exit(subprocess.run(words, cwd=options.checkout, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode)


class TraceMeanField_ELBO(RateDistortionELBO):
    """Our objective as Pyro's tests call for theirs."""

    def __init__(self, **options) -> None:
        super().__init__(beta=1.0, monte_carlo=True, **options)


def pytest_configure() -> None:
    """Put our objective in the place of Pyro's before the tests import it."""
    pyro.infer.TraceMeanField_ELBO = TraceMeanField_ELBO


def pytest_terminal_summary(terminalreporter) -> None:
    """Which Pyro was tested, and the outcomes file by file."""
    terminalreporter.write_line(f"Pyro {pyro.__version__} of {Path(pyro.__file__).parent}, with RateDistortionELBO")
    for file in FILES:
        outcomes = Counter(
            outcome
            for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
            for report in terminalreporter.getreports(outcome)
            if report.nodeid.startswith(file)
        )
        terminalreporter.write_line(f"{file}: {', '.join(f'{n} {name}' for name, n in outcomes.items()) or 'none chosen'}")


if __name__ == "__main__":
    main()
