"""The command line: the lines it answers bad options with, YAML files, and exit codes."""

import errno
import io
import json
import os
import signal
import sys
import warnings
from dataclasses import dataclass

import pytest

from data.errors import DataWarning, UserError
from inference.bnn.options import BnnOptions
from inference.diagnose import DiagnoseOptions
from inference.meta.options import SibOptions
from inference.runs import commands
from inference.runs.commands import (
    OptionParser,
    flags_in_errors,
    given_value,
    notes,
    read_command,
    run_command,
    run_process,
    write_metrics,
)
from inference.runs.folder import RunFolder
from inference.runs.options import RunOptions
from inference.vid.options import VidOptions


def read(*words, options=SibOptions):
    """Options of the command line, with errors as a command shows them."""
    return flags_in_errors(options)(lambda given: read_command(options, "svi_sib", "…", given)[0])(words)


def test_dashes_or_underscores_and_several_values():
    options = read("--image-size=16", "--inner_lr", "0.5", "--beta", "1,0.1", "--imbalance", "2", "--progress", "false")
    assert options == SibOptions(image_size=16, inner_lr=0.5, beta=(0.1, 1), imbalance=2, progress=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "-1"], "--image-size -1: must be a whole number, above 0"),
        (["--image_size=x"], "--image-size x: must be a whole number, above 0"),
        (["--inner-lr", "0"], "--inner-lr 0: must be a number, above 0"),
        (["--beta", "0.1,lots"], "--beta 0.1,lots: lots is not a finite number, 0 or more"),
        (["--gradient", "magic"], "--gradient magic: choose equivariant, mlp, exact"),
        (["--gradient", "Equivarient"], "--gradient Equivarient: choose equivariant, mlp, exact; did you mean equivariant?"),
        (
            ["--predictor", "distance,cosin"],
            "choose cosine, distance, linear, or module.Class of a Predictor of your own; did you mean cosine?",
        ),
        (["--protocols", "imbalance"], "choose standard, imbalanced, lwof; did you mean imbalanced?"),
        (["--resme", "x"], "no option --resme: did you mean --resume?"),
        (["--image-sise", "8"], "no option --image-sise: did you mean --image-size?"),
        (["--wa", "8"], "no option --wa: did you mean --way?"),
        (["--bata", "1"], "no option --bata: did you mean --beta?"),
        (["--protocols", "lwof"], "add --holdout 50"),
        (["--rotations", "true"], "--rotations True is about Omniglot: choose --data omniglot, or leave it out"),
        (["--data", "omniglot", "--features", "x", "--test-alphabets", "Greek"], "--test-alphabets Greek is about images, and"),
        (["--within-alphabet", "true"], "--within-alphabet true: choose none, train, test, all"),
        (["--way"], "--way: expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml: No such file or directory"),
        (["--resume", "/no/such/run"], "/no/such/run is not a run folder"),
    ],
)
def test_one_line_about_the_flag(words, message):
    with pytest.raises(UserError) as error:
        read(*words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "`" not in str(error.value)


def test_names_of_alphabets_keep_their_brackets():
    names = ("Japanese_(katakana)", "Greek")
    for given in (["Japanese_(katakana), Greek"], ["Japanese_(katakana)", "Greek"], ["Greek,Japanese_(katakana)"]):
        options = read("--data", "omniglot", "--test-alphabets", *given)
        assert set(options.test_alphabets) == set(names)
        assert options.omniglot_choices() == {"test_alphabets": options.test_alphabets}
    assert SibOptions(data="omniglot", val_alphabets=list(names)).val_alphabets == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("way: 1", "--way 1: must be a whole number, 2 or more"),
        ("wayy: 1", "no option --wayy: did you mean --way?"),
        ("steps: null", "--steps null: must be a whole number, 0 or more"),
        ("beta: [1, -1]", "-1 is not a finite number"),
        ("way: [", "config"),
    ],
)
def test_one_line_about_a_file_of_options(content, message, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read("--config", str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [SibOptions, BnnOptions, VidOptions])
def test_nothing_given_is_the_defaults(options):
    assert repr(read(options=options)) == repr(options())


def test_flags_override_a_file_of_options(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("{way: 7, beta: [1, 0.1], protocols: standard}")
    assert read("--config", str(file), "--way", "3") == SibOptions(way=3, beta="0.1,1", protocols="standard")


def test_resume_reads_the_options_of_the_folder(tmp_path):
    (tmp_path / "config.yaml").write_text("{way: 7, beta: 0.1}")
    options, run = read_command(SibOptions, "svi_sib", "…", ["--resume", str(tmp_path)])
    assert options == SibOptions(way=7, beta=0.1)
    assert run.path == tmp_path


def test_a_resumed_run_may_compute_elsewhere(tmp_path, monkeypatch):
    """Also where its own number of processes is too large for this machine."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    (tmp_path / "config.yaml").write_text("{way: 7, devices: 64, progress: true}")
    options, _ = read_command(SibOptions, "svi_sib", "…", ["--resume", str(tmp_path), "--devices", "2", "--progress", "false"])
    assert options == SibOptions(way=7, devices=2, progress=False)
    with pytest.raises(UserError, match="`devices=64` are more processes than this machine can run side by side"):
        read_command(SibOptions, "svi_sib", "…", ["--resume", str(tmp_path)])


def test_options_are_printed_as_a_file_that_is_read_back(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        read("--likelihood", "poisson", "--prior", "scale-mixture", "--print-config", options=BnnOptions)
    assert ended.value.code == 0
    (file := tmp_path / "options.yaml").write_text(capsys.readouterr().out)
    assert "prior: scale-mixture" in file.read_text()
    assert read("--config", str(file), options=BnnOptions) == BnnOptions(likelihood="poisson", prior="scale-mixture")


ODD = {
    "latin-1": (lambda file: file.write_bytes(b"data: \xe9"), "is no text in UTF-8"),
    "nulls": (lambda file: file.write_bytes(b"way: 5\0"), "null bytes"),
    "a folder": (lambda file: file.mkdir(), "give a file"),
    "a pipe": (lambda file: os.mkfifo(file), "give a file"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "give a file"),
}


@pytest.mark.parametrize(("make", "said"), ODD.values(), ids=list(ODD))
def test_a_configuration_that_is_no_text_is_one_line(make, said, tmp_path):
    make(file := tmp_path / "odd.yaml")
    with pytest.raises(UserError, match=said) as raised:
        read("--config", str(file))
    assert "\n" not in str(raised.value)
    assert given_value(SibOptions, "data", ["--config", str(file)]) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"power": 10**400}, "--power 1000.*: must be a number, above 0"),
        ({"seed": -(10**400)}, "--seed -1000.*: must be a whole number, 0 or more"),
        ({"data": {"": "a"}}, "--data .*: must be text"),
        ({"data": ["glyphs"]}, "--data .*: must be text"),
        ({"resume": ["runs/x"]}, "--resume "),
    ],
)
def test_a_configuration_with_values_of_another_kind_is_one_line(content, said, tmp_path):
    (file := tmp_path / "odd.yaml").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as raised:
        read("--config", str(file))
    assert "\n" not in str(raised.value)
    assert given_value(SibOptions, "data", ["--config", str(file)]) is None


def test_a_missing_option_is_one_line():
    """Also where nothing at all was typed."""
    with pytest.raises(UserError, match="`run` must be given"):
        OptionParser(DiagnoseOptions, "diagnose", "…").parse_args([])


def test_exit_codes(capsys):
    def fail(error):
        def main(arguments):
            raise error

        return main

    run_command(lambda arguments: None)
    for error, code, text in (
        (UserError("wrong"), 2, "error: wrong"),
        (KeyboardInterrupt(), 130, "interrupted: nothing is left behind"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            run_command(fail(error))
        assert exit_info.value.code == code
        assert text in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        run_command(fail(RuntimeError("a fault of ours keeps its traceback")))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_in_an_encoding_without_beta_is_no_traceback(encoding, monkeypatch):
    """As in the C locale; and a file name that is no text."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    usual = signal.getsignal(signal.SIGINT)

    def main(_):
        print("β = 1")
        raise UserError("no file β\udcff.png")

    try:
        run_process(main)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert ended == [2]
    assert [stream.buffer.getvalue() for stream in streams] == [b"\\u03b2 = 1\n", b"error: no file \\u03b2\\udcff.png\n"]


def test_very_long_errors_lose_their_middle(capsys):
    def main(_):
        raise UserError(f"{'d/' * 3000} is no folder")

    with pytest.raises(SystemExit):
        run_command(main)
    said = capsys.readouterr().err
    assert said.startswith("error: d/d/")
    assert said.endswith("d/ is no folder\n")
    assert len(said) < 1100


def test_metrics_name_the_data_set(tmp_path):
    run = RunFolder(tmp_path)
    write_metrics(run, "svi_sib", RunOptions(), [])
    assert json.loads(run.metrics.read_text())["dataset"] == "glyphs"
    write_metrics(run, "svi_sib", RunOptions(), [], dataset="birds")
    assert json.loads(run.metrics.read_text())["dataset"] == "birds"


def test_a_command_of_ones_own():
    @dataclass(frozen=True, kw_only=True)
    class Own(RunOptions):
        """Mine.

        Args:
            temperature: of what.
        """

        temperature: float = 1.0

    assert read("--temperature", "3", options=Own).temperature == 3.0
    with pytest.raises(UserError, match="--temperature hot: must be a number"):
        read("--temperature", "hot", options=Own)


def test_warnings_about_data_are_one_plain_line_each_once(capsys):
    with notes():
        for _ in range(3):
            warnings.warn("few images", DataWarning, stacklevel=1)
    assert capsys.readouterr().out == "note: few images\n"


@pytest.mark.parametrize(("error", "status"), [(None, 0), (UserError("no such thing"), 2), (SystemExit(0), 0)])
def test_a_process_ends_at_once_but_for_what_was_left_to_its_end(error, status, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(commands.atexit, "_run_exitfuncs", lambda: ended.append("registered"))
    monkeypatch.setattr(commands.os, "_exit", ended.append)

    def main(arguments):
        if error is not None:
            raise error

    commands.run_process(main)
    assert ended == ["registered", status]
    assert capsys.readouterr().err == ("error: no such thing\n" if status else "")


def test_one_option_is_found_wherever_it_stands_before_any_is_checked(tmp_path):
    config, run = tmp_path / "mine.yaml", RunFolder.create(tmp_path / "run", "svi_sib", "data: letters\n")
    config.write_text("data: omniglot\nway: none at all\n")
    cases = {
        "glyphs": ["--way=nothing", "--data", "glyphs"],
        "folder": ["--config", str(config), "--data=folder"],
        "omniglot": ["--config", str(config)],
        "letters": ["--resume", str(run.path)],
        None: ["--way", "5"],
    }
    for expected, words in cases.items():
        assert given_value(SibOptions, "data", words) == expected
    assert given_value(SibOptions, "data", ["--resume", "/no/such/run"]) is None, "said elsewhere"


def test_output_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    """As where it goes to a full disk."""

    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    assert commands.write_out(0) == 2
    assert capsys.readouterr().err == "error: cannot write to standard output: No space left on device\n"
    assert commands.write_out(130) == 130  # has said its line
    assert not capsys.readouterr().err
