"""Traces without handlers: Pyro's own ELBO in value and gradient, and no short cut where programs say something else."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample

from guides.tasks.every_step import EveryStep, step_weights
from guides.tasks.gate import PriorGate
from guides.tasks.gradient_networks import ExactGradient, LabelledGradient, MLPGradient, ResidualGradient
from guides.tasks.unrolled import UnrolledGuide
from inference.direct import direct_traces
from inference.elbo import RateDistortionELBO
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood, TemperedCategorical
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import CosinePredictor, LinearPredictor
from models.tasks.priors import GaussianPrior, MixturePrior
from tests.guides.tasks.test_unrolled import DIM, WAY, build, episode
from tests.inference.evaluation.test_predictive import hierarchical


def classification(tempered: bool = False, **options):
    model, guide = build(**options)
    if tempered:
        model.likelihood = TemperedCategorical().double()
    return model, guide, episode()


def regression():
    """Steps on the support, Gaussian noise, one row of weights."""
    prior, predictor = GaussianPrior(torch.zeros(DIM), torch.ones(DIM)), LinearPredictor()
    _, guide = build(steps=2)
    guide = UnrolledGuide(prior, predictor, guide.start, ResidualGradient(), guide.rule, steps=2, on="support")
    guide.start.forward = lambda x, y, q, rows: (x.mean(1, keepdim=True), x.mean(1, keepdim=True) - 2)
    x, y = torch.randn(3, 9, DIM).double(), torch.randn(3, 9).double()
    model = EmpiricalBayesModel(prior, predictor, GaussianLikelihood(0.5))
    return model.double(), guide.double(), (x, y, x + 1, y, 1)


CASES = {
    "cosine": {},
    "distance, gate": {"predictor": "distance", "gate": PriorGate(DIM, 0.8), "tempered": True},
    "linear, exact gradient": {"predictor": "linear", "gradient": ExactGradient(CategoricalLikelihood())},
    "draws in the steps": {"inner_samples": 2},
    "the paper's, a point": {"family": "delta", "gradient": MLPGradient(WAY)},
    "mixture, anchored": {"prior": MixturePrior, "anchor": LabelledGradient()},
    "regression": None,
}


def gradients(loss, *programs):
    named = {name: p for program in programs for name, p in program.named_parameters()}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_it_is_pyros_elbo_in_value_and_gradient(case, every):
    options = CASES[case]
    model, guide, tasks = regression() if options is None else classification(**options)
    if every:
        weights = step_weights(guide.steps, 0.5).double()
        model, guide = EveryStep(model, weights), EveryStep(guide.at_every_step(), weights)
    losses = []
    for objective in (RateDistortionELBO(beta=1.0)(model, guide), TraceMeanField_ELBO()(model, guide)):
        torch.manual_seed(1)
        losses.append(objective(*tasks))
    assert direct_traces(model, guide, tasks, {}) is not None
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)
    found, expected = (gradients(loss, model, guide) for loss in losses)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert any(gradient is not None for gradient in found.values())


class Tilted(EmpiricalBayesModel):
    """Says something else than its parent."""

    def forward(self, *tasks, **named):
        pyro.sample("tilt", dist.Normal(0.0, 1.0), obs=torch.tensor(2.0))
        return super().forward(*tasks, **named)


class Chance(CosinePredictor):
    """A part that samples by itself, as it runs."""

    def outputs(self, features, weights):
        return super().outputs(features, weights) + pyro.sample("chance", dist.Normal(0.0, 1.0))


class Random(PyroModule):
    """A part with a random number."""

    def __init__(self):
        super().__init__()
        self.number = PyroSample(dist.Normal(0.0, 1.0))


def tilted(model):
    return Tilted(model.prior, model.predictor, model.likelihood)


def by_chance(model):
    return EmpiricalBayesModel(model.prior, Chance().double(), model.likelihood)


def with_random_part(model):
    model.predictor.part = Random()
    return model


def hooked(model):
    model.register_forward_hook(lambda *_: None)
    return model


def wrapped(model):
    model.forward = pyro.poutine.scale(model.forward, scale=2.0)
    return model


class Doubled(EmpiricalBayesModel):
    """Has a call of its own."""

    def __call__(self, *tasks, **named):
        with pyro.poutine.scale(scale=2.0):
            return super().__call__(*tasks, **named)


def doubled(model):
    return Doubled(model.prior, model.predictor, model.likelihood)


@pytest.mark.parametrize("change", [tilted, by_chance, with_random_part, hooked, wrapped, doubled])
@pytest.mark.parametrize("every", [False, True])
def test_programs_that_say_something_else_are_traced(change, every):
    model, guide, tasks = classification(steps=1)
    if every:
        model.num_tasks = None
        weights = step_weights(1, 0.5).double()
        wrap = lambda program: EveryStep(program, weights)  # noqa: E731
        assert direct_traces(wrap(model), wrap(guide.at_every_step()), tasks, {}) is not None
        assert direct_traces(wrap(change(model)), wrap(guide.at_every_step()), tasks, {}) is None
    else:
        assert direct_traces(model, guide, tasks, {}) is not None
        assert direct_traces(change(model), guide, tasks, {}) is None


def test_whoever_wants_to_follow_the_programs_can():
    model, guide, tasks = classification(steps=1)
    objective = RateDistortionELBO(beta=1.0)(model, guide)
    whole = objective(*tasks)
    with pyro.poutine.scale(scale=3.0):
        assert direct_traces(model, guide, tasks, {}) is None
        torch.manual_seed(0)
        scaled = objective(*tasks)
    assert scaled > 2 * whole
    model.num_tasks = guide.num_tasks = 30
    assert direct_traces(model, guide, tasks, {}) is None, "in training tasks stand for all tasks"
    assert direct_traces(model.eval(), guide.eval(), tasks, {}) is not None
    assert direct_traces(model, guide, tasks.unlabelled(), {}) is None, "labels are drawn"
    assert direct_traces(*hierarchical(), tasks.to(dtype=torch.float32), {}) is None, "hyperparameters are drawn too"


def test_a_start_of_no_task_counts_for_each():
    """Pyro expands what a plate holds; a rate that is counted once for all tasks would be too small."""
    model, guide, tasks = classification(steps=0)
    one = torch.randn(1, WAY, DIM).double()
    guide.start.forward = lambda *_: (one, one - 1)
    assert direct_traces(model, guide, tasks, {}) is None
    losses = []
    for objective in (RateDistortionELBO(beta=1.0)(model, guide), TraceMeanField_ELBO()(model, guide)):
        torch.manual_seed(1)
        losses.append(objective(*tasks))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)


def test_labels_of_another_shape_are_refused_as_ever():
    model, guide, tasks = classification(steps=1)
    twice = tasks._replace(query_y=tasks.query_y.expand(2, *tasks.query_y.shape))
    assert direct_traces(model, guide, twice, {}) is None
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        RateDistortionELBO(beta=1.0)(model, guide)(*twice)


def test_nothing_is_unrolled_twice():
    """What a call cannot say is asked before the guide runs."""
    model, guide, tasks = classification(steps=1)
    model.num_tasks, calls = 30, []
    unroll = guide.unroll
    guide.unroll = lambda *args, **kwargs: calls.append(1) or unroll(*args, **kwargs)
    RateDistortionELBO(beta=1.0)(model, guide)(*tasks)
    assert len(calls) == 1
