"""What the layout promises: which package imports which, and README code that runs."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

ALLOWED = {"data": set(), "models": {"data"}, "guides": {"models"}, "inference": {"data", "models", "guides"}}


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


@pytest.mark.parametrize("package", ALLOWED)
def test_public_functions_and_classes_have_docstrings(package):
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.slow
def test_readme_example_runs(monkeypatch, capsys):
    """The README's Python example, with a smaller fit."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    code = code.replace("SIB.fit(data)", "SIB.fit(data, epochs=1, tasks=160, validations=1)")
    assert len(code.strip().splitlines()) <= 12
    exec(compile(code, "README.md", "exec"), {})
    assert "nats" in capsys.readouterr().out


def test_readme_names_only_commands_and_options_that_exist():
    from inference.bnn.options import BnnOptions
    from inference.meta.options import SibOptions
    from inference.predict import PredictOptions
    from inference.vid.options import VidOptions

    commands = (SibOptions, BnnOptions, VidOptions, PredictOptions)
    known = {f.replace("_", "-") for options in commands for f in options.__dataclass_fields__}
    known |= {"config", "resume", "help"}
    used = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", (ROOT / "README.md").read_text()))
    assert used <= known, used - known
