"""What things cost, beside other authors' code at the same work: ``python -m benchmarks CASE``.

    pip install sibyl-vib[peers]
    python -m benchmarks sib-step --original CHECKOUT --json sib_step.json
    python -m benchmarks bnn-step --threads 2 --tyxe CHECKOUT

Ours and the others' take turns in one process, with the same batch, threads and setting. Each row has the median of its
rounds, how many are done per second, and how many times as fast as the group's first row it is: the median of the rounds'
ratios, in brackets their quartiles.

``--original`` names a checkout of the authors' SIB (github.com/hushell/sib_meta_learn), ``--tyxe`` one of TyXe
(github.com/TyXe-BDL/TyXe), ``--learn2learn`` one of learn2learn (github.com/learnables/learn2learn). Where a peer is not there
its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import bnn, growth, maml, pretrain, roofline, sib, vid
from benchmarks.speed.timing import CLOCKS, Row, format_rows
from data.errors import UserError

CASES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "sib-step": sib.steps,
    "evaluation": sib.evaluation,
    "maml-step": maml.steps,
    "bnn-step": bnn.steps,
    "vid-step": vid.steps,
    "pretrain-step": pretrain.steps,
    "growth": growth.growth,
    "roofline": roofline.roofline,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("case", choices=CASES)
    made.add_argument("--original", help="a checkout of the authors' SIB")
    made.add_argument("--tyxe", help="a checkout of TyXe")
    made.add_argument("--learn2learn", help="a checkout of learn2learn")
    made.add_argument("--features", help="a feature file, in place of random features of the same size")
    made.add_argument("--batch", type=int, nargs="+", help="of steps, in place of the usual ones")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all cases but vid-step")
    made.add_argument("--compile", action="store_true", help="sib-step and bnn-step with compiled steps, too")
    made.add_argument("--backbone", default="wrn-28-10", help="of pretrain-step")
    made.add_argument("--image-size", type=int, default=84, help="of pretrain-step")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--rounds", type=int, default=60, help="fewer where a step is long")
    made.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: computing time of all threads, on a busy machine")
    made.add_argument("--picture", type=Path, help="where to draw what growth finds")
    made.add_argument("--json", type=Path, help="where to write all numbers")
    return made


def record(options: argparse.Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    """All numbers of a case, and where they come from."""
    machine = {"processor": platform.processor() or platform.machine(), "system": platform.system()}
    machine |= {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    rows_of = [asdict(row) for row in rows]
    return {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "options": given, "machine": machine, "rows": rows_of}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run a case, print its table, and write its numbers where asked to.

    Raises:
        UserError: there is no GPU, or no peer where one is named.
    """
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is available to PyTorch: leave out --device cuda")
    torch.set_num_threads(options.threads)
    rows = CASES[options.case](options)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.clock} clock")
    print(format_rows(rows))
    if options.json:
        options.json.write_text(json.dumps(record(options, rows), indent=2))
    return rows


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
