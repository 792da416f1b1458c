"""What our docstrings write in the Sphinx way, in the words of Markdown and Griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROOMS = ("data", "models", "guides", "inference")
ROLE = re.compile(r":(?:class|mod|func|meth|attr|data|exc):`(~?)([\w.]+)`")
TOGETHER = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n\1 +.*)*)", re.M)
SECTION = re.compile(r"^(?:Args|Attributes):\n(?:(?: +.*)?\n?)*", re.M)
LIST = re.compile(r"(^(?! *[*-] ).*\S.*\n)(?= *[*-] )", re.M)


class Docstrings(griffe.Extension):
    """Roles become links, arguments explained together are explained one by one, and lists stand apart from text."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite all docstrings of a package once it is read."""
        rewrite(pkg)


def rewrite(thing: griffe.Object) -> None:
    """Rewrite the docstrings of a module, class or function, and of what is in it."""
    if thing.docstring:
        text = SECTION.sub(lambda section: TOGETHER.sub(apart, section[0]), thing.docstring.value)
        text = LIST.sub(r"\1\n", text)
        thing.docstring.value = ROLE.sub(lambda role: link(thing, role[1], role[2]), text)
    for member in thing.members.values():
        if not member.is_alias:
            rewrite(member)


def apart(entry: re.Match[str]) -> str:
    """``a, b: text`` as two entries with one text."""
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


def link(thing: griffe.Object, short: str, target: str) -> str:
    """A role's text, which leads to where its target is described; what is private or another library's is not."""
    shown = target.rpartition(".")[2] if short else target
    head, _, rest = target.partition(".")
    found = f"sibyl.{target}" if head in ROOMS else found_from(thing, head) + (f".{rest}" if rest else "")
    if not found.startswith("sibyl.") or any(part.startswith("_") for part in found.split(".")):
        return f"`{shown}`"
    return f"[`{shown}`][{described_at(thing, found)}]"


def described_at(thing: griffe.Object, name: str) -> str:
    """Where a name has its words: a field, or a method that overrides another, may have them in its class's docstring."""
    owner, _, field = name.rpartition(".")
    try:
        member = thing.modules_collection[owner].all_members[field]
    except KeyError:
        return name
    return name if member.has_docstring or member.is_module or member.is_class else owner


def found_from(thing: griffe.Object, name: str) -> str:
    """The full name of what ``name`` means in a docstring of ``thing``: in its class, one above it, or its module."""
    scope: griffe.Object | None = thing
    while scope is not None:
        if scope.is_class and name in scope.all_members:
            return scope.all_members[name].canonical_path
        scope = scope.parent
    return thing.resolve(name)
