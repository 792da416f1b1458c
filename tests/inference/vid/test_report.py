"""Records and the table."""

import math

from inference.vid.options import Size
from inference.vid.report import VidRecord, format_table, group_runs, make_record, teacher_record
from inference.vid.vid import VID
from tests.inference.vid.conftest import images, network

SCORES = {"accuracy": 0.5, "nll": 1.25, "ece": 0.125, "brier": 0.5, "mutual_information": None}


def record(method, per_class, run=0, labels=None, split="test", strength=1.0, **changes):
    base = {"split": split, "method": method, "per_class": per_class, "labels": labels, "run": run, "strength": strength}
    return base | SCORES | changes


def test_records_are_flat_and_complete():
    data = images(4)
    vid = VID.fit(network(), network("conv4-8"), data.items, data.labels, method="vid", updates=1)
    made = make_record(vid, data, "vid", Size(None, 2), 30, 1, strength=2.0, split="val")
    assert made.keys() == VidRecord.__annotations__.keys()
    assert (made["per_class"], made["labels"], made["run"], made["split"], made["strength"]) == (10, 2, 1, "val", 2.0)
    assert all(math.isfinite(value) for value in made["mutual_information"].values())
    assert made["mutual_information"] == vid.decoding_gain(data.choose(12, 0).items)
    plain = VID.fit(network(), network("conv4-8"), data.items, data.labels, method="student", updates=1)
    assert make_record(plain, data, "student", Size(4), 12, 0, strength=None, split="test")["mutual_information"] is None


def test_teachers_of_other_classes_have_no_record():
    data = images(4)
    assert teacher_record(network(), data).keys() == VidRecord.__annotations__.keys()
    assert teacher_record(network(), data.__class__(data.items, data.labels, ("a", "b", "c", "d"))) is None


def test_table_has_a_row_per_group_with_means_over_runs():
    gains = [{"a": 10.0, "b": 1.4}, {"a": 20.0, "b": 2.4}]
    records = [record("teacher", None, strength=None, accuracy=0.9)]
    records += [record("vid", 5, run, accuracy=0.5 + run / 10, mutual_information=gains[run]) for run in (0, 1)]
    records += [
        record("vid", 5, split="val", accuracy=0.1),
        record("student", 20, strength=None),
        record("student", 5, strength=0.3),
    ]
    lines = format_table(records).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["teacher", "-"], ["vid", "5"], ["student", "5"], ["student", "20"]]
    assert "images per class" in lines[0]
    assert "gain, nats per layer" in lines[0]
    assert "55.00 ± 7.07" in lines[2]
    assert "15, 2" in lines[2]
    assert "0.3" in lines[3]
    assert [group.method for group in group_runs(records)] == ["vid", "student", "student"]
