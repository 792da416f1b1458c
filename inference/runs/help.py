"""``--help`` of every command, from the dataclass of its options: groups, short lines, defaults as they are typed."""

from __future__ import annotations

import argparse
import functools
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from inference.runs.values import Several, plain

WIDEST, NARROWEST, INDENT = 100, 60, 24  # columns


class Group(StrEnum):
    """Headings of ``--help``, in its order.

    A dataclass of options names them between its fields, ``_tasks: ClassVar[Group] = Group.TASKS``: what follows, up to the
    next one, stands below it. A field that is declared again stays where it is, unless it stands below a heading there too.
    """

    DATA = "data"
    NETWORK = "network"
    TASKS = "tasks"
    GUIDE = "guide"
    ALGORITHMS = "guide, single algorithms"
    METHOD = "method"
    TRAINING = "training"
    EVALUATION = "evaluation"
    RUN = "run"


@dataclass(frozen=True)
class Example:
    """A command line that ``--help`` shows.

    Attributes:
        words: what follows the command's name.
        meaning: what it does.
    """

    words: str
    meaning: str


def groups_of(options: type) -> dict[str, Group]:
    """Group by the name of the option, in the order in which they are shown; without headings ``RUN``."""
    places: dict[str, Group] = {}
    for kind in reversed(options.__mro__):
        heading = None
        for name in inspect.get_annotations(kind):
            if isinstance(declared := kind.__dict__.get(name), Group):
                heading = declared
            elif name not in places or (heading is not None and heading is not places[name]):
                places.pop(name, None)
                places[name] = heading or Group.RUN
    known = {field.name for field in fields(options)}
    return {name: group for name, group in places.items() if name in known}


def meanings(options: type) -> dict[str, str]:
    """What the docstrings say of each option, the class's own before those it inherits."""
    found: dict[str, str] = {}
    for kind in reversed(options.__mro__):
        for parameter in docstring_parser.parse(kind.__dict__.get("__doc__") or "").params:
            found[parameter.arg_name] = " ".join((parameter.description or "").split()).rstrip(".")
    for name, flag in ((field.name, f"--{field.name.replace('_', '-')}") for field in fields(options) if "_" in field.name):
        found = {option: re.sub(rf"(?<![\w-]){name}\b", flag, text) for option, text in found.items()}
    return found


def metavar(name: str, hint: Any) -> str:
    """What stands for a value of type ``hint``: its choices, or a word."""
    if get_origin(hint) in (Union, UnionType):
        return metavar(name, next(part for part in get_args(hint) if part is not type(None)))
    if get_origin(hint) is Literal:
        return f"{{{','.join(get_args(hint))}}}"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return f"{{{','.join(hint)}}}"
    if isinstance(hint, type) and issubclass(hint, Several):
        return hint.metavar
    if hint is bool:
        return "{true,false}"
    if isinstance(hint, type) and issubclass(hint, int | float):
        return "N" if issubclass(hint, int) else "X"
    return name.rpartition("_")[2].upper()


def shown_default(field: Any) -> str:
    """The default of a dataclass's ``field`` as it is typed; nothing where there is none."""
    if field.default is MISSING:
        return " (required)"
    value = plain(field.default)
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return f" (default: {text})"


def format_help(
    options: type,
    prog: str,
    description: str,
    examples: Sequence[Example] = (),
    extra: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The whole text.

    Args:
        options: a dataclass; where it has ``used``, a tuple of names, its other options do nothing and are left out.
        prog: how the command is called.
        description: what it is for.
        examples: how it is used.
        extra: what options without a field mean, such as ``"--config FILE"``; they stand in the group ``RUN``.
    """
    width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns))
    shown = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options]",
        description=textwrap.fill(" ".join(description.split()), width),
        epilog="\n".join(example_lines(examples, prog, width)),
        formatter_class=functools.partial(argparse.RawTextHelpFormatter, width=width, max_help_position=INDENT),
        add_help=False,
    )
    places, said, hints = groups_of(options), meanings(options), get_type_hints(options)
    known = {field.name: field for field in fields(options)}
    used = getattr(options, "used", known)
    for group in Group:
        section = shown.add_argument_group(group.value)
        for field in (known[name] for name, place in places.items() if place is group and name in used):
            text = textwrap.fill(said.get(field.name, "") + shown_default(field), width - INDENT, break_on_hyphens=False)
            look: dict[str, Any] = {"metavar": metavar(field.name, hints[field.name]), "help": text.replace("%", "%%")}
            section.add_argument(f"--{field.name.replace('_', '-')}", **look)
        for words, meaning in extra.items() if group is Group.RUN else ():
            flag, _, value = words.partition(" ")
            look = {"metavar": value} if value else {"action": "store_true"}
            section.add_argument(flag, help=meaning, **look)
    return shown.format_help()


def example_lines(examples: Sequence[Example], prog: str, width: int) -> Iterator[str]:
    """Command lines of ``prog``, broken between options where they are long, each below what it does."""
    yield from ["examples:"] if examples else []
    for example in examples:
        yield f"  # {example.meaning}"
        whole = re.sub(r"(--\S+) (?!-)", r"\1\0", f"{prog} {example.words}".strip())  # a flag and its value stay together
        lines = textwrap.wrap(
            whole,
            width - 2,
            initial_indent="  ",
            subsequent_indent="      ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield " \\\n".join(lines).replace("\0", " ")
