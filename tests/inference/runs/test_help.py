"""``--help``: groups, lines that fit, defaults as they are typed, examples that run; the README says the same."""

# ruff: noqa: RUF009 (defaults are immutable tuples)

import importlib
import re
import shlex
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import pytest

from inference.bnn.options import BnnOptions
from inference.diagnose import DiagnoseOptions
from inference.meta.family_options import MetaOptions
from inference.meta.options import SibOptions
from inference.meta.regression_options import USED
from inference.predict import PredictOptions
from inference.runs.commands import OptionParser
from inference.runs.help import Example, Group, format_help, groups_of
from inference.runs.options import Options, RunOptions
from inference.runs.values import Counts, PositiveInt, Sweep
from inference.vid.options import VidOptions
from tests.conftest import ROOT

COMMANDS = {
    "svi_sib": SibOptions,
    "svi_bnn": BnnOptions,
    "svi_vid": VidOptions,
    "svi_meta": MetaOptions,
    "predict": PredictOptions,
    "diagnose": DiagnoseOptions,
}


@dataclass(frozen=True, kw_only=True)
class Own(RunOptions):
    """Mine.

    Args:
        data: my data.
        size_of_it: how large; size_of_it 3 is usual, half-and-half.
        kind: which one.
        beta: several.
        root: where.
    """

    _guide: ClassVar[Group] = Group.GUIDE
    kind: Literal["one", "other"] = "one"
    beta: Sweep = Sweep((0.1, 1.0))
    _data: ClassVar[Group] = Group.DATA
    data: str = "mine"
    size_of_it: PositiveInt
    counts: Counts | None = None
    _run: ClassVar[Group] = Group.RUN
    root: str | None = None
    rate: float = 2.0


def shown(name, monkeypatch, capsys, columns=100, arguments=("--help",)):
    """What a command prints for ``--help``."""
    monkeypatch.setenv("COLUMNS", str(columns))
    module = importlib.import_module(f"inference.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main(list(arguments))
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_fields_stand_below_the_heading_before_them():
    places = groups_of(Own)
    assert [name for name, group in places.items() if group is Group.DATA] == ["data", "image_size", "size_of_it", "counts"]
    assert [name for name, group in places.items() if group is Group.GUIDE] == ["kind", "beta"]
    assert [name for name, group in places.items() if group is Group.TRAINING] == ["batch", "learning_rate"]
    assert list(places)[-2:] == ["root", "rate"], "a field that is declared again below another heading moves there"
    assert places["root"] is places["seed"] is Group.RUN


def test_lines_of_options(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = format_help(Own, "own", "What it does.", [Example("--kind other --size-of-it 3", "the other")], {"--more WORD": "m"})
    assert text.startswith("usage: own [options]\n\nWhat it does.\n\ndata:\n  --data DATA ")
    for line in (
        "--data DATA my data (default: mine)",
        "--size-of-it N how large; --size-of-it 3 is usual, half-and-half (required)",
        "--counts N,…",
        "--kind {one,other} which one (default: one)",
        "--beta X,… several (default: 0.1,1)",
        "--rate X (default: 2)",
        "--root ROOT where\n",
        "--progress {true,false}\n progress bars (default: true)",
        "--more WORD m\n",
        "examples:\n # the other\n own --kind other --size-of-it 3\n",
    ):
        assert line in re.sub(r" +", " ", text), line


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [80, 200])
def test_help_is_for_people(name, columns, monkeypatch, capsys):
    text = shown(name, monkeypatch, capsys, columns)
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    for option in (*(field.name for field in fields(COMMANDS[name])), "config", "print_config"):
        assert len(re.findall(rf"^  --{option.replace('_', '-')}\b[^-]", text, re.M)) == 1, option
    for internal in ("<", "Path(", "Literal", "null", "None", "True", "False", "'", "type:"):
        assert internal not in re.sub(r"runs/\S*<\S+>|\w's|s' ", "", text), internal
    assert not re.findall(r"(?<!inference\.)\b[a-z]+_[a-z]+\b", re.sub(r"svi_\w+|(my|new|other)_\w+|n_b", "", text))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_below_a_heading_of_its_own(name, monkeypatch, capsys):
    text = shown(name, monkeypatch, capsys)
    titles = re.findall(r"^(\S.*):$", text, re.M)
    groups = [group.value for group in Group if group in groups_of(COMMANDS[name]).values()]
    assert titles == [*groups, "examples"]
    assert len(groups) >= 2
    assert not re.findall(r"^  --\S+( \S+)?\n  --", text, re.M), "an option without a word"


def test_regression_lists_what_it_uses(monkeypatch, capsys):
    text = shown("svi_meta", monkeypatch, capsys, arguments=["--data", "sinusoids", "--help"])
    listed = re.findall(r"^  --([a-z-]+)", text, re.M)
    assert sorted(listed) == sorted([*(name.replace("_", "-") for name in USED), "config", "print-config", "resume"])
    assert "stop after" not in text
    assert not re.findall(r"^(network|method):$", text, re.M), "no heading without options"


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands(name, monkeypatch, capsys):
    text = shown(name, monkeypatch, capsys).replace("\\\n", "")
    lines = [line for line in text.split("examples:\n")[1].splitlines() if not line.startswith("  #")]
    assert 2 <= len(lines) <= 4
    for line in lines:
        check(line)


def check(line):
    """Fail where a command line is none, or its options are refused."""
    python, dash, module, *words = shlex.split(line, comments=True)
    assert (python, dash) == ("python", "-m")
    command = module.removeprefix("inference.")
    parser = OptionParser(COMMANDS[command], command, "")
    parser.add_flag("--resume", "…", type=str | None, default=None)
    values = parser.read([word for word in words if word not in "[]…"])
    values.pop("resume")
    COMMANDS[command](**values)


def quoted():
    """Command lines in the README."""
    text = (ROOT / "README.md").read_text().replace("\\\n", "")
    return [line.strip() for line in re.findall(r"python -m inference\.[^\n`]*", text)]


@pytest.mark.parametrize("line", quoted())
def test_the_readmes_commands_are_read(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(line)


def test_the_readme_and_help_say_the_same_times():
    """Where both name a command's minutes."""
    texts = {
        name: importlib.import_module(f"inference.{name}").DESCRIPTION for name in ("svi_sib", "svi_bnn", "svi_vid", "svi_meta")
    }
    told = {name: re.search(r"(\w+) minutes?", text)[1] for name, text in texts.items()}
    for line in quoted():
        if minutes := re.search(r"#.*?(\w+) minutes?", line):
            assert minutes[1] == told[line.split()[2].removeprefix("inference.")], line


def test_without_headings_all_stand_together():
    @dataclass(frozen=True, kw_only=True)
    class Plain(Options):
        """…

        Args:
            first: one.
        """

        first: int = 1

    assert groups_of(Plain) == {"first": Group.RUN}
