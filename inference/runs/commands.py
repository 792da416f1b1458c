"""What every command shares: typed options, a YAML ``--config``, and one-line errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from data.errors import UserError
from inference.runs.folder import RunFolder, write_json
from inference.runs.program import program

Options = TypeVar("Options")


def run_command(main: Callable[[Sequence[str] | None], Any]) -> None:
    """Run ``main`` and exit: 0, or 2 with one line on standard error where the user can fix what is wrong."""
    try:
        main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: continue with --resume and the run folder", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os._exit(1)  # whoever read our output has gone


def make_parser(options: type, command: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser with one flag a field of the dataclass ``options``, ``--config FILE`` and ``--resume DIR``.

    Flags may be written with dashes or underscores.
    """
    parser = OptionParser(prog=program(command), description=description, default_env=False)
    parser.add_argument("--config", action="config", help="YAML file of options; flags override it")
    parser.add_argument("--resume", type=str | None, default=None, help="run folder to continue; other options are its own")
    parser.add_class_arguments(options)
    return parser


def read_command(
    options: type[Options], command: str, description: str, arguments: Sequence[str] | None
) -> tuple[Options, RunFolder | None]:
    """Options of the command line, or with ``--resume`` a run folder and its own options.

    Raises:
        UserError: bad options, or no run folder.
    """
    values = make_parser(options, command, description).parse_args(arguments)
    if values.resume is None:
        return build_options(options, values), None
    run = RunFolder.existing(values.resume)
    return options_from_yaml(options, run.config.read_text(), run.config), run


def write_metrics(run: RunFolder, command: str, options: Any, records: Sequence[dict[str, Any]]) -> None:
    """``metrics.json`` of a finished run."""
    content = {"command": command, "dataset": options.data, "seed": options.seed, "seconds": run.seconds()}
    write_json(run.metrics, content | {"results": list(records)})


def print_places(run: RunFolder, plots: Sequence[Path]) -> None:
    """Say where results and pictures are."""
    print(f"results: {run.metrics}")
    for plot in plots:
        print(f"plot:    {plot}")


class OptionParser(jsonargparse.ArgumentParser):
    """Errors of the command line become :class:`~data.errors.UserError`; dashes in flags are underscores."""

    def error(self, message: str, ex: Exception | None = None):
        raise UserError(" ".join(str(message).split()))

    def parse_args(self, args=None, *rest, **options):
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_args([underscored(word) for word in words], *rest, **options)


def underscored(word: str) -> str:
    """``--image-size=32`` to ``--image_size=32``."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def build_options(options: type[Options], values: jsonargparse.Namespace | dict[str, Any]) -> Options:
    """The dataclass of parsed values."""
    content = values if isinstance(values, dict) else vars(values)
    known = {field.name for field in fields(options)}  # type: ignore[arg-type]
    return options(**{name: value for name, value in content.items() if name in known})


def options_to_yaml(options: Any) -> str:
    """``config.yaml``: a file that ``--config`` reads back."""
    return yaml.safe_dump({f.name: getattr(options, f.name) for f in fields(options)}, sort_keys=False)


def options_from_yaml(options: type[Options], text: str, source: object) -> Options:
    """Options of a run folder.

    Raises:
        UserError: the file is damaged or has unknown options.
    """
    try:
        content = yaml.safe_load(text)
        return options(**content)
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(f"{source} is damaged: {str(error).splitlines()[0]}") from error
