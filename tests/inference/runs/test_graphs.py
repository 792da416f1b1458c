"""Captured steps: the objective's own terms and gradients, captured anew where they must be, or not at all."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.speed.bnn import SIZES, ours
from data.episodes import Episode
from guides.tasks.every_step import EveryStep, step_weights
from inference.elbo import RateDistortion, RateDistortionELBO, RateDistortionModule
from inference.runs import graphs
from inference.runs.graphs import CapturedTerms, Terms, alone
from tests.guides.tasks.test_unrolled import WAY, build, episode
from tests.inference.test_direct import gradients

CASES = {
    "gaussian": {},
    "draws in the steps": {"inner_samples": 2},
    "distance": {"predictor": "distance"},
    "point": {"family": "delta"},
}


def objective_of(every: bool = True, **options) -> RateDistortionModule:
    """SIB's objective, of every step or of the last alone."""
    model, guide = build(**options)
    if every:
        weights = step_weights(guide.steps, 0.5).double()
        model, guide = EveryStep(model, weights), EveryStep(guide.at_every_step(), weights)
    return RateDistortionELBO(beta=0.5)(model, guide)


def drawn() -> Episode:
    """Tasks that say how many classes they have; without that a step asks the labels, and waits."""
    return episode()._replace(way=WAY)


def numbers(terms: RateDistortion) -> dict[str, torch.Tensor]:
    return {**terms.distortions, **{f"rate of {name}": rate for name, rate in terms.rates.items()}, "loss": terms.loss}


class Recorded(CapturedTerms):
    """Captures nothing and counts how often it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def capture(self, key, objective, args) -> None:
        self.times += 1
        self.captured[key] = Terms(objective, args)


@pytest.fixture
def recorded(monkeypatch) -> Recorded:
    """As if tensors lay on a GPU."""
    monkeypatch.setattr(graphs, "on_gpu", bool)
    return Recorded()


def test_terms_from_tensors_alone_are_the_objectives():
    objective, tasks = objective_of(), drawn()
    terms, tensors = Terms(objective, tasks), [value for value in tasks if isinstance(value, torch.Tensor)]
    torch.manual_seed(0)
    found = terms.read(tensors)
    torch.manual_seed(0)
    expected = objective.terms(*tasks)
    torch.testing.assert_close(numbers(found), numbers(expected), rtol=0, atol=0)
    assert found.beta == 0.5
    assert not any(isinstance(value, torch.Tensor) for value in terms.args)  # the first batch is not kept


def test_nothing_is_captured_on_a_cpu():
    captured, objective, tasks = CapturedTerms(), objective_of(), drawn()
    torch.manual_seed(0)
    found = captured(objective, *tasks)
    torch.manual_seed(0)
    torch.testing.assert_close(numbers(found), numbers(objective.terms(*tasks)), rtol=0, atol=0)
    assert captured.captured == {}


def test_one_capture_for_each_shape_and_each_place_of_the_parameters(recorded):
    objective, tasks = objective_of(), drawn()
    for number, few in ((1, tasks), (1, tasks), (2, tasks.tasks(slice(2))), (2, tasks)):
        recorded(objective, *few)
        assert recorded.times == number
    for number, change in enumerate(
        (
            lambda: objective.eval(),
            lambda: objective.model.program.prior.requires_grad_(False),
            lambda: setattr(objective.guide.program.rule, "log_lr", nn.Parameter(torch.zeros(3).double())),
            recorded.forget,
        ),
        start=3,
    ):
        change()
        for _ in range(2):
            recorded(objective, *tasks)
            assert recorded.times == number
    recorded(objective, *tasks._replace(support_x=tasks.support_x.requires_grad_()))  # of features that are trained
    assert recorded.times == 7


def test_other_steps_are_as_ever(recorded):
    objective, tasks = objective_of(every=False), drawn()
    with torch.no_grad():
        recorded(objective, *tasks)
    objective.guide.capturable = False
    recorded(objective, *tasks)
    assert recorded.times == 0


def test_several_backward_passes_are_not_captured():
    trainers = [SimpleNamespace(world_size=w, accumulate_grad_batches=a) for w, a in ((1, 1), (2, 1), (1, 2))]
    assert [alone(SimpleNamespace(trainer=trainer)) for trainer in trainers] == [True, False, False]


@pytest.mark.gpu
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_graph_gives_the_numbers_of_its_kernels(case, every):
    """On other tasks than were captured, under other seeds, and after the parameters have moved."""
    objective, captured = objective_of(every, **CASES[case]).to("cuda"), CapturedTerms()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 0.01, fused=True)
    for step in range(3):
        torch.manual_seed(10 + step)
        tasks, found = drawn().to("cuda"), []
        tasks = tasks._replace(query_x=tasks.query_x + 0.1 * step)
        for terms in (captured, lambda *args: args[0].terms(*args[1:])):
            torch.manual_seed(step)
            said = terms(objective, *tasks)
            found.append((numbers(said), gradients(said.loss, objective.model, objective.guide)))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
        expected = {name: gradient for name, gradient in found[1][1].items() if gradient is not None}
        torch.testing.assert_close({name: found[0][1][name] for name in expected}, expected, rtol=1e-10, atol=1e-12)
        optimizer.zero_grad()
        captured(objective, *tasks).loss.backward()
        optimizer.step()
    assert len(captured.captured) == 1
    assert not captured.failed


@pytest.mark.gpu
def test_a_bayesian_network_is_captured_too():
    with torch.device("cuda"):
        x, y = torch.randn(32, SIZES[0]), torch.randint(SIZES[-1], (32,))
        loss = ours(x, y, 2).loss
        torch.manual_seed(1)
        first = [loss().item() for _ in range(3)]
        torch.manual_seed(1)
        again = [loss().item() for _ in range(3)]
    assert first[1:] == again[1:]
    assert len(set(first)) == 3  # draws are new in each replay


class Waiting(nn.Module):
    """An objective that reads a number back from the device after it has drawn others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, device="cuda"))
        self.guide = SimpleNamespace(capturable=True)
        self.elbo = SimpleNamespace(beta=1.0)

    def terms(self, x: torch.Tensor) -> RateDistortion:
        noise = torch.randn_like(x)
        scale = float(x.sum())
        return RateDistortion({"labels": (self.weight * x * noise).sum() * scale}, {})


@pytest.mark.gpu
def test_what_waits_for_the_device_runs_as_ever():
    objective, captured, x = Waiting(), CapturedTerms(), torch.ones(3, device="cuda")
    found = []
    for terms in (objective.terms, lambda x: captured(objective, x), lambda x: captured(objective, x)):
        torch.manual_seed(2)
        found.append((terms(x).loss.item(), torch.rand(2, device="cuda").tolist()))
    assert found[0] == found[1] == found[2]
    assert captured.failed
    test_a_graph_gives_the_numbers_of_its_kernels("gaussian", True)  # others are captured as before
