"""Fits of a run of the command, read back without their network."""

import pytest
import torch

from data.catalogue import load_supervised
from data.errors import UserError
from inference.bnn.bnn import BNN
from inference.bnn.fit import fit_run
from inference.bnn.options import BnnOptions
from inference.bnn.report import final_records
from inference.runs.commands import write_metrics
from inference.runs.folder import RunFolder
from inference.runs.options import options_to_yaml


def test_fits_of_a_run(tmp_path):
    options = BnnOptions(
        data="curve", algorithms="deterministic,fixed-prior", beta=1.0, epochs=2, posteriors=1, hidden="6", noise=0.1,
        device="cpu", progress=False,
    )  # fmt: skip
    data = load_supervised(options.data, None, seed=0)
    run = RunFolder.create(tmp_path / "run", "svi_bnn", options_to_yaml(options))
    fitted, _ = fit_run(options, data, run)
    with pytest.raises(UserError, match="is missing or damaged"):
        BNN.load(run.path, algorithm="fixed-prior")
    records = final_records(fitted, data.train, data.test, None, samples=4, seed=0)
    write_metrics(run, "svi_bnn", options, records)
    for name, fit in fitted.items():
        bnn = BNN.load(run.path, algorithm=name.value)
        again = BNN.load(bnn.save(tmp_path / "bnn.safetensors"))
        for other in (bnn, again):
            predicted, expected = other.predict(data.test.items), BNN.of(fit).predict(data.test.items)
            torch.testing.assert_close(predicted.mean, expected.mean, atol=0, rtol=0)
            assert (other.algorithm, other.beta) == (fit.algorithm, fit.beta)
    for arguments, message in (
        ({}, "has several fits: choose `algorithm` and `beta` from deterministic at β = 0, fixed-prior at β = 1"),
        ({"algorithm": "nuts"}, "has no fit of nuts at β = any"),
        ({"algorithm": "fixed-prior", "beta": 0.5}, "has no fit of fixed-prior at β = 0.5"),
        ({"algorithm": "fixed-prior", "beta": 0}, "has no fit of fixed-prior at β = 0:"),
        ({"beta": torch.ones(3).to_sparse()}, "`beta=a Tensor of shape 3` must be a number, 0 or from 1e-30"),
        ({"algorithm": torch.ones(3)}, "`algorithm` must be a name, not a Tensor"),
    ):
        with pytest.raises(UserError, match=message):
            BNN.load(run.path, **arguments)
    write_metrics(run, "svi_sib", options, records)
    with pytest.raises(UserError, match="is no run of svi_bnn: its command was svi_sib"):
        BNN.load(run.path, algorithm="fixed-prior")
