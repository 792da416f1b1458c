"""What a command calls itself."""

from __future__ import annotations

import sys
from pathlib import Path


def program(command: str) -> str:
    """How the user calls the command: ``sibyl-sib`` if by its console script, else ``python -m inference.svi_sib``."""
    script = Path(sys.argv[0]).stem
    package = (__package__ or "").removesuffix(".runs")  # sibyl.inference in a wheel
    return script if script.startswith("sibyl-") else f"python -m {package}.{command}"
