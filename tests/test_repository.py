"""What the layout promises: which module imports which, where and in no circle, and README code that runs."""

import ast
import graphlib
import importlib
import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT

ALLOWED = {"data": set(), "models": {"data"}, "guides": {"models"}, "inference": {"data", "models", "guides"}}
HEAVY = ("arviz", "laplace", "timm", "torchvision.datasets", "torchvision.models")
"""Optional or slow to import: only these may be imported where they are used."""


def imports(path: Path) -> set[str]:
    """Top-level packages a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_downwards_only(package):
    for path in (ROOT / package).rglob("*.py"):
        assert imports(path) & set(ALLOWED) <= ALLOWED[package] | {package}, path


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the packages."""
    files = [path for package in ALLOWED for path in (ROOT / package).rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imported_names(tree: ast.AST) -> list[str]:
    """Everything that a syntax tree imports, as dotted names; ``from a import b`` counts as ``a.b``."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_only_heavy_libraries_are_imported_inside_functions():
    for name, path in modules().items():
        functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {imported for function in functions for imported in imported_names(function)}
        assert all(f"{imported}.".startswith(tuple(f"{heavy}." for heavy in HEAVY)) for imported in inside), (name, inside)


def test_modules_import_each_other_in_no_circle():
    """Imports inside functions and for type checkers count: a circle is a circle wherever it is closed."""
    files = modules()
    arrows = {}
    for name, path in files.items():
        found = imported_names(ast.parse(path.read_text()))
        arrows[name] = {x if x in files else x.rpartition(".")[0] for x in found} & files.keys() - {name}
    assert sum(map(len, arrows.values())) > 100
    assert list(graphlib.TopologicalSorter(arrows).static_order())


def resolves(name: str) -> bool:
    """Whether a dotted name leads to something: a module, or what one holds, fields of dataclasses included."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        with suppress(ModuleNotFoundError, ValueError):
            thing = importlib.import_module(".".join(parts[:count]))
            for part in parts[count:]:
                if part in getattr(thing, "__annotations__", {}):
                    return True
                thing = getattr(thing, part, None)
            return thing is not None
    return False


@pytest.mark.parametrize("package", [*ALLOWED, "tests"])
def test_references_in_docstrings_lead_somewhere(package):
    """What docstrings name by role (``class``, ``func`` ...) there is, whole or from inside its own module or class."""
    count = 0
    for path in (ROOT / package).rglob("*.py"):
        text, module = path.read_text(), ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(text)
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        unpacked = {ast.unparse(name) for target in targets if isinstance(target, ast.Tuple) for name in target.elts}
        for found in re.finditer(r":(?:class|mod|func|meth|attr|data|exc):`~?([\w.]+)`", text):
            line = text.count("\n", 0, found.start()) + 1
            around = [f"{module}.{node.name}" for node in classes if node.lineno <= line <= (node.end_lineno or line)]
            places = ["", f"{module}.", *(f"{place}." for place in around)]
            assert any(resolves(place + found[1]) for place in places), f"{path}, line {line}: {found[0]}"
            assert found[1] not in unpacked, (
                f"{path}, line {line}: {found[0]} is assigned in a tuple, which the site cannot read"
            )
            count += 1
    assert count or package == "tests"


@pytest.mark.slow
def test_readme_example_runs(monkeypatch, capsys):
    """The README's Python example, with a smaller fit."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    code = code.replace("SIB.fit(data)", "SIB.fit(data, epochs=1, tasks=160, validations=1, validation_tasks=20)")
    assert len(code.strip().splitlines()) <= 12
    exec(compile(code, "README.md", "exec"), {})
    assert "nats" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_can_be_imported(path):
    importlib.import_module(f"benchmarks.{path.stem}")
