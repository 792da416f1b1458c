"""What README and the site promise: numbers that were measured, commands and names that exist, links that lead somewhere."""

import ast
import importlib
import importlib.util
import logging
import re
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()
MEASURED = re.compile(r"-?\d+(?:\.\d+)? ± \d+(?:\.\d+)?")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """Fenced code of a language, ``""`` for none."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S)
    return [block[2] for block in found if block[1] == language]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_tables_and_intervals_are_those_of_the_results(path):
    for table in blocks(path, ""):
        for line in table.splitlines():
            assert line in RESULTS, f"not in RESULTS.md: {line}"
    rows = RESULTS.replace("|", " ")
    for interval in MEASURED.findall(path.read_text()):
        assert re.search(rf"(?<![\d.]){re.escape(interval)}(?!\d)", rows), f"not in RESULTS.md: {interval}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_and_options_exist(path):
    from inference.bnn.options import BnnOptions
    from inference.diagnose import DiagnoseOptions
    from inference.meta.family_options import MetaOptions
    from inference.meta.options import SibOptions
    from inference.predict import PredictOptions
    from inference.vid.options import VidOptions

    text = path.read_text()
    commands = (SibOptions, MetaOptions, BnnOptions, VidOptions, PredictOptions, DiagnoseOptions)
    known = {field.replace("_", "-") for options in commands for field in options.__dataclass_fields__}
    known |= {"config", "resume", "help", "nproc-per-node", "nnodes", "rdzv-backend", "rdzv-endpoint", "rdzv-id"}  # torchrun's
    known |= {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "requeue"}  # Slurm's
    used = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text))
    assert used <= known, used - known
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_on_pages_is_python_and_imports_what_there_is(path):
    for code in blocks(path, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sibyl":
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("../../models/tasks/model.py", "../reference/models.tasks.md#sibyl.models.tasks.model"),
        ("../../inference/elbo.py#RateDistortionELBO", "../reference/inference.md#sibyl.inference.elbo.RateDistortionELBO"),
        ("../../benchmarks/RESULTS.md#5-shot", "../results.md#5-shot"),
        ("../../CONTRIBUTING.md", "method.md"),
        ("../../notebooks/sib.ipynb", "../notebooks/sib.ipynb"),
        ("../words.md", "../words.md"),
        ("../../guides/tasks", "../reference/guides.tasks.md"),
        ("../../Makefile", None),
    ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(hooks, target, expected):
    assert hooks.relative(target, "docs/how-to/data.md", "how-to/data.md") == expected


def test_a_link_to_no_file_is_a_warning_which_fails_the_build(hooks, caplog):
    with caplog.at_level(logging.WARNING):
        hooks.relative("../nowhere.md", "docs/how-to/data.md", "how-to/data.md")
    assert "docs/nowhere.md" in caplog.text


def test_every_package_has_a_reference_page_with_all_its_modules(hooks):
    for package in hooks.packages():
        page = hooks.reference_page(package)
        modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert modules <= {line.rpartition(".")[2] for line in page.splitlines() if line.startswith(":::")}


def test_formulas_in_notebooks_become_mathml_and_code_does_not(hooks):
    page = type("Page", (), {"file": type("File", (), {"src_uri": "notebooks/sib.ipynb"})})
    html = hooks.on_page_content("<p>at $\\beta=1$</p><pre>$x$ and $y$</pre>", page, None, None)
    assert "<math" in html
    assert "&#x003B2;" in html
    assert "<pre>$x$ and $y$</pre>" in html


def test_roles_and_joint_arguments_of_docstrings_become_what_the_site_can_show():
    griffe = pytest.importorskip("griffe", reason="needs the extra `docs`")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    code = '''
    class Thing:
        """See {meth}`act` and {kind}`~models.tasks.model.EmpiricalBayesModel`:
        * one.

        Args:
            a, b: numbers.
        """

        def act(self): ...
    '''
    module = griffe.visit(
        "sibyl.data.thing", filepath=Path("thing.py"), code=textwrap.dedent(code).format(meth=":meth:", kind=":class:")
    )
    extension.rewrite(module)
    text = module["Thing"].docstring.value
    assert "[`act`][sibyl.data.thing.Thing.act]" in text
    assert "[`EmpiricalBayesModel`][sibyl.models.tasks.model.EmpiricalBayesModel]" in text
    assert "a: numbers.\n    b: numbers." in text
    assert ":\n\n* one." in text
