"""YAML as options need it: without aliases, which let a short text stand for terabytes, and not deep."""

from __future__ import annotations

from typing import Any

import jsonargparse
import yaml

MODE = "flat_yaml"
"""What jsonargparse calls it."""
DEEPEST = 8
"""Lists and mappings inside one another."""
LONGEST = 2**20
"""Characters."""


def check_flat(text: str) -> None:
    """Refuse aliases, depth and length of a ``text``, before anything is built.

    Raises:
        yaml.YAMLError: there are some.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has more than {LONGEST} characters")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"*{event.anchor} is an alias: write out what it stands for")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"more than {DEEPEST} lists stand inside one another")


def read_yaml(text: str) -> Any:
    """What a ``text`` holds: plain values.

    Raises:
        yaml.YAMLError: it is damaged, or see :func:`check_flat`.
    """
    check_flat(text)
    return yaml.safe_load(text)


def load(text: str) -> Any:
    """:func:`read_yaml` of a ``text`` as jsonargparse reads values.

    Raises:
        yaml.YAMLError: see there.
    """
    check_flat(text)
    return jsonargparse.get_loader("yaml")(text)


jsonargparse.set_loader(MODE, load, exceptions=(yaml.YAMLError, ValueError, RecursionError))
