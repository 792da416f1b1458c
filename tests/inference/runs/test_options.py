"""Options are declared, typed and checked once: the same for the command line, YAML files and Python."""

import copy
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data.errors import UserError
from inference.bnn.options import Algorithm, BnnOptions
from inference.meta.options import SibOptions
from inference.meta.task_options import Protocol
from inference.runs.options import HERE, RunOptions, as_flags, options_from_yaml, options_to_yaml
from inference.runs.training import Loop
from inference.vid.options import Size, VidOptions
from models.likelihoods import LikelihoodName

COMMANDS = (SibOptions, BnnOptions, VidOptions)


@pytest.mark.parametrize("options", COMMANDS)
def test_yaml_reads_back(options):
    first = options()
    assert options_from_yaml(options, options_to_yaml(first), "config.yaml") == first


@pytest.mark.parametrize("options", COMMANDS)
def test_common_options_are_spelled_the_same(options):
    assert issubclass(options, RunOptions)
    assert options(device="cpu", devices=2, progress=False).loop == Loop("cpu", 2, "32-true", False)


def test_text_and_python_values_are_the_same_options():
    text = SibOptions(beta="0.1,1", predictor="cosine,distance", protocols="standard", way="7", inner_lr="1")
    values = SibOptions(beta=[1, 0.1], predictor=("cosine", "distance"), protocols=[Protocol.STANDARD], way=7, inner_lr=1)
    assert text == values
    assert text.betas == (0.1, 1.0)
    assert type(values.inner_lr) is float
    assert type(text.way) is int


def test_values_of_the_other_commands():
    assert BnnOptions(hidden="20,10", likelihood="poisson").widths == (20, 10)
    assert BnnOptions(likelihood="poisson").likelihood is LikelihoodName.POISSON
    assert BnnOptions(algorithms="online").algorithms == (Algorithm.ONLINE,)
    vid = VidOptions(per_class="all,5", labels=2, strength=(3, 1), pairs="1:2")
    assert vid.sizes == [Size(5, 2), Size(None, 2)]
    assert vid.strengths == (1.0, 3.0)
    assert vid.layer_pairs == (("1", "2"),)


def test_run_folders_of_the_first_version_are_read():
    """Their ``config.yaml`` has text or single numbers where there may be several, and no ``precision`` in β-BNN."""
    old = {"way": 5, "beta": "0.1,1", "predictor": "distance,cosine", "protocols": "standard,imbalanced", "rank": None}
    assert options_from_yaml(SibOptions, yaml.safe_dump(old), "x").predictor == ("distance", "cosine")
    assert options_from_yaml(SibOptions, "beta: 0.1", "x").beta == (0.1,)
    assert options_from_yaml(BnnOptions, "{hidden: '100', beta: [0.1, 1.0], likelihood: null}", "x").hidden == (100,)
    old = options_from_yaml(VidOptions, "{methods: 'student,kd', strength: '1', per_class: 5, labels: null}", "x")
    assert old.sizes == [Size(5)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"way": 1}, "`way=1`: must be a whole number, 2 or more"),
        ({"way": 2.5}, "`way=2.5`: must be a whole number, 2 or more"),
        ({"way": None}, "`way=null`: must be"),
        ({"shot": True}, "`shot=True`: must be a whole number, above 0"),
        ({"learning_rate": float("inf")}, "`learning_rate=inf`: must be a number, above 0"),
        ({"seed": 2**31}, "`seed=2147483648`: must be a whole number, at most 2147483647"),
        ({"seed": 10**400}, "must be a whole number, 0 or more"),
        ({"batch": 10**10}, "`batch=10000000000`: must be a whole number, at most 2147483647"),
        ({"learning_rate": 1e300}, "`learning_rate=1e+300`: must be a number, at most 1e+30"),
        ({"learning_rate": 10**400}, "must be a number, above 0"),
        ({"imbalance": 1e308}, "`imbalance=1e+308`: must be a number, at most 1e+30"),
        ({"imbalance": 1e-300}, "`imbalance=1e-300`: must be a number, 1e-30 or more"),
        ({"beta": 1e300}, "1e+300 is not 0, nor from 1e-30 to 1e+30"),
        ({"test_way": 10**10}, "is more than 2147483647"),
        ({"devices": 1000}, "`devices=1000` are more processes than this machine can run side by side"),
        ({"precision": "nonsense"}, "choose 32-true, 64-true, 16-mixed, bf16-mixed, bf16-true"),
        ({"predictor": ""}, "give at least one value"),
        ({"features": ""}, "`features` is empty: give a value, or leave it out"),
        ({"data": ""}, "`data` is empty: give a value, or leave it out"),
        ({"seed": -1}, "`seed=-1`: must be a whole number, 0 or more"),
        ({"rank": -1}, "`rank=-1`: must be a whole number, 0 or more"),
        ({"beta": -1}, "`beta=-1`: -1 is not a finite number, 0 or more"),
        ({"predictor": "quadratic"}, "quadratic is unknown: choose cosine, distance, linear"),
        ({"gradient": "magic"}, "`gradient=magic`: choose equivariant, mlp, exact"),
        ({"progress": "maybe"}, "`progress=maybe`: must be true or false"),
        ({"root": 3}, "`root=3`: must be text"),
        ({"precision": "8-bit"}, "`precision=8-bit`: choose 32-true, 64-true"),
        ({"image_sise": 8}, "no option `image_sise`: did you mean `image_size`?"),
        ({"xyzzy": 8}, "no option `xyzzy`"),
        ({"protocols": "lwof"}, "add `holdout=50`"),
    ],
)
def test_one_line_about_the_argument(given, message):
    with pytest.raises(UserError) as error:
        SibOptions(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)


def test_the_same_line_about_the_flag():
    assert as_flags("`image_size=8`: too small", SibOptions) == "--image-size 8: too small"
    assert as_flags("lower `shot` or `queries`", SibOptions) == "lower --shot or --queries"
    assert as_flags("no option `wya`: did you mean `way`?", SibOptions) == "no option --wya: did you mean --way?"
    assert as_flags("layer `conv` of `1.2`", SibOptions) == "layer `conv` of `1.2`"


def test_other_checks_of_two_options_together():
    with pytest.raises(UserError, match="`epochs=5` must be a multiple of `rounds=3`"):
        BnnOptions(epochs=5)
    with pytest.raises(UserError, match="`labels=9` exceeds the 4 images per class"):
        VidOptions(per_class="4,20", labels=9)


def test_no_gpu():
    with pytest.raises(UserError, match="no GPU"):
        BnnOptions(device="cuda")


def test_options_can_be_changed_and_copied():
    options = SibOptions(beta=0.1)
    assert replace(options, beta="3").beta == (3.0,)
    assert copy.deepcopy(options) == options
    with pytest.raises(UserError, match="`way=1`"):
        replace(options, way=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("way: [", "damaged"), ("wayy: 5", "damaged"), ("way: 1", "`way=1`"), ("", "it holds no names")],
)
def test_damaged_configuration(text, message):
    with pytest.raises(UserError, match=message):
        options_from_yaml(SibOptions, text, "config.yaml")


@pytest.mark.parametrize("options", COMMANDS)
def test_every_option_is_documented(options):
    """Where it is declared, or where what it means there is said."""
    documented = "".join(kind.__doc__ or "" for kind in options.__mro__)
    for name in (field.name for field in fields(options)):
        assert f"        {name}: " in documented, name


def test_numpys_and_torchs_scalars_and_paths_are_taken():
    given = {"seed": np.int64(3), "learning_rate": np.float32(0.5), "mixed": np.bool_(False), "out": Path("runs/x")}
    options = SibOptions(**given, way=torch.tensor(7), beta=np.float64(0.1))
    assert (options.seed, options.learning_rate, options.mixed, options.out, options.way) == (3, 0.5, False, "runs/x", 7)
    assert [type(value) for value in (options.seed, options.learning_rate, options.mixed)] == [int, float, bool]
    assert options_from_yaml(SibOptions, options_to_yaml(options), "it") == options


def test_a_run_of_another_machine_can_be_read_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = "{device: cuda, devices: 4096, seed: 3}"
    with pytest.raises(UserError, match="more processes than this machine"):
        options_from_yaml(BnnOptions, text, "config.yaml")
    read = options_from_yaml(BnnOptions, text, "config.yaml", HERE)
    assert (read.device, read.devices, read.seed) == ("auto", 1, 3)
