"""Build step: in the wheel the rooms ``data``, ``models``, ``guides`` and ``inference`` stand below the one package ``sibyl``.

In the checkout they are packages of their own, and import each other by these names. Top-level packages called ``data`` or
``models`` would break every user's own in an environment, so a wheel has them as ``sibyl.data`` ..., with the import statements
rewritten. An editable install leaves files where they are and shows the same names as the checkout.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

FRONT = "sibyl"
ROOMS = ("data", "models", "guides", "inference")
SOURCE_PACKAGES = find_packages(
    str(Path(__file__).parent), include=[f"{name}{rest}" for name in (FRONT, *ROOMS) for rest in ("", ".*")]
)


def in_front(name: str) -> str:
    """The module's name in the wheel: ``models.plates`` is ``sibyl.models.plates``, other names stay."""
    return f"{FRONT}.{name}" if name.split(".")[0] in ROOMS else name


def rewritten(source: str, path: object) -> str:
    """The source with absolute imports of rooms led through the front door; every other character stays where it was.

    Raises:
        SyntaxError: an import has no counterpart: ``import data.episodes`` binds the name ``data``.
    """
    lines = source.encode().splitlines(keepends=True)  # ast counts columns in bytes
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and in_front(node.module) != node.module:
            old = b"from " + node.module.encode()
            line, start = lines[node.lineno - 1], node.col_offset
            if line[start : start + len(old)] != old:
                raise SyntaxError(
                    f"{path}, line {node.lineno}: write 'from {node.module} import ...' on one line, one space apart"
                )
            lines[node.lineno - 1] = line[:start] + b"from " + in_front(node.module).encode() + line[start + len(old) :]
        elif isinstance(node, ast.Import) and any(in_front(alias.name) != alias.name for alias in node.names):
            raise SyntaxError(f"{path}, line {node.lineno}: write 'from ... import ...' for Sibyl's own modules")
    return b"".join(lines).decode()


class BuildBelowSibyl(build_py):
    """Copies modules to their places below ``sibyl`` and rewrites their imports."""

    def run(self):
        """Build in an empty folder: what an earlier build left there would be in the wheel too."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def build_module(self, module, module_file, package):
        """Copy one module, then rewrite the copy."""
        outfile, copied = super().build_module(module, module_file, package)
        copy = Path(outfile)
        copy.write_bytes(rewritten(copy.read_bytes().decode(), module_file).encode())
        return outfile, copied


class EditableAtRoot(editable_wheel):
    """Shows the rooms by the names they have in the checkout."""

    def finalize_options(self):
        """Undo the mapping before it is looked at."""
        self.distribution.packages, self.distribution.package_dir = SOURCE_PACKAGES, {}
        super().finalize_options()


if __name__ == "__main__":
    setup(
        packages=[in_front(package) for package in SOURCE_PACKAGES],
        package_dir={in_front(room): room for room in ROOMS},
        cmdclass={"build_py": BuildBelowSibyl, "editable_wheel": EditableAtRoot},
    )
