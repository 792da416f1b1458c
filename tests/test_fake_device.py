"""A training step and a prediction of each system on a GPU that is not there: torch's fake tensors know devices, not numbers.

An operation that mixes devices fails, and so does one that has to read a number back, which on a real device would wait for it.
"""

import warnings
from collections.abc import Iterator

import pytest
import torch
from pyro import poutine
from pyro.distributions import validation_enabled
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart
from guides.tasks.unrolled import UnrolledGuide
from inference.bnn.posterior import WeightPosterior
from inference.bnn.predict import predict_items
from inference.elbo import RateDistortionELBO
from inference.meta.platipus import build_platipus
from inference.meta.settings import MetaSchedule
from inference.meta.training import MetaTraining, every_step
from inference.vid.vid import predict_classes
from models.bayesian.network import BayesianNetwork
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from models.networks.classifiers import build_network
from models.networks.functional import FunctionalNetwork
from models.networks.norms import with_norm
from models.tasks.model import EmpiricalBayesModel
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior
from tests.test_pyro_host import SYSTEMS, build

BACKWARD = "meta" if torch.backends.cuda.is_built() else "cuda"
"""Torch's backward pass looks for the device of a CUDA build, so without one gradients are taken on another fake device."""


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*data pointer of FakeTensor.*")  # torch's own, as it copies a module
        patch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)  # a copied module stays in it
        yield


def build_on(device: str, name: str):
    """Only what is built lies on the device by itself: the programs have to see to their own tensors."""
    with torch.device(device):
        return build(name)


@pytest.mark.parametrize("device", sorted({"cuda", BACKWARD}))
@pytest.mark.parametrize("name", SYSTEMS)
def test_training_step(name, device):
    model, guide, arguments, _ = build_on(device, name)
    objective = RateDistortionELBO(beta=0.1)(model, guide)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 0.01)
    for route in (objective, lambda *arguments: objective.terms(*arguments).loss):
        optimizer.zero_grad()
        loss = route(*arguments)
        if device == BACKWARD:
            loss.backward()
            optimizer.step()
        assert {t.device.type for p in objective.parameters() for t in (loss, p, p.grad) if t is not None} == {device}
    terms = objective.terms(*arguments)
    assert terms.rate.device.type == terms.distortion.device.type == device


class RefuseUploads(TorchDispatchMode):
    """Fails where something is copied from the CPU to another device, which a real one would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            assert {t.device.type for t in (made, *args) if isinstance(t, torch.Tensor)} != {"cpu", made.device.type}, func
        return made


def test_a_meta_training_step_finds_its_weights_on_the_device():
    model, guide, episode, _ = build_on("cuda", "sib")
    training = MetaTraining(RateDistortionELBO(beta=0.1)(model, guide), None, None, MetaSchedule(tasks=8))
    with RefuseUploads():
        loss = every_step(training.objective, training.weights).terms(*episode).loss
    assert loss.device.type == training.weights.device.type == "cuda"


@pytest.mark.parametrize("device", sorted({"cuda", BACKWARD}))
@pytest.mark.parametrize("norm", ["running", "task", "group"])
def test_a_step_of_maml(norm, device):
    """Three steps on the support through a convolutional network, of which one layer is shared; and a prediction. The steps are
    backward passes, too."""
    with torch.device(device):
        network = FunctionalNetwork(
            with_norm(build_network("conv4-2", (1, 16, 16), 3), norm), lambda name: name != "1.0.weight"
        )
        start, likelihood = LearnedStart.from_network(network), CategoricalLikelihood()
        prior = GaussianPrior(start.loc.detach()[0], torch.ones(network.num_weights), learned=False)
        rule = GradientStep(3, network.num_weights, learned=True, per_feature=True, point=True)
        x, y = torch.randn(2, 6, 256), torch.arange(3).repeat(2).expand(2, 6)
    predictor = NetworkPredictor(network, 3, (1, 16, 16))
    options = {"on": "support", "reduction": "mean", "family": "delta", "beta": 0.0}
    steps = 3 if device == BACKWARD else 0
    guide = UnrolledGuide(prior, predictor, start, ExactGradient(likelihood), rule, steps=steps, **options)
    model = EmpiricalBayesModel(prior, predictor, likelihood)
    objective = RateDistortionELBO(beta=0.0)(model, guide)
    loss = objective(x, y, x, y, 3)
    if device == BACKWARD:
        loss.backward()
        assert {p.grad.device.type for p in (start.loc, rule.log_size, network.network[1][0].weight)} == {device}
    assert loss.device.type == predictor(x, guide.unroll(x, y, x, way=3)[-1].loc).device.type == device


@pytest.mark.parametrize("device", sorted({"cuda", BACKWARD}))
def test_a_step_of_platipus(device):
    """A step to the prior and one to the posterior, and two from what is drawn; and a prediction from the prior."""
    with torch.device(device):
        start, likelihood = LearnedStart(torch.randn(3, 5)), CategoricalLikelihood()
        x, y = torch.randn(2, 6, 5), torch.arange(3).repeat(2).expand(2, 6)
        sizes = {"steps": 2, "size": 0.1, "learned": True, "prior_size": 0.1, "scale": 0.1}
        model, guide = build_platipus(LinearPredictor(1.0), start, ExactGradient(likelihood), likelihood, **sizes)
    steps = int(device == BACKWARD)
    for gaussian in (guide.prior, guide.posterior):
        gaussian.descent.steps = steps
    model.adapt.descent.steps = 2 * steps
    objective = RateDistortionELBO(beta=0.1)(model, guide)
    loss = objective(x, y, x, y, 3)
    if device == BACKWARD:
        loss.backward()
        learned = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        assert {p.grad.device.type for p in learned.values()} == {device}
    with validation_enabled(False):  # checks wait; the objective switches them off by itself
        labels = poutine.trace(model.eval()).get_trace(x, y, x, y, 3).nodes["labels"]["fn"]
    assert loss.device.type == labels.logits.device.type == device


@pytest.mark.parametrize("name", SYSTEMS)
def test_prediction(name):
    """One draw of the guide, and the model's labels under it."""
    model, guide, _, seen = build_on("cuda", name)
    with torch.no_grad(), validation_enabled(False):  # a check reads a number back
        guide_trace = poutine.trace(guide.eval()).get_trace(*seen)
        labels = poutine.trace(poutine.replay(model.eval(), trace=guide_trace)).get_trace(*seen).nodes["labels"]
    assert labels["value"].device.type == labels["fn"].logits.device.type == "cuda"


@pytest.mark.parametrize("device", sorted({"cuda", BACKWARD}))
def test_these_tests_notice_what_they_are_for(device):
    there = torch.ones(3, device=device)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
    with pytest.raises(RuntimeError, match="device"):
        there + torch.ones(3)
    with pytest.raises(AssertionError), RefuseUploads():
        torch.ones(3).to(device)


@pytest.mark.parametrize("device", sorted({"cuda", BACKWARD}))
def test_fitted_networks_predict(device):
    """Predictions are on the CPU, and come without a wait for a single number before them."""
    with torch.device(device):
        model = BayesianNetwork(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))).eval()
        values = BayesianNetwork(nn.Linear(4, 2), likelihood=GaussianLikelihood(0.1, outputs=2)).eval()
        student = nn.Linear(4, 3)
        x = torch.randn(6, 4)
    for network in (model, values):
        loc = torch.zeros(2, network.num_weights, device=device)
        for factor in (None, loc[..., None]):
            predicted = predict_items(WeightPosterior(network, loc, loc, factor=factor), x, num_samples=4)
            assert {value.device.type for value in vars(predicted).values() if isinstance(value, torch.Tensor)} == {"cpu"}
    assert predict_classes(student, x).probabilities.device.type == "cpu"
