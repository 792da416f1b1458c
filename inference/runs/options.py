"""The options that every command shares, and how options are read: typed and checked once, wherever they come from.

A message names an option in backticks, as Python calls it: ```image_size=8` is too small``; commands show it as it is typed
there, ``--image-size 8`` (see :func:`as_flags`).
"""

from __future__ import annotations

import functools
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import jsonargparse
import numpy as np
import yaml
from torch import Tensor

from data.arguments import shown
from data.errors import UserError, choose, closest
from inference.runs.checks import check_compiler, check_device
from inference.runs.flat_yaml import MODE, read_yaml
from inference.runs.help import Group
from inference.runs.training import Loop
from inference.runs.values import LARGEST, MOST, SMALLEST, NonNegativeInt, PositiveInt, PositiveNumber, Several, plain

Kind = TypeVar("Kind", bound="Options")
LIMITS = (MOST, SMALLEST, LARGEST)
"""Bounds of machines, which are told to those alone who go beyond."""
Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command: a subclass declares one field each, with type and default, and documents it under ``Args``.

    Whatever an option is given as (text of the command line or a YAML file, a Python value), its field holds the checked
    value.

    Raises:
        UserError: an unknown option, or a value that does not fit its type or the other options.
    """

    def __new__(cls, *args: Any, **given: Any) -> Self:
        check_names(cls, given)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        values = read_values(type(self), {field.name: getattr(self, field.name) for field in fields(self)})
        for name, value in values.items():
            object.__setattr__(self, name, value)  # frozen from here on
        self.check()

    @classmethod
    def check_named(cls, named: Mapping[str, Any]) -> None:
        """Look at what a command line names itself, whether its values are the usual ones or not.

        Args:
            named: option -> value, as it is typed.

        Raises:
            UserError: an option that means nothing here.
        """

    def check(self) -> None:
        """Look at what no single type can tell.

        Raises:
            UserError: options that do not fit together, or this machine.
        """


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Options of every command that trains.

    Args:
        data: data set.
        root: folder or zip archive of its images.
        image_size: height and width in pixels; the data set's own when not given.
        batch: items per training step, over all processes.
        learning_rate: step size of the optimiser.
        seed: of everything random.
        device: where to compute; auto takes a GPU where there is one.
        devices: processes to train with; they share each batch.
        precision: of numbers, as Lightning names it.
        out: run folder; runs/<command>-<time> when not given.
        progress: progress bars.
    """

    _data: ClassVar[Group] = Group.DATA
    data: str = "glyphs"
    root: str | None = None
    image_size: PositiveInt | None = None
    _training: ClassVar[Group] = Group.TRAINING
    batch: PositiveInt = 64
    learning_rate: PositiveNumber = 1e-3
    _run: ClassVar[Group] = Group.RUN
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    precision: Precision = "32-true"
    out: str | None = None
    progress: bool = True

    def check(self) -> None:
        check_device(self.device, self.devices)

    @property
    def loop(self) -> Loop:
        """How its stages train."""
        return Loop(self.device, self.devices, self.precision, self.progress)


@dataclass(frozen=True, kw_only=True)
class CompiledOptions(RunOptions):
    """Options of a command whose training steps can be compiled.

    Args:
        compile: compile training steps on a CPU that are of one shape again and again: up to half the time a step for SIB, a
            fifth less for Bayesian networks, after 10 to 30 seconds of compiling. Needs a C++ compiler.
    """

    _training: ClassVar[Group] = Group.TRAINING
    compile: bool = False

    def check(self) -> None:
        super().check()
        check_compiler(self.loop)

    @property
    def loop(self) -> Loop:
        return replace(super().loop, compile=self.compile)


@functools.cache
def value_parser(options: type[Options]) -> jsonargparse.ArgumentParser:
    """A parser of the values of ``options``, without flags of its own."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, default_env=False, parser_mode=MODE)
    parser.add_class_arguments(options)
    return parser


def read_values(options: type[Options], given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked values of known options, as they are ``given``.

    Raises:
        UserError: a value does not fit its option's type.
    """
    given = {name: natural(value) for name, value in given.items()}
    refuse_beyond(options, given)
    try:
        parsed = value_parser(options).parse_object(dict(given))  # type: ignore[arg-type]
    except jsonargparse.ArgumentError as error:
        refuse_value(options, str(error), given)
    hints = get_type_hints(options)
    for name, value in vars(parsed).items():  # jsonargparse takes null for "not given", whatever the type
        if value is None and type(None) not in get_args(hints[name]):
            refuse_value(options, f'Parser key "{name}": not given', {name: "null"})
        if value == "" and str in (hints[name], *get_args(hints[name])):  # not the same as none
            raise UserError(f"`{name}` is empty: give a value, or leave it out")
    return {name: settle(value, hints[name]) for name, value in vars(parsed).items()}


def refuse_beyond(options: type[Options], given: Mapping[str, Any]) -> None:
    """Refuse whole numbers that no float holds, for which ``float`` raises another error than jsonargparse knows.

    Args:
        options: known by their fields.
        given: name -> value.

    Raises:
        UserError: there is one.
    """
    for name in {field.name for field in fields(options)} & set(given):
        if isinstance(value := given[name], int) and abs(value) > 10**300:
            refuse_value(options, f'Parser key "{name}": out of range', given)


def natural(value: Any) -> Any:
    """A value of Python's own where it is NumPy's or torch's scalar, or a path."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.dim() == 0 and value.device.type != "meta"):
        return value.item()
    return value


def settle(value: Any, hint: Any) -> Any:
    """The value as its field, of type ``hint``, has it, where jsonargparse gives another form of it: a plain number for a
    restricted one, the declared type for several values (it gives a tuple) and for a name that is a default (it gives the
    member's name)."""
    kinds = [part for part in (hint, *get_args(hint)) if isinstance(part, type)]
    for kind in kinds:
        if issubclass(kind, Several) and isinstance(value, tuple):
            return kind(value)
        if issubclass(kind, StrEnum) and isinstance(value, str):
            return kind.__members__.get(value) or kind(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, int) else float(value)


def check_names(options: type[Options], given: Iterable[str], beside: Iterable[str] = ()) -> None:
    """Refuse names that are no options.

    Args:
        options: known by their fields.
        given: the names.
        beside: names that are known too.

    Raises:
        UserError: one line, with the name that may have been meant.
    """
    known = {field.name for field in fields(options)} if options.__dict__.get("__dataclass_fields__") else set()
    known.update(beside)
    for name in given:
        if name not in known:
            meant = closest(name, known)
            raise UserError(f"no option `{name}`" + (f": did you mean `{meant}`?" if meant else ""))


def refuse_value(options: type[Options], message: str, given: Mapping[str, Any]) -> NoReturn:
    """Turn jsonargparse's message about one option, of those ``given``, into one line.

    Raises:
        UserError: always.
    """
    found = re.search(r'Parser key "(\w+)"', message)
    if found is None:
        raise UserError(" ".join(message.split()))
    name = found[1]
    named = f"`{name}={shown(given[name])}`" if name in given else f"`{name}`"
    own = re.search(r"Not of type \w+: (.*)", message)
    wanted = describe_type(get_type_hints(options).get(name), given.get(name, ""))
    rest = message[message.index(found[0]) + len(found[0]) + 1 :]
    raise UserError(f"{named}: {wanted or (own[1] if own else ' '.join(rest.split()))}")


def describe_type(hint: Any, given: object) -> str | None:
    """What a value of type ``hint`` must be, in words, with what may have been meant by the ``given`` one; ``None`` for types
    that say it themselves."""
    if get_origin(hint) in (Union, types.UnionType):
        return describe_type(next(part for part in get_args(hint) if part is not type(None)), given)
    if get_origin(hint) is Literal:
        return choose(given, get_args(hint))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return choose(given, hint)
    if hint is bool:
        return "must be true or false"
    limits = getattr(hint, "_restrictions", None)
    if limits is None:
        return {int: "must be a whole number", float: "must be a number", str: "must be text"}.get(hint)
    broken = [(compare, limit) for compare, limit in limits if limit in LIMITS and is_beyond(given, compare, limit)]
    words = {"gt": "above {}", "ge": "{} or more", "lt": "below {}", "le": "at most {}"}
    shown = broken or [(compare, limit) for compare, limit in limits if limit not in LIMITS]
    bounds = [words[compare.__name__].format(limit if isinstance(limit, int) else f"{limit:g}") for compare, limit in shown]
    return f"must be a {'whole ' if issubclass(hint, int) else ''}number, {' and '.join(bounds)}"


def is_beyond(given: object, compare: Callable[[Any, Any], bool], limit: float) -> bool:
    """Whether a value, as it was ``given``, is a number above 0 that does not ``compare`` as it should with a ``limit``."""
    with suppress(TypeError, ValueError, OverflowError):
        return 0 < float(given) < math.inf and not compare(float(given), limit)  # type: ignore[arg-type]
    return False


def as_flags(message: str, options: type[Options]) -> str:
    """The message with options written as flags: ``--image-size 8`` for ```image_size=8```."""
    known = {field.name for field in fields(options)} | {"config", "resume", "print_config"}

    def flag(found: re.Match) -> str:
        name, equals, value = found[1].partition("=")
        if name not in known and not message.startswith("no option"):
            return found[0]
        return f"--{name.replace('_', '-')}" + (f" {value}" if equals else "")

    return re.sub(r"`(\w+(?:=[^`]*)?)`", flag, message)


def options_to_yaml(options: Options) -> str:
    """``config.yaml``: a file that ``--config`` reads back."""
    return yaml.safe_dump({field.name: plain(getattr(options, field.name)) for field in fields(options)}, sort_keys=False)


HERE = MappingProxyType({"device": "auto", "devices": 1, "compile": False})
"""Where what a run has trained is read: on this machine, whatever it was trained on."""


def options_from_yaml(
    options: type[Kind], text: str, source: object, changed: Mapping[str, Any] = MappingProxyType({})
) -> Kind:
    """Options of a run folder, from YAML ``text``; ``source`` is who has it, for messages.

    Args:
        changed: other values of some, those that a command has.

    Raises:
        UserError: the file is damaged, or has unknown options or values that do not fit.
    """
    try:
        content = read_yaml(text)
        if not isinstance(content, dict):
            raise UserError("it holds no names and values")
        check_names(options, content)
    except (yaml.YAMLError, TypeError, UserError) as error:
        raise UserError(f"{source} is damaged, or of another command: {str(error).splitlines()[0]}") from error
    known = {field.name for field in fields(options)}
    return options(**{**content, **{name: value for name, value in changed.items() if name in known}})
