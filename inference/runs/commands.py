"""What every command shares: its command line, a YAML ``--config``, ``--resume``, and one-line errors."""

from __future__ import annotations

import atexit
import functools
import io
import itertools
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import jsonargparse
import yaml

from data.arguments import shown
from data.errors import DataWarning, UserError
from inference.runs.files import no_room, plainly, read_text, write_json
from inference.runs.flat_yaml import MODE, read_yaml
from inference.runs.folder import RunFolder
from inference.runs.help import Example, format_help
from inference.runs.interruptions import INTERRUPTIONS, last_words, nothing_lost, terminable
from inference.runs.options import (
    Kind,
    Options,
    RunOptions,
    as_flags,
    check_names,
    options_from_yaml,
    options_to_yaml,
    refuse_beyond,
    refuse_value,
)
from inference.runs.processes import is_main
from inference.runs.program import program
from inference.runs.values import Several

__all__ = [
    "flags_in_errors",
    "given_value",
    "notes",
    "options_to_yaml",
    "print_places",
    "read_command",
    "read_options",
    "run_command",
    "run_process",
    "write_metrics",
]

SHOWN = 500
"""Characters from both ends of a very long error that are shown."""
WHERE = {"device", "devices", "compile", "progress"}
"""Options that a resumed run may have others of: they change no number but by rounding."""
PATIENCE = 20.0
"""Seconds that other processes than the main one leave it to say what is wrong."""
Result = TypeVar("Result")
Main = Callable[[Sequence[str] | None], Result]


def run_command(main: Main[Any]) -> None:
    """Run ``main`` and exit: 0; 2 with one line on standard error where the user can fix what is wrong; 130 or 143 with one
    that says how to go on where SIGINT or SIGTERM has ended it."""
    try:
        with terminable(), nothing_lost():
            main(None)
    except UserError as error:
        if is_main():  # all processes of a run meet the same error
            print(shortened(f"error: {error}"), file=sys.stderr)
        else:
            time.sleep(PATIENCE)  # torchrun ends all where one has ended, the main one before it could speak
        sys.exit(2)
    except INTERRUPTIONS as end:
        message, status = last_words(end)
        if is_main():
            print(message, file=sys.stderr)
        sys.exit(status)
    except BrokenPipeError:
        os._exit(1)  # whoever read our output has gone
    except Exception as error:
        said = no_room(error)
        if (plain := f"{said}: make room, and start again" if said else plainly(error)) is None:
            raise
        print(shortened(f"error: {as_flags(plain, RunOptions)}"), file=sys.stderr)
        sys.exit(2)


def shortened(line: str) -> str:
    """A ``line`` without its middle where it is very long, as with a path of thousands of characters."""
    return line if len(line) <= 2 * SHOWN else f"{line[:SHOWN]} … {line[-SHOWN:]}"


def run_process(main: Main[Any]) -> None:
    """:func:`run_command`, and then the end of the process, whose command this is.

    What was registered for its end runs, and output is written out. Modules are not taken apart one by one, which takes more
    than a second where so many are loaded (mypy ends in the same way).
    """
    status: Any = 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an encoding without β, or a file name that is no text
    with nothing_lost():  # to the end: an exception holds what it has left half made, as long as it is there itself
        try:
            run_command(main)
        except SystemExit as end:
            status = end.code
        with suppress(ValueError):  # no main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done
        atexit._run_exitfuncs()
        os._exit(write_out(status or 0))


def write_out(status: int) -> int:
    """Write out what was printed, and give the process's exit code: ``status``, or 2 where all went well but this, with one
    line on standard error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # whoever read our output has gone
    except OSError as error:
        if not status:
            print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)
            status = 2
    with suppress(OSError):
        sys.stderr.flush()
    return status


@contextmanager
def notes() -> Iterator[None]:
    """Print each :class:`~data.errors.DataWarning` as one line, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", DataWarning)
        show = warnings.showwarning

        def plain(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, DataWarning):
                print(f"note: {message}")
            else:
                show(message, category, *where)

        warnings.showwarning = plain  # type: ignore[assignment]
        yield


def flags_in_errors(options: type[Options]) -> Callable[[Main[Result]], Main[Result]]:
    """A decorator of a command's ``main``: its errors name options as they are typed, ``--image-size``."""

    def decorate(main: Main[Result]) -> Main[Result]:
        @functools.wraps(main)
        def command(arguments: Sequence[str] | None = None) -> Result:
            try:
                return main(arguments)
            except UserError as error:
                raise UserError(as_flags(str(error), options)) from error

        return command

    return decorate


class OptionParser(jsonargparse.ArgumentParser):
    """One flag for each field of ``options``, with dashes or underscores, and ``--config FILE``.

    Errors of the command line become :class:`~data.errors.UserError`.

    Args:
        options: a dataclass of options.
        command: the module below ``inference`` that is run.
        description, examples: for ``--help``.
    """

    def __init__(self, options: type[Options], command: str, description: str, examples: Sequence[Example] = ()) -> None:
        super().__init__(
            prog=program(command),
            description=description,
            default_env=False,
            allow_abbrev=False,
            print_config=None,
            parser_mode=MODE,
        )
        self.options, self.examples, self.words, self.flags = options, examples, list[str](), list[str]()
        self.extra = {"--config FILE": "YAML file of options; flags override it"}
        self.add_argument("--config", action="config")
        self.add_class_arguments(options)
        self.add_flag("--print_config", "print all options as such a file, and do nothing else", action="store_true")

    def add_flag(self, flag: str, meaning: str, metavar: str = "", **settings: Any) -> None:
        """An option without a field.

        Args:
            flag, metavar, meaning: what stands in ``--help``.
            settings: of ``add_argument``.
        """
        self.flags.append(flag.lstrip("-"))
        self.extra[f"{flag.replace('_', '-')} {metavar}".strip()] = meaning
        self.add_argument(flag, **settings)

    def parse_args(self, args=None, *rest, **settings):
        """As jsonargparse does, dashes in option names being as good as underscores, and spaces between the values of one
        option as good as commas: a shell makes several words of ``photos/*.jpg``."""
        self.words = self.joined([underscored(word) for word in (sys.argv[1:] if args is None else args)])
        for word, following in itertools.zip_longest(self.words, self.words[1:], fillvalue=""):
            if (flag := word.partition("="))[0] == "--config":
                check_text(flag[2] if flag[1] else following)
        refuse_beyond(self.options, self.given())
        return super().parse_args(self.words, *rest, **settings)

    def joined(self, words: Sequence[str]) -> list[str]:
        """The ``words`` of a command line, with all values of an option that takes several in one word."""
        several = {f"--{name}" for name, hint in get_type_hints(self.options).items() if takes_several(hint)}
        found: list[str] = []
        for word in words:
            is_more = len(found) > 1 and found[-2] in several and not found[-1].startswith("--")
            if is_more and not word.startswith("--"):
                found[-1] += f",{word}"
            else:
                found.append(word)
        return found

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What jsonargparse has to say, as one line.

        Raises:
            UserError: always.
        """
        if unknown := re.search(r"unrecognized arguments: --(\w+)|[Oo]ption '(\w+)' is not accepted", message):
            check_names(self.options, [unknown[1] or unknown[2]], ("config", "help", *self.flags))
        if missing := re.search(r"arguments are required: (\w+)", message):
            raise UserError(f"`{missing[1]}` must be given")
        refuse_value(self.options, message, self.given())

    def format_help(self, *formatter: Any, **named: Any) -> str:
        """See :func:`~inference.runs.help.format_help`."""
        return format_help(self.options, self.prog, self.description or "", self.examples, self.extra)

    def read(self, arguments: Sequence[str] | None) -> dict[str, Any]:
        """What every option and flag was set to. Where ``--print-config`` is among them, the program ends here."""
        values = {name: value for name, value in vars(self.parse_args(arguments)).items() if name != "config"}
        if values.pop("print_config"):
            own = {field.name: values[field.name] for field in fields(self.options)}
            print(options_to_yaml(self.options(**own)), end="")
            sys.exit(0)
        return values

    def named(self) -> set[str]:
        """Names of the options on the command line."""
        return {word[2:].partition("=")[0] for word in self.words if word.startswith("--")}

    def given(self) -> dict[str, Any]:
        """What was given for each option, as text, or as YAML has it."""
        found: dict[str, Any] = {}
        for word, following in itertools.zip_longest(self.words, self.words[1:], fillvalue=""):
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                found[name] = value if equals else following
        with suppress(KeyError, OSError, ValueError, yaml.YAMLError):
            content = read_yaml(read_text(Path(found["config"])))
            found = (content if isinstance(content, dict) else {}) | found
        return found


def check_text(path: str) -> None:
    """Refuse a ``--config`` that is no file of text, which ``path`` must lead to.

    Raises:
        UserError: it is none.
    """
    try:
        text = read_text(Path(path))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"`config={shown(path)}`: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"`config={shown(path)}` is no text in UTF-8: {error}") from error
    if "\0" in text:
        raise UserError(f"`config={shown(path)}` is no text: it holds null bytes")


def takes_several(hint: Any) -> bool:
    """Whether an option's type, its ``hint``, is one of several values."""
    return any(isinstance(kind, type) and issubclass(kind, Several) for kind in (hint, *get_args(hint)))


def underscored(word: str) -> str:
    """A ``word`` of a command line: ``--image-size=32`` to ``--image_size=32``."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def read_options(
    options: type[Kind],
    command: str,
    description: str,
    arguments: Sequence[str] | None,
    *,
    examples: Sequence[Example] = (),
) -> Kind:
    """Options of the command line; ``description`` and ``examples`` are the text of its ``--help``.

    Raises:
        UserError: bad options.
    """
    return options(**OptionParser(options, command, description, examples).read(arguments))


def read_command(
    options: type[Kind],
    command: str,
    description: str,
    arguments: Sequence[str] | None,
    *,
    examples: Sequence[Example] = (),
) -> tuple[Kind, RunFolder | None]:
    """Options of the command line, or with ``--resume`` a run folder and its own options;
    ``description`` and ``examples`` are the text of its ``--help``.

    Raises:
        UserError: bad options, others beside ``--resume`` than those that say where it computes, or no run folder.
    """
    parser = OptionParser(options, command, description, examples)
    parser.add_flag(
        "--resume",
        "run folder to continue; device and devices may be others",
        "RUN",
        type=str | None,
        default=None,
    )
    values = parser.read(arguments)
    if (resumed := values.pop("resume")) is None:
        given = parser.given()
        options.check_named({name: given[name] for name in parser.named() & set(values)})
        return options(**values), None
    if others := parser.named() - {"resume"} - WHERE:
        raise UserError(f"`resume={resumed}` goes on with the options of that run: leave out `{min(others)}`")
    run = RunFolder.existing(resumed)
    elsewhere = {name: values[name] for name in parser.named() & WHERE}
    return options_from_yaml(options, run.read_config(), run.config, elsewhere), run


def given_value(options: type[Options], name: str, arguments: Sequence[str] | None) -> Any:
    """What a command line says of one option, before anything is checked: by its flag, in its ``--config`` file, or in the run
    folder that it continues; ``None`` where it says nothing, or what no option is: a list, or names and values.

    Args:
        options: of the command.
        name: of the option.
        arguments: of the command line; those of the process when not given.
    """
    parser = OptionParser(options, "", "")
    parser.words = parser.joined([underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)])
    given = parser.given()
    if isinstance(given.get("resume"), str):
        parser.words = [f"--config={RunFolder(given['resume']).config}"]
        given = parser.given()
    return None if isinstance(given.get(name), list | dict) else given.get(name)


def write_metrics(
    run: RunFolder, command: str, options: Any, records: Sequence[dict[str, Any]], *, dataset: str | None = None
) -> None:
    """``metrics.json`` of a finished run.

    Args:
        dataset: its name, where it is not ``options.data``.
    """
    content = {"command": command, "dataset": dataset or options.data, "seed": options.seed, "seconds": run.seconds()}
    write_json(run.metrics, content | {"results": list(records)})


def print_places(run: RunFolder, plots: Sequence[Path]) -> None:
    """Say where results and pictures are."""
    print(f"results: {run.metrics}")
    for plot in plots:
        print(f"plot:    {plot}")
