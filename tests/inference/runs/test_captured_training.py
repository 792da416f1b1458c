"""Whole trainings whose steps are captured, as on a GPU, or noted, as for a compiler, beside those with steps as ever."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.episodes import EpisodeSampler, TaskSpec
from data.items import LabelledItems
from data.mixed import Extent, VariedSampler
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.fitting import Recipe, prepare
from inference.elbo import RateDistortionELBO
from inference.meta.settings import MetaSchedule
from inference.meta.training import MetaTraining
from inference.runs.folder import RunFolder
from inference.runs.graphs import CapturedTerms
from inference.runs.training import Loop, train
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from models.networks.feature_space import FeatureSpace
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import DIM, build
from tests.inference.bnn.conftest import items
from tests.inference.evaluation.test_predictive import hierarchical
from tests.inference.runs.emulation import emulate


@pytest.fixture(params=["graphs", "programs"])
def compare(request, monkeypatch, tmp_path):
    """Train what is made with captures and without, and count the captures."""

    def trained(make, epochs: int, precision: str = "32-true") -> int:
        compiles = request.param == "programs"
        if compiles:
            monkeypatch.setattr(torch, "compile", lambda program, **_: program)
        else:
            emulate(monkeypatch)
        monkeypatch.setattr(CapturedTerms, "worth", 2)
        monkeypatch.setattr(CapturedTerms, "worth_compiling", 2)
        made, capture, states = [], CapturedTerms.capture, []
        monkeypatch.setattr(CapturedTerms, "capture", lambda self, *args: (made.append(self), capture(self, *args))[1])
        for number in range(2):
            torch.manual_seed(1)
            module = make()
            module.captured.failed = number == 1
            loop = Loop("cpu", precision="64-true" if compiles else precision, compile=compiles)
            train(module, loop, RunFolder.create(tmp_path / str(number), "x", ""), "y", epochs=epochs)
            assert module.captured.failed == (number == 1)
            assert not module.captured.captured, "the memory is given back"
            states.append(module.state_dict())
        torch.testing.assert_close(*states, rtol=1e-6, atol=1e-8)
        return len(made)

    return trained


SIB = {
    "default": build,
    "hierarchical": hierarchical,
}


@pytest.mark.parametrize("case", SIB)
def test_sib(case, compare):
    """On tasks of two shapes, with a map of features that is learned."""

    def make() -> MetaTraining:
        bank = gaussian_bank()
        sampler = VariedSampler(lambda spec: EpisodeSampler(bank, spec), TaskSpec(4, 1, 3), Extent(4, 4), Extent(1, 2))
        schedule = MetaSchedule(tasks=48, batch=4, validations=2, validation_tasks=8, seed=4)
        space = FeatureSpace(DIM, DIM, learned=True).fit(bank.items, bank.labels).double() if case == "default" else None
        validation = EpisodeSampler(bank, TaskSpec(4, 1, 3))
        return MetaTraining(RateDistortionELBO(beta=0.5)(*copy.deepcopy(SIB[case]())), sampler, validation, schedule, space)

    assert compare(make, 2, "64-true") == 2


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


BNN = {
    "vanilla": (SimpleNamespace(algorithm=Algorithm.VANILLA, scales=PriorScales.LAYER, posteriors=2), 1),
    "batch norm": (SimpleNamespace(algorithm=Algorithm.VANILLA, network=normalised), 1),
    "mixture": (SimpleNamespace(algorithm=Algorithm.BETA_BNN, scales=PriorScales.LAYER, posteriors=2), 2),
    "online": (SimpleNamespace(algorithm=Algorithm.ONLINE, posteriors=2, noise=0.5), 4),
}


@pytest.mark.parametrize("case", BNN)
def test_bayesian_networks(case, compare, request):
    """With a β that warms up, learned scales and noises; a segment of a mixture has captures of its own."""
    chosen, captures = BNN[case]
    captures += "programs-online" in request.node.name  # one without the rate: the first step of each segment is of β = 0
    noise = getattr(chosen, "noise", None)
    sizes = {"posteriors": getattr(chosen, "posteriors", 1), "rounds": 2, "epochs": 4, "batch": 20}
    epochs = 4 * (sizes["posteriors"] if chosen.algorithm is Algorithm.ONLINE else 1)

    def make():
        data = items(60)
        if noise:
            data = LabelledItems(data.items, data.items.sum(-1).sin(), ())
        likelihood = GaussianLikelihood(noise) if noise else CategoricalLikelihood()
        network = getattr(chosen, "network", lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1 if noise else 3)))
        settings, scales = FitSettings(**sizes, beta_warmup=0.5), getattr(chosen, "scales", PriorScales.FIXED)
        return prepare(network(), data, Recipe(chosen.algorithm, 1.0, likelihood, prior_scales=scales, settings=settings))

    assert compare(make, epochs) == captures
