"""In a checkout, ``sibyl.models.plates`` is the module ``models.plates``: one module object under two names.

A wheel has ``data``, ``models``, ``guides`` and ``inference`` below ``sibyl`` (see ``setup.py``) and has no use for this.
"""

from __future__ import annotations

from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("data", "models", "guides", "inference")


def own_name(alias: str) -> str:
    """``sibyl.models.plates`` to ``models.plates``."""
    return alias.partition(".")[2]


class Alias(Loader):
    """Loads a module by its own name and leaves it as it was."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(own_name(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        alias = module.__spec__
        if alias is not None and alias.loader is self:  # the import system has put the alias's spec in place of its own
            module.__spec__ = alias.loader_state

    def get_code(self, alias: str) -> CodeType | None:
        """For ``python -m sibyl.inference.svi_sib``."""
        spec = find_spec(own_name(alias))
        loader: Any = spec.loader if spec else None
        return loader.get_code(own_name(alias)) if loader else None


class AliasFinder(MetaPathFinder):
    """Finds the rooms below ``sibyl``.

    It must stand before the import system's own finders: by the path of ``sibyl.models`` they would load second copies.
    """

    loader = Alias()

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not fullname.startswith(tuple(f"sibyl.{room}" for room in ROOMS)):
            return None
        spec = find_spec(own_name(fullname))
        if spec is None or spec.origin is None:
            return None
        if not Path(spec.origin).resolve().is_relative_to(ROOT):
            raise ImportError(f"{spec.origin} hides Sibyl's {own_name(fullname)!r}: install Sibyl from a wheel, not editable")
        return ModuleSpec(fullname, self.loader, origin=spec.origin, is_package=spec.submodule_search_locations is not None)
