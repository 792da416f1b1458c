"""Captured steps: the objective's own terms and gradients, captured anew where they must be, or not at all."""

import contextlib
import copy
import gc
import pickle
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
from tests.inference.runs.emulation import emulate
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
    """Captures nothing, at once, and counts how often it was asked to."""

    worth = 1

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def capture(self, key, objective, args, beta) -> None:
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
    found = terms.read(tensors, 0.5)
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
            lambda: objective.guide.program.rule.eval(),
            lambda: setattr(objective.guide, "weights", objective.guide.weights.clone()),
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
    assert recorded.times == 8


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


def test_what_is_no_plain_value_is_not_captured(recorded):
    objective = SimpleNamespace(guide=SimpleNamespace(capturable=True), terms=lambda *args: args)
    x = torch.ones(2)
    for other in ([1], {"way": 2}, (x,), SimpleNamespace()):
        assert recorded(objective, x, other) == (x, other)
    assert recorded.times == 0


@pytest.fixture
def at_once(monkeypatch) -> None:
    """Shapes are captured when they come for the first time."""
    monkeypatch.setattr(CapturedTerms, "worth", 1)


@pytest.fixture
def emulated(monkeypatch, at_once) -> None:
    """Graphs on a CPU, of shapes that come for the first time."""
    emulate(monkeypatch)


def check_a_graph(objective: RateDistortionModule, device: str, compiles: bool = False, rounding: float = 1e-12) -> None:
    """The numbers of its kernels, on other tasks than were captured, under other seeds, and after the parameters have moved."""
    captured, parameters = CapturedTerms(compiles=compiles), [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 0.01, fused=True)
    for step in range(3):
        torch.manual_seed(10 + step)
        tasks, found = drawn().to(device), []
        tasks = tasks._replace(query_x=tasks.query_x + 0.1 * step)
        for terms in (captured, lambda *args: args[0].terms(*args[1:])):
            torch.manual_seed(step)
            said = terms(objective, *tasks)
            found.append((numbers(said), gradients(said.loss, objective.model, objective.guide), torch.rand(2, device=device)))
        torch.testing.assert_close(found[0][::2], found[1][::2], rtol=rounding, atol=rounding)
        expected = {name: gradient for name, gradient in found[1][1].items() if gradient is not None}
        torch.testing.assert_close({name: found[0][1][name] for name in expected}, expected, rtol=100 * rounding, atol=rounding)
        optimizer.zero_grad()
        captured(objective, *tasks).loss.backward()
        optimizer.step()
    assert len(captured.captured) == 1
    assert not captured.failed


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_an_emulated_graph_gives_the_numbers_of_its_kernels(case, every, emulated):
    check_a_graph(objective_of(every, **CASES[case]), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_graph_gives_the_numbers_of_its_kernels(case, every, at_once):
    check_a_graph(objective_of(every, **CASES[case]).to("cuda"), "cuda")


def test_a_shape_is_captured_when_it_has_come_often_enough(monkeypatch):
    emulate(monkeypatch)
    captured, objective, tasks = CapturedTerms(), objective_of(every=False), drawn()
    for number in range(1, 8):
        captured(objective, *tasks)
        captured(objective, *tasks.tasks(slice(2))) if number == 1 else None
        assert len(captured.captured) == (number >= captured.worth)


def test_what_is_forgotten_is_captured_again_and_copies_have_no_graphs(emulated):
    captured, objective, tasks = CapturedTerms(), objective_of(every=False), drawn()
    for _ in range(2):
        captured(objective, *tasks).loss.backward()  # parameters keep the gradients, and these the memory of the graph
        assert len(captured.captured) == 1
        assert not copy.deepcopy(captured).captured
        assert not pickle.loads(pickle.dumps(captured)).captured
        captured.forget()
        assert not captured.captured
    assert not captured.failed


def test_no_graph_ends_with_the_garbage_while_another_is_captured(emulated, monkeypatch):
    old, objective, tasks = SimpleNamespace(captured=CapturedTerms()), objective_of(every=False), drawn()
    old.captured(objective, *tasks)
    old.itself, capture = old, torch.cuda.graph

    @contextlib.contextmanager
    def while_memory_is_short(graph, **options):
        threshold = gc.get_threshold()
        with capture(graph, **options):
            gc.set_threshold(1)
            yield
            gc.set_threshold(*threshold)

    monkeypatch.setattr(torch.cuda, "graph", while_memory_is_short)
    del old
    captured = CapturedTerms()
    captured(objective, *tasks)
    assert not captured.failed
    assert gc.isenabled()


class Tracking(nn.Module):
    """An objective that keeps statistics of what it sees; one that ``waits`` reads a number back, too."""

    def __init__(self, waits: bool) -> None:
        super().__init__()
        self.norm, self.waits = nn.BatchNorm1d(3), waits
        self.guide, self.elbo = SimpleNamespace(capturable=True), SimpleNamespace(beta=1.0)

    def terms(self, x: torch.Tensor, y: torch.Tensor | None = None) -> RateDistortion:
        value = (self.norm(x) * torch.randn_like(x)).sum()
        return RateDistortion({"labels": value * float(x.sum()) if self.waits else value}, {})


@pytest.mark.parametrize("waits", [False, True])
def test_rehearsals_leave_no_trace(waits, emulated):
    found = []
    for captured in (CapturedTerms(), lambda objective, x: objective.terms(x)):
        objective, numbers = Tracking(waits), []
        torch.manual_seed(1)
        for _ in range(3):
            numbers.append(captured(objective, torch.randn(5, 3)).loss.detach())
        found.append((torch.stack(numbers), dict(objective.norm.named_buffers())))
        if isinstance(captured, CapturedTerms):
            assert (captured.failed, len(captured.captured)) == (waits, not waits)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_an_objective_without_parameters(emulated):
    captured, objective = CapturedTerms(), objective_of(every=False).requires_grad_(False)
    for tasks in (drawn(), drawn()._replace(query_x=drawn().query_x + 1)):
        said = []
        for terms in (captured, lambda objective, *tasks: objective.terms(*tasks)):
            torch.manual_seed(3)
            said.append(terms(objective, *tasks).loss)
        torch.testing.assert_close(*said)
    assert len(captured.captured) == 1


def test_an_argument_may_be_left_out_and_items_may_be_trained(emulated):
    captured, objective, found = CapturedTerms(), Tracking(waits=False), []
    for terms in (captured, lambda objective, *args: objective.terms(*args)):
        x = torch.arange(15.0).view(5, 3).sin().requires_grad_()
        torch.manual_seed(2)
        terms(objective, x, None).loss.backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)
    assert len(captured.captured) == 1


def test_a_number_read_back_is_no_error_and_nothing_is_captured_afterwards(emulated):
    captured, waiting = CapturedTerms(), Tracking(waits=True)
    captured(Tracking(waits=False), torch.ones(5, 3))
    for _ in range(2):
        captured(waiting, torch.ones(5, 3))
        assert captured.failed
        assert not captured.captured
    captured(Tracking(waits=False), torch.ones(5, 3))
    assert not captured.captured


@pytest.mark.gpu
def test_a_bayesian_network_is_captured_too(at_once):
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
def test_what_waits_for_the_device_runs_as_ever(at_once):
    objective, captured, x = Waiting(), CapturedTerms(), torch.ones(3, device="cuda")
    found = []
    for terms in (objective.terms, lambda x: captured(objective, x), lambda x: captured(objective, x)):
        torch.manual_seed(2)
        found.append((terms(x).loss.item(), torch.rand(2, device="cuda").tolist()))
    assert found[0] == found[1] == found[2]
    assert captured.failed
    check_a_graph(objective_of().to("cuda"), "cuda")  # others are captured as before
