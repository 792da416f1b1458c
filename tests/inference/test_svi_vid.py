"""VID's command: what a run leaves, every method, protocols, resuming, and errors."""

import copy
import functools
import json
import time

import pytest
import torch
from PIL import Image

from data.errors import UserError
from data.items import LabelledItems
from data.sources.glyphs import load_capitals, load_digits
from inference.svi_vid import main as svi_vid
from inference.vid import sources
from inference.vid.vid import VID
from models.networks.classifiers import build_network
from tests.conftest import explore_elsewhere, kill_midway
from tests.pictures import assert_tags

TINY = ["--image-size", "16", "--teacher", "conv4-8", "--student", "conv4-4", "--epochs", "1", "--updates", "8"]
TINY += ["--batch", "32", "--per-class", "4", "--runs", "1", "--progress", "false"]
RECORD = {"method": str, "per_class": int, "accuracy": float, "nll": float, "ece": float, "run": int}


drawn_once = functools.cache(sources.load_supervised)


@pytest.fixture(autouse=True)
def letters_are_drawn_once(monkeypatch):
    """By all runs of this process; those that are started draw their own."""
    monkeypatch.setattr(sources, "load_supervised", drawn_once)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def tiny(cache, tmp_path):
    """The command with small settings: ``tiny(*options)`` gives the test records."""

    def call(*options):
        run = svi_vid([*TINY, "--cache", cache, "--out", str(tmp_path / f"run{time.time_ns()}"), *options])
        return [r for r in json.loads(run.metrics.read_text())["results"] if r["method"] != "teacher"]

    return call


@pytest.mark.slow
class TestCommand:
    def test_run_folder_holds_what_is_promised(self, cache, tmp_path, capsys):
        options = ["--methods", "student,kd,vid", "--per-class", "3,6", "--runs", "2", "--cache", cache]
        run = svi_vid([*TINY, *options, "--out", str(tmp_path / "run")])
        metrics = json.loads(run.metrics.read_text())
        assert metrics.keys() == {"command", "dataset", "seed", "seconds", "results"}
        teacher, *students = metrics["results"]
        assert teacher["method"] == "teacher"
        assert [r["method"] for r in students] == 2 * ["student", "student", "kd", "kd", "vid", "vid"]
        for record in students:
            for name, kind in RECORD.items():
                assert isinstance(record[name], kind), (name, record[name])
            assert (record["mutual_information"] is None) == (record["method"] != "vid")
        assert list(students[4]["mutual_information"]) == ["1.2", "1.6", "1.10", "1.14"]
        assert {p.stem for p in run.plots.glob("*.png")} == {"accuracy", "reliability", "information", "surprise"}
        assert_tags(run, {"pictures", "test", "train"})
        found = explore_elsewhere(run.path)
        assert found["files"].keys() == {f"{method}-n{size}" for method in ("student", "kd", "vid") for size in (3, 6)}
        assert found["ranking"].keys() == {"student-n6", "kd-n6", "vid-n6"}, "those with the same training images"
        assert found["chosen"] == found["files"]["vid-n6"]
        assert [len(found["files"][f"vid-n{size}"]["loo"]) for size in (3, 6)] == [26 * 3, 100]
        capsys.readouterr()
        again = svi_vid(["--config", str(run.config), "--out", str(tmp_path / "again")])
        assert "read from" in capsys.readouterr().out, "the teacher is cached"
        assert json.loads(again.metrics.read_text())["results"] == metrics["results"], "same seed, same numbers"

    def test_teacher_of_another_configuration_is_another_file(self, tmp_path):
        cache = tmp_path / "teachers"
        for number, options in enumerate(([], ["--epochs", "2"], ["--seed", "1"])):
            svi_vid([*TINY, "--methods", "student", "--cache", str(cache), *options, "--out", str(tmp_path / str(number))])
            assert len(list(cache.iterdir())) == number + 1

    @pytest.mark.parametrize(
        "method", ["lwf", "fitnet", "fitnet-stages", "at", "nst", "vid-logits", "kd+vid", "kd+at", "0.5*lwf+2*fitnet"]
    )
    def test_every_method_trains(self, tiny, method):
        (record,) = tiny("--methods", method)
        assert 0 < record["accuracy"] <= 1
        assert record["strength"] == 1.0

    def test_strength_is_chosen_on_held_out_images(self, tiny):
        records = tiny("--methods", "student,vid", "--strength", "0.1,10")
        assert [r["split"] for r in records] == ["test", "val", "val", "test"]
        assert [r["method"] for r in records] == ["student", "vid", "vid", "vid"]
        best = min(records[1:3], key=lambda r: r["nll"])
        assert records[3]["strength"] == best["strength"]

    def test_labels_for_some(self, tiny):
        records = tiny("--methods", "student,kd,vid", "--labels", "2,4", "--per-class", "8")
        assert [(r["per_class"], r["labels"]) for r in records] == [(8, 2)] * 3 + [(8, 4)] * 3
        (record,) = tiny("--methods", "student", "--labels", "2", "--per-class", "all")
        assert (record["per_class"], record["labels"]) == (200, 2), "N counts the images without labels too"

    def test_transfer_to_another_data_set(self, cache, tmp_path):
        sources = ["--teacher-data", "glyphs", "--data", "letters"]
        methods = "student,finetuned,lwf,vid,vid-logits,finetuned+vid"
        run = svi_vid([*TINY, *sources, "--methods", methods, "--cache", cache, "--out", str(tmp_path / "run")])
        records = json.loads(run.metrics.read_text())["results"]
        assert [r["method"] for r in records] == methods.split(","), "no row for the teacher, whose task is another"

    def test_mlp_learns_from_maps(self, tiny):
        records = tiny("--student", "mlp-16", "--methods", "vid,vid-logits")
        assert len(records[0]["mutual_information"]) == 4

    def test_pairs_by_name_and_heteroscedastic(self, tiny):
        (record,) = tiny("--methods", "vid", "--pairs", "1.6:1.6,1.8:1.9", "--heteroscedastic", "true")
        assert list(record["mutual_information"]) == ["1.6", "1.8"]

    def test_killed_run_ends_with_the_numbers_of_an_unbroken_one(self, cache, tmp_path):
        arguments = [*TINY, "--methods", "fitnet-stages,vid", "--updates", "120", "--cache", cache]
        whole = svi_vid([*arguments, "--out", str(tmp_path / "whole")])
        kill_midway("svi_vid", arguments, tmp_path / "broken", "fitnet-stages-n4-run0")
        broken = svi_vid(["--resume", str(tmp_path / "broken")])
        first, second = (json.loads(r.metrics.read_text())["results"] for r in (whole, broken))
        assert first == second


@pytest.mark.slow
def test_a_student_of_its_own_kind_learns_what_its_teacher_knows():
    """With labels of three images per class the bound rises, and accuracy exceeds the plain student's."""
    data = load_digits(16, train=100, test=40)
    torch.manual_seed(0)
    teacher = build_network("conv4-8", (1, 16, 16), 10)
    VID.fit(teacher, teacher, data.train.items, data.train.labels, method="student", updates=200)
    few = data.train.choose_per_class(3, 0)
    fitted = {}
    for method in ("student", "vid"):
        torch.manual_seed(1)
        student = build_network("conv4-8", (1, 16, 16), 10)
        start = VID.fit(copy.deepcopy(student), teacher, few.items, few.labels, method=method, strength=0.3, updates=1)
        fitted[method] = VID.fit(student, teacher, few.items, few.labels, method=method, strength=0.3, updates=400)
    accuracy = {method: vid.scores(data.test)["accuracy"] for method, vid in fitted.items()}
    assert accuracy["vid"] > accuracy["student"] + 0.08
    before, after = start.decoding_gain(data.test.items), fitted["vid"].decoding_gain(data.test.items)
    assert list(after) == ["1.2", "1.6", "1.10", "1.14"]
    assert all(after[layer] > before[layer] + 1 for layer in after)
    maps = fitted["vid"].surprise(data.test.items[:5])
    assert [m.shape for m in maps.values()] == [(5, 8, 8), (5, 4, 4), (5, 2, 2), (5, 1, 1)]


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--per-class", "1000"], "1000 images per class asked for, but class A has 200"),
            (["--per-class", "five"], "--per-class five: five is not a positive whole number, or all"),
            (["--labels", "9"], "--labels 9 exceeds the 4 images per class of --per-class"),
            (["--methods", "magic"], "unknown method 'magic': choose student, finetuned"),
            (["--methods", "0*vid"], "coefficient '0'"),
            (["--methods", ","], "--methods ,: give at least one value"),
            (["--methods", "finetuned"], "give --teacher-data or --student-weights"),
            (["--methods", "vid", "--pairs", "1.9999:1.2"], "vid: no layer '1.9999': choose from 0, 1, 1.0"),
            (["--methods", "vid", "--pairs", "1.2"], "teacher_layer:student_layer"),
            (["--methods", "vid", "--pairs", "1.2:1.2,1.2:1.6"], "teacher.1.2 is given twice"),
            (["--methods", "at", "--student", "mlp-8"], "at compares maps"),
            (["--methods", "kd", "--teacher-data", "glyphs"], "kd compares the same classes"),
            (["--strength", "-1"], "--strength -1: -1 is not a finite number, 0 or more"),
            (["--strength", "1,2", "--per-class", "1"], "cannot hold out 1 images per class"),
            (["--teacher", "wrn-9-1"], "depth 6 n + 4 up to 1000, not 9"),
            (["--student", "magic"], "unknown network 'magic'"),
            (["--teacher", "vgg9"], "at least 32×32"),
            (["--data", "curve"], "has no classes"),
            (["--teacher-weights", "nowhere.pth"], "there is no file nowhere.pth"),
            (["--updates", "0"], "--updates 0: must be a whole number, above 0"),
            (["--methods", "finetuned", "--student-weights", "nowhere.pth"], "there is no file nowhere.pth"),
        ],
    )
    def test_one_line_and_nothing_left(self, options, message, cache, tmp_path):
        with pytest.raises(UserError) as error:
            svi_vid([*TINY, *options, "--cache", cache, "--out", str(tmp_path / "run")])
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_other_input_sizes_are_named(self, cache, tmp_path):
        for part in ("train/a", "train/b", "test/a", "test/b"):
            (tmp_path / "images" / part).mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(tmp_path / "images" / part / "0.png")
        sources = ["--data", "letters", "--teacher-data", "folder", "--teacher-root", str(tmp_path / "images")]
        with pytest.raises(UserError, match="teacher's images are 3×32×32 and the student's 1×28×28"):
            svi_vid([*TINY[2:], *sources, "--cache", cache, "--out", str(tmp_path / "run")])


def test_letters_are_as_promised():
    data = load_capitals(16, train=3, test=2)
    assert data.train.items.shape == (78, 1, 16, 16)
    assert data.test.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_smaller_choices_are_parts_of_larger_ones():
    items = LabelledItems(torch.arange(40), torch.arange(4).repeat(10), tuple("abcd"))
    small, large = items.choose_per_class(3, 5), items.choose_per_class(7, 5)
    assert torch.equal(small.counts, torch.full((4,), 3))
    assert set(small.items.tolist()) < set(large.items.tolist())
    assert torch.equal(items.labels[small.items], small.labels)
