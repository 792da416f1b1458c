"""The front door: names of ``sibyl``, the same modules by two names in a checkout, and a wheel beside a user's own packages."""

import ast
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import sibyl
from tests.conftest import ROOT

ROOMS = ("data", "models", "guides", "inference")
FIT = """
import data, models, sys
assert data.OWNER == models.OWNER == "the user"
from sibyl import SIB, EpisodeSampler, TaskSpec, load_data
glyphs = load_data("glyphs", image_size=16)
sib = SIB.fit(glyphs, epochs=0, tasks=64, validations=1, validation_tasks=20)  # on features that are not trained
task = EpisodeSampler(glyphs.test, TaskSpec(way=5, shot=1)).sample(1, seed=0)
print(tuple(sib.posterior(task.support_x, task.support_y, task.query_x).probabilities().shape))
assert "guides" not in sys.modules and "inference" not in sys.modules, "no room of the checkout is in use"
"""
HELP = """
import contextlib, os, sys
from importlib.metadata import distribution
os._exit = sys.exit  # which can be suppressed
for command in sorted(distribution("sibyl-vib").entry_points, key=lambda command: command.name):
    sys.argv = [f"/somewhere/bin/{command.name}", "--help"]
    with contextlib.suppress(SystemExit):
        command.load()()
"""


def load_setup():
    """``setup.py`` as a module."""
    spec = importlib.util.spec_from_file_location("sibyl_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(*words: str, path: list[Path], cwd: Path) -> subprocess.CompletedProcess:
    """Run Python with nothing but ``path`` and the libraries: no editable install, which ``-S`` leaves out, is in reach."""
    libraries = Path(sysconfig.get_paths()["purelib"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, libraries])), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-S", *words], cwd=cwd, env=environment, capture_output=True, text=True)


def in_checkout(code: str, cwd: Path) -> str:
    """What ``code`` prints where the checkout is on the path."""
    result = python("-c", code, path=[ROOT], cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("name", sorted(set(sibyl.__all__) - {"__version__"}))
def test_a_name_is_the_object_of_its_module(name):
    assert getattr(sibyl, name) is getattr(importlib.import_module(sibyl._HOME[name]), name)
    assert name in dir(sibyl)


def test_type_checkers_see_the_names_that_are_loaded():
    tree = ast.parse(Path(sibyl.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == sibyl._HOME
    assert {*seen, "__version__"} == set(sibyl.__all__)
    assert (ROOT / "sibyl" / "py.typed").exists()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'sibyl' has no attribute 'Oracle'"):
        sibyl.Oracle  # noqa: B018
    with pytest.raises(ImportError):
        importlib.import_module("sibyl.models.oracle")
    with pytest.raises(ImportError):
        importlib.import_module("sibyl.database")


def test_importing_sibyl_loads_no_heavy_library(tmp_path):
    assert in_checkout("import sibyl, sys; print({'torch', 'pyro', 'numpy'} & set(sys.modules))", tmp_path) == "set()"


@pytest.mark.parametrize(("first", "second"), [("sibyl.data.errors", "data.errors"), ("data.errors", "sibyl.data.errors")])
def test_two_names_are_one_module_that_keeps_its_own(tmp_path, first, second):
    code = f"""
import importlib, sibyl
first, second = importlib.import_module("{first}"), importlib.import_module("{second}")
assert first is second and sibyl.data.errors is first
assert first.__name__ == first.__spec__.name == first.UserError.__module__ == "data.errors", first.__spec__
assert first.__spec__.loader is first.__loader__ and first.__package__ == "data"
import data
assert sibyl.data is data and data.__spec__.name == "data" and len(data.__path__) == 1
assert importlib.reload(first) is second and first.__spec__.name == "data.errors"
"""
    in_checkout(code, tmp_path)


def test_a_users_package_in_the_place_of_a_room_is_named(tmp_path):
    (tmp_path / "models.py").write_text("")
    result = python("-c", "import sibyl.models.plates", path=[ROOT], cwd=tmp_path)
    assert f"{tmp_path / 'models.py'} hides Sibyl's 'models'" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from data.items import A, B", "from sibyl.data.items import A, B"),
        ("from models import plates  # from data import x", "from sibyl.models import plates  # from data import x"),
        (
            "def f():\n    from inference.elbo import (\n        A,\n    )",
            "def f():\n    from sibyl.inference.elbo import (\n        A,\n    )",
        ),
        ("β = 'from data import x'; from guides.empty import β", "β = 'from data import x'; from sibyl.guides.empty import β"),
        ("from database import a\nfrom .data import b\nimport torch.utils.data", None),
        ("'''\nfrom data.items import A\n'''\nCOMMAND = 'python -m inference.svi_sib'", None),
        ("from sibyl.data.items import A", None),
    ],
)
def test_imports_alone_are_rewritten(source, expected):
    assert load_setup().rewritten(source, "file.py") == (expected or source)


@pytest.mark.parametrize(
    "source", ["import data", "import os, models.plates as p", "from  data import a", "from \\\n data import a"]
)
def test_imports_without_counterpart_stop_the_build(source):
    with pytest.raises(SyntaxError, match=r"file\.py, line 1"):
        load_setup().rewritten(source, "file.py")


def test_every_module_of_the_checkout_is_rewritten_and_nothing_but_its_imports():
    rewritten = load_setup().rewritten
    for path in [path for room in (*ROOMS, "sibyl") for path in (ROOT / room).rglob("*.py")]:
        source = path.read_text()
        back = rewritten(source, path).replace("from sibyl.", "from ")
        assert back == source.replace("from sibyl.", "from "), path


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """Wheels of a copy of the tree and of its sdist, in ``tree`` and ``sdist``, and the first one installed, in ``site``."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in (*ROOMS, "sibyl"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    stale = source / "build" / "lib" / "data"
    stale.mkdir(parents=True)
    (stale / "gone.py").write_text("")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    call = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", call], cwd=source, check=True, capture_output=True)
    for name, place in {"tree": source, "sdist": next(folder.glob("*.tar.gz"))}.items():
        subprocess.run([*pip, "wheel", *offline, "--wheel-dir", str(folder / name), str(place)], check=True)
    wheel = next((folder / "tree").glob("*.whl"))
    subprocess.run([*pip, "install", *offline, "--target", str(folder / "site"), str(wheel)], check=True)
    return folder


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder with a package ``data`` and a module ``models`` of its own."""
    (tmp_path / "data").mkdir()
    for name in ("data/__init__.py", "models.py"):
        (tmp_path / name).write_text('OWNER = "the user"\n')
    return tmp_path


def contents(wheel: Path) -> dict[str, bytes]:
    """Files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_wheel_has_one_package_with_every_module(built):
    files = contents(next((built / "tree").glob("*.whl")))
    info = f"sibyl_vib-{sibyl.__version__}.dist-info"
    assert {name.split("/")[0] for name in files} == {"sibyl", info}
    assert files[f"{info}/top_level.txt"].decode().split() == ["sibyl"]
    expected = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    modules = {name.removeprefix("sibyl/") for name in files if name.endswith(".py")}
    assert expected <= modules
    assert modules - expected == {path.name for path in (ROOT / "sibyl").glob("*.py")}
    assert "sibyl/py.typed" in files


@pytest.mark.slow
def test_sdist_builds_the_same_wheel(built):
    from_tree, from_sdist = (contents(next((built / name).glob("*.whl"))) for name in ("tree", "sdist"))
    assert from_tree == from_sdist


@pytest.mark.slow
def test_installed_wheel_fits_beside_a_users_own_packages(built, users_folder):
    result = python("-c", FIT, path=[built / "site"], cwd=users_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("(1, 75, 5)")


@pytest.mark.slow
def test_installed_command_calls_itself_by_its_name(built, users_folder):
    script = built / "site" / "bin" / "sibyl-sib"
    result = python(str(script), "--help", path=[users_folder, built / "site"], cwd=users_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: sibyl-sib ")


@pytest.mark.slow
def test_all_installed_commands_have_help(built, users_folder):
    result = python("-c", HELP, path=[built / "site"], cwd=users_folder)
    assert result.returncode == 0, result.stderr
    usages = [line for line in result.stdout.splitlines() if line.startswith("usage: ")]
    assert [line.split()[1] for line in usages] == [
        *("sibyl-bnn", "sibyl-diagnose", "sibyl-meta", "sibyl-predict", "sibyl-sib", "sibyl-vid"),
    ]
    assert "python -m" not in result.stdout


@pytest.mark.slow
def test_command_of_the_checkout_runs_by_its_second_name(tmp_path):
    result = python("-m", "sibyl.inference.svi_vid", "--help", path=[ROOT], cwd=tmp_path)
    assert result.stdout.startswith("usage: python -m inference.svi_vid "), result.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/cite.md"])
def test_citation_has_the_papers_of_the_readme(page):
    papers = re.findall(r"^> .*? \*(.+?)\*", (ROOT / page).read_text(), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert [f"{reference['title']}." for reference in citation["references"]] == papers
    assert len(papers) == 3
