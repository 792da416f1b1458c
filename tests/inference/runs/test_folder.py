"""Run folders: what is damaged, or no file at all, is told in one line."""

import os

import pytest

from data.errors import UserError
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_tensors

DAMAGE = {
    "deep": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "of others": b'["a", "b"]',
    "no numbers": b'{"stage": "long"}',
    "truth": b'{"stage": true}',
    "nothing": b"",
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_seconds_are_one_line(content, tmp_path):
    run = RunFolder.create(tmp_path / "run", "test", "")
    run.checkpoints.mkdir()
    run.seconds_file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        run.seconds()


@pytest.mark.parametrize("content", [DAMAGE["deep"], DAMAGE["no text"], DAMAGE["of others"], DAMAGE["nothing"], b"3", b"{"])
def test_damaged_metrics_are_one_line(content, tmp_path):
    run = RunFolder.create(tmp_path / "run", "test", "")
    run.metrics.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.json is (missing or damaged|damaged|of no run)") as error:
        run.results()
    assert "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    run = RunFolder.create(tmp_path / "run", "test", "")
    os.mkfifo(run.metrics)
    with pytest.raises(UserError, match="give a file"):
        run.results()
    os.mkfifo(run.features)
    with pytest.raises(UserError, match="give a file"):
        load_tensors(run.features)
