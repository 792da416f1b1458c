"""The order of a run: what is on disk when something is drawn, and what a failing picture costs."""

import json

import matplotlib.pyplot as plt
import pytest

from data.errors import UserError
from inference.runs.folder import RunFolder
from inference.runs.options import RunOptions
from inference.runs.study import Study, draw_all


class Steps(Study):
    """Records the order of its steps; ``broken`` names one that fails."""

    command = "steps"

    def __init__(self, options, broken=None, error=RuntimeError):
        super().__init__(options)
        self.done, self.broken, self.error = [], broken, error

    def step(self, name, result=None):
        self.done.append(name)
        if name == self.broken:
            raise self.error(f"{name} is\nbroken")
        return result

    def load(self):
        return self.step("load", "data")

    def check(self, data):
        self.step("check")

    def fit(self, data, run):
        return self.step("fit", "fitted")

    def evaluate(self, data, fitted, run):
        return self.step("evaluate", [{"split": "test", "accuracy": 0.5}])

    def choose(self, records):
        return self.step("choose", [record | {"selected": True} for record in records])

    def save(self, data, fitted, records, run):
        self.step("save")
        run.posterior.write_text("draws")

    def figures(self, data, fitted, records, run):
        self.on_disk = json.loads(run.metrics.read_text())["results"], run.posterior.read_text()
        return self.step("figures", {"first": lambda: self.draw("first"), "second": lambda: self.draw("second")})

    def draw(self, name):
        return self.step(name, plt.figure())

    def report(self, data, records):
        return self.step("report", f"accuracy {records[0]['accuracy']}")


ORDER = ["load", "check", "fit", "evaluate", "choose", "save", "figures", "first", "second", "report"]


@pytest.fixture
def options(tmp_path):
    return RunOptions(out=str(tmp_path / "run"), progress=False)


def test_results_are_on_disk_before_anything_is_drawn(options, capsys):
    study = Steps(options)
    run = study.run()
    assert study.done == ORDER
    assert study.on_disk == ([{"split": "test", "accuracy": 0.5, "selected": True}], "draws")
    assert {p.stem for p in run.plots.iterdir()} == {"first", "second"}
    metrics = json.loads(run.metrics.read_text())
    assert metrics["command"] == "steps"
    assert metrics["seconds"].keys() == {"evaluate", "plots"}
    printed = capsys.readouterr().out
    assert printed.index("accuracy 0.5") < printed.index("results: ") < printed.index("plot: ")


@pytest.mark.parametrize("error", [RuntimeError, UserError, ValueError])
def test_a_failing_picture_costs_itself_and_a_line(options, capsys, error):
    study = Steps(options, broken="first", error=error)
    run = study.run()
    assert study.done == ORDER
    assert [p.stem for p in run.plots.iterdir()] == ["second"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "first" in line]
    said = " ".join(str(error("first is\nbroken")).split())
    assert line == f"plot:    could not draw first: {error.__name__}: {said}"


def test_pictures_that_cannot_be_listed_cost_all_of_them(options, capsys):
    study = Steps(options, broken="figures")
    run = study.run()
    assert study.done == [step for step in ORDER if step not in ("first", "second")]
    assert not run.plots.exists()
    assert "could not draw anything: RuntimeError: figures is broken" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["load", "check"])
def test_bad_input_leaves_nothing_behind(options, step, tmp_path):
    with pytest.raises(UserError):
        Steps(options, broken=step, error=UserError).run()
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_saved_are_an_error(options):
    """Unlike a picture, ``posterior.nc`` is a result."""
    with pytest.raises(RuntimeError, match="save is"):
        Steps(options, broken="save").run()


IN_THE_WAY = {
    "a file": (lambda out: out.write_text(""), "is no folder"),
    "a link to nothing": (lambda out: out.symlink_to("nothing"), "is no folder"),
    "a link to itself": (lambda out: out.symlink_to(out.name), "is no folder"),
    "another's plots": (lambda out: (out / "plots").mkdir(parents=True), "holds plots, which is of no run"),
    "another's features": (lambda out: out.mkdir() or (out / "features.safetensors").write_text(""), "holds features"),
}


@pytest.mark.parametrize(("make", "said"), IN_THE_WAY.values(), ids=list(IN_THE_WAY))
def test_a_folder_that_cannot_be_a_runs_is_refused_before_data_are_read(make, said, options, tmp_path):
    make(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    study = Steps(options)
    with pytest.raises(UserError, match=said):
        study.run()
    assert study.done == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["x" * 300, "d/" * 3000, "/proc/self/x", "/dev/null/x"])
def test_a_path_that_cannot_be_is_refused_before_data_are_read(out):
    study = Steps(RunOptions(out=out))
    with pytest.raises(UserError, match="cannot be made") as raised:
        study.run()
    assert study.done == []
    assert len(str(raised.value)) < 300


def test_half_precision_of_gpus_is_refused_before_data_are_read(tmp_path):
    study = Steps(RunOptions(out=str(tmp_path / "run"), precision="16-mixed"))
    with pytest.raises(UserError, match="`precision=16-mixed` needs a GPU"):
        study.run()
    assert study.done == []
    assert not list(tmp_path.iterdir())


def test_a_run_is_continued_in_its_folder(options, tmp_path):
    first = Steps(options).run()
    again = Steps(options).run(RunFolder.existing(first.path))
    assert again.path == first.path
    with pytest.raises(UserError, match="already holds a run"):
        Steps(options).run()


def test_studies_that_are_not_resumed_say_so(options):
    class Short(Steps):
        resumes = False

    with pytest.raises(UserError, match="not resumed"):
        Short(options).run(RunFolder.existing(Short(options).run().path))


def test_other_processes_train_and_are_silent(options, capsys, monkeypatch):
    for module in ("study", "processes"):
        monkeypatch.setattr(f"inference.runs.{module}.is_main", lambda: False)
    study = Steps(options)
    study.run()
    assert study.done == ["load", "check", "fit"]
    assert not capsys.readouterr().out


def test_figures_are_closed(tmp_path):
    before = plt.get_fignums()
    draw_all(lambda: {str(i): plt.figure for i in range(3)}, tmp_path)
    assert plt.get_fignums() == before
