"""What TensorBoard reads back of a run: options beside final scores, pictures, and tags that say the split."""

import json
from dataclasses import fields

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from inference.meta.options import SibOptions
from inference.runs.board import final_scores, write_summary
from inference.runs.folder import RunFolder
from inference.runs.options import RunOptions
from inference.svi_bnn import BnnStudy
from inference.svi_sib import SibStudy
from inference.svi_vid import VidStudy
from tests.inference.runs.test_study import Steps


def events(run):
    """All that was written at the end of ``run``; images are not sampled."""
    return EventAccumulator(str(run.path / "logs" / "summary"), size_guidance={"images": 0}).Reload()


def hyperparameters(log):
    """Name -> value of the options."""
    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_options_scores_and_pictures_are_read_back(tmp_path):
    run = RunFolder(tmp_path)
    plt.imsave(tmp_path / "half.png", np.full((4, 6, 3), 0.5))
    for accuracy in (0.4, 0.5):  # a resumed run ends twice
        write_summary(run, SibOptions(way=7), {"test/mine/accuracy": accuracy}, [tmp_path / "half.png"])
    log = events(run)
    assert [event.value for event in log.Scalars("test/mine/accuracy")] == [0.5]
    known = hyperparameters(log)
    assert (known["way"], known["units"], known["beta"], known["rank"]) == (7.0, "posterior", "0.1,1", "None")
    assert known.keys() == {field.name for field in fields(SibOptions)}
    (image,) = log.Images("pictures/half")
    assert (image.height, image.width) == (4, 6)


def test_every_run_ends_with_a_summary(tmp_path):
    study = Steps(RunOptions(out=str(tmp_path / "run"), progress=False))
    log = events(run := study.run())
    assert log.Tags()["images"] == [f"pictures/{name}" for name in ("first", "second")]
    assert [event.value for event in log.Scalars("test/accuracy")] == [0.5]
    assert json.loads(run.metrics.read_text())["results"] == [{"split": "test", "accuracy": 0.5, "selected": True}]


SIB = {"split": "test", "variant": "distance-beta0.1-k3", "balanced": True, "steps": 3, "trained_steps": 3}
VID = {"split": "test", "method": "vid", "per_class": 5, "labels": None, "run": 1}


@pytest.mark.parametrize(
    ("study", "row", "tag"),
    [
        (SibStudy, SIB, "test/distance-beta0.1-k3/balanced/accuracy"),
        (SibStudy, SIB | {"steps": 1}, None),
        (SibStudy, SIB | {"split": "val"}, None),
        (SibStudy, {"split": "test", "variant": "v", "protocol": "lwof"}, "test/v/lwof/accuracy"),
        (BnnStudy, {"split": "test", "algorithm": "beta-bnn"}, "test/beta-bnn/accuracy"),
        (VidStudy, VID, "test/vid-n5-run1/accuracy"),
        (VidStudy, VID | {"method": "teacher", "per_class": None}, "test/teacher/accuracy"),
    ],
)
def test_tags_say_split_and_whose_score_it_is(study, row, tag):
    made = study(SibOptions()) if study is SibStudy else None
    found = final_scores([(study.who(made, row), row | {"accuracy": 0.5, "nll": None})])
    assert found == ({} if tag is None else {tag: 0.5})
