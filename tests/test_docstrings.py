"""What docstrings promise their readers: everything public has one, and it says what arguments are and which errors come.

An argument is explained if the docstring of its function or class names it, if it is in the reference's table of arguments
that mean the same everywhere (``docs/reference/index.md``), or if its type says what it is: a class of ours or of a library.
Numbers, strings, tensors and containers do not say what they are; of a tensor that is a function's subject, the shape does.
An error that a function raises itself is named.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import pytest

import sibyl
from tests.conftest import ROOT

ROOMS = ("data", "models", "guides", "inference", "sibyl")
SAY_NOTHING = re.compile(
    r"\b(?:Tensor|ndarray|Any|Callable|int|float|bool|str|bytes|tuple|list|dict|set|Sequence|Iterable|Mapping|object|None|Literal)\b|\|"
)
SHAPE = re.compile(r"``\[[^`]*\]|\[[\w+*, .]*\]``")


class Described(NamedTuple):
    """A public function or method in the source, with the docstrings that may explain it."""

    name: str
    node: ast.FunctionDef
    doc: str
    around: str
    overrides: bool


def public(room: str) -> Iterator[Described]:
    """All public functions, methods and constructors of a room; a constructor has its class's docstring."""
    for path in sorted((ROOT / room).rglob("[!_]*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield Described(f"{module}.{node.name}", node, ast.get_docstring(node) or "", "", False)
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from methods(module, node)


def methods(module: str, node: ast.ClassDef) -> Iterator[Described]:
    """The constructor and the public methods of a class; what overrides without words of its own has those it overrides."""
    kind, around = getattr(importlib.import_module(module), node.name), ast.get_docstring(node) or ""
    if Protocol in kind.__bases__:  # says where its methods are described
        return
    for child in node.body:
        if not isinstance(child, ast.FunctionDef) or (child.name.startswith("_") and child.name != "__init__"):
            continue
        own = around if child.name == "__init__" else inspect.getdoc(getattr(kind, child.name)) or ""
        overrides = child.name != "__init__" and any(child.name in vars(base) for base in kind.__mro__[1:])
        yield Described(f"{module}.{node.name}.{child.name}", child, own, around, overrides)


def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    """Arguments that a caller gives."""
    all_of_them = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument for argument in all_of_them if argument.arg not in ("self", "cls") and not argument.arg.startswith("_")]


def shared_arguments() -> set[str]:
    """The table of arguments that mean the same everywhere."""
    text = (ROOT / "docs" / "reference" / "index.md").read_text()
    table = text.partition("## Arguments that mean the same everywhere")[2].partition("\n## ")[0]
    return set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))))


def unexplained(thing: Described, shared: set[str]) -> list[str]:
    """The arguments of which a reader learns nothing."""
    words = set(re.findall(r"\w+", f"{thing.doc} {thing.around}".lower())) | shared
    missing = []
    for argument in arguments(thing.node):
        kind = ast.unparse(argument.annotation) if argument.annotation else ""
        speaks = bool(kind) and SAY_NOTHING.sub("", kind).strip(" []|,.()") != ""
        if argument.arg.lower() not in words and not speaks and not ("Tensor" in kind and SHAPE.search(thing.doc)):
            missing.append(argument.arg)
    return missing


def raised(node: ast.AST) -> set[str]:
    """Errors that a function raises in its own body."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and isinstance(child.exc.func, ast.Name):
            found.add(child.exc.func.id)
        if not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            found |= raised(child)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_has_a_docstring(room):
    for path in (ROOT / room).rglob("*.py"):
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        assert all(ast.get_docstring(node) for node in (tree, *classes)), path
    assert [thing.name for thing in public(room) if not thing.doc] == []


@pytest.mark.parametrize("room", ROOMS)
def test_arguments_are_explained(room):
    """Those of an overriding method are the overridden one's."""
    shared = shared_arguments()
    missing = {thing.name: unexplained(thing, shared) for thing in public(room) if not thing.overrides}
    assert {name: arguments for name, arguments in missing.items() if arguments} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_errors_are_named(room):
    unnamed = {thing.name: raised(thing.node) - set(re.findall(r"\w+", thing.doc + thing.around)) for thing in public(room)}
    assert {name: errors for name, errors in unnamed.items() if errors - {"NotImplementedError"}} == {}


def test_the_front_door_is_in_the_reference():
    text = (ROOT / "docs" / "reference" / "index.md").read_text()
    assert {name for name in sibyl.__all__ if f"[`{name}`]" not in text} == {"__version__"}
