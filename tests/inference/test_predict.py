"""``python -m inference.predict`` on finished runs of three guides: what it writes, and what it refuses in one line."""

import json

import pytest

from inference.predict import main as predict
from inference.svi_sib import main as svi_sib
from tests.inference.test_svi_sib import TINY, error_of, feature_file

pytestmark = pytest.mark.slow
LEARNED = ["--methods", "sib,nearest-mean", "--initialisation", "learned", "--protocols", "standard"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    return svi_sib(["--features", feature_file(folder), *TINY, "--protocols", "standard", "--out", str(folder / "run")])


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    return svi_sib(["--features", feature_file(folder), *TINY, *LEARNED, "--out", str(folder / "run")])


def test_other_way_shot_and_steps(run, tmp_path):
    (tmp_path / ".result.0.12.json").touch()  # by a process that was killed
    out, tasks = tmp_path / "result.json", ["--way", "7", "--shot", "3", "--queries", "4", "--tasks", "20"]
    records = predict(["--run", str(run.path), *tasks, "--steps", "5", "--out", str(out)])
    assert [r.steps for r in records] == list(range(6))
    assert list(tmp_path.iterdir()) == [out]
    assert {r["way"] for r in json.loads(out.read_text())["results"]} == {7}


def test_the_runs_own_tasks_again(run):
    """Asked as in training, it finds what the run's metrics hold."""
    (*_, last) = predict(["--run", str(run.path), "--queries", "5", "--tasks", "30"])
    trained = json.loads(run.metrics.read_text())["results"]
    (same,) = (r for r in trained if r["split"] == "test" and r["balanced"] and r["selected"] and r["steps"] == last.steps)
    assert (last.accuracy, last.nll) == pytest.approx((same["accuracy"], same["nll"]), rel=1e-6)


def test_errors(run, tmp_path, capsys):
    def error(*given):
        return error_of(["--run", run.path, *given], capsys, predict)

    assert "not a run folder" in error_of(["--run", tmp_path], capsys, predict)
    for folder in (tmp_path, "/"):
        assert "is a folder: name a file for the results" in error_of(["--run", run.path, "--out", folder], capsys, predict)
    assert "has no variant" in error("--variant", "x")
    assert "too few" in error("--way", "50")
    assert "--split dev: choose train, val, test, all" in error("--split", "dev")
    assert "no network" in error("--root", tmp_path)
    assert "--image-size is about other images" in error("--image-size", "16")
    assert "--invert is about other images" in error("--invert", "true")


def test_what_a_guide_was_not_built_for(learned, capsys):
    chosen = ["--run", learned.path, "--variant", "distance-beta0.1-k3", "--way", "7"]
    assert "built for 5 classes per task, not 7" in error_of(chosen, capsys, predict)
    chosen = ["--run", learned.path, "--variant", "nearest-mean-distance-k0", "--steps", "3"]
    assert "takes no steps: leave out --steps 3" in error_of(chosen, capsys, predict)
