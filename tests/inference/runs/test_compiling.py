"""Compiled steps, without the compiler: the objective's own terms and gradients, forward and backward as one program."""

import copy
import pickle
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from data.errors import DataWarning, UserError
from guides.mean_field import MeanFieldGuide
from inference.bnn.bnn import BNN
from inference.bnn.options import BnnOptions
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.meta.family_options import MetaOptions
from inference.meta.options import SibOptions
from inference.meta.regression import check_regression
from inference.runs.commands import WHERE
from inference.runs.compiling import JointProgram, Unasked
from inference.runs.graphs import CapturedTerms, first_line
from inference.runs.options import HERE, options_from_yaml, options_to_yaml
from inference.vid.options import VidOptions
from models.bayesian.network import BayesianNetwork
from models.networks.classifiers import mlp
from tests.inference.runs.test_graphs import CASES, Tracking, check_a_graph, drawn, numbers, objective_of


@pytest.fixture
def at_once(monkeypatch) -> None:
    """Programs are made of shapes that come for the first time."""
    monkeypatch.setattr(CapturedTerms, "worth_compiling", 1)


@pytest.fixture
def noted(monkeypatch, at_once) -> None:
    """The operations run as they were noted, without torch's compiler."""
    monkeypatch.setattr(torch, "compile", lambda program, **_: program)


def network(posteriors: int = 1, beta: float = 0.5) -> RateDistortionModule:
    """A Bayesian network's objective."""
    torch.manual_seed(4)
    model = BayesianNetwork(torch.nn.Sequential(*mlp(3, (4,), 2)), num_data=30, posteriors=posteriors).double()
    return RateDistortionELBO(beta=beta)(model, MeanFieldGuide(model.initial_weights(posteriors), 0.1))


def items() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(18.0).view(6, 3).sin().double(), torch.tensor([0, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_noted_operations_give_the_numbers_and_gradients_of_the_step(case, every, noted):
    check_a_graph(objective_of(every, **CASES[case]), "cpu", compiles=True)


@pytest.mark.parametrize("posteriors", [1, 2])
def test_the_rate_may_have_another_weight_in_each_step(posteriors, noted):
    objective, (x, y), captured = network(posteriors), items(), CapturedTerms(compiles=True)
    if posteriors > 1:
        x, y = x.expand(posteriors, -1, -1), y.expand(posteriors, -1)
    for beta in (0.0, 0.2, 0.7):
        found = []
        for terms in (lambda beta=beta: captured(objective, x, y, beta=beta), lambda: objective.terms(x, y)):
            torch.manual_seed(3)
            said = terms()
            loss = 3 * (said.distortion + beta * said.rate if beta else said.distortion)
            trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
            found.append((numbers(said), torch.autograd.grad(loss, trained)))
        torch.testing.assert_close(*found)
    assert len(captured.captured) == 2  # one without the rate's gradient
    assert not captured.failed


def test_a_part_of_the_objective_has_no_gradient_of_its_own(noted):
    objective, captured = network(), CapturedTerms(compiles=True)
    for pulled in (lambda terms: terms.distortion, lambda terms: terms.rate, lambda terms: terms.distortion + terms.rate):
        with pytest.raises(RuntimeError, match="not of its parts"):
            pulled(captured(objective, *items())).backward()
    loss = captured(objective, *items()).loss / 7  # whatever is the same for all
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gradient once"):
        loss.backward()
    with pytest.raises(RuntimeError, match="not of its parts"):
        captured(objective, *items(), beta=0.0).loss.backward()


@pytest.mark.parametrize("where", ["number", "gradient"])
def test_what_was_compiled_wrongly_is_not_used(where, at_once, monkeypatch):
    def wrong(program, **_):
        def compiled(*given):
            found, gradients = program(*given)
            if where == "number":
                return [2 * found[0], *found[1:]], gradients
            return found, [2 * gradients[0], *gradients[1:]]

        return compiled

    monkeypatch.setattr(torch, "compile", wrong)
    objective, captured = network(), CapturedTerms(compiles=True)
    with pytest.warns(DataWarning, match="not compiled: what was compiled computes something else"):
        captured(objective, *items())
    for terms in (captured, lambda objective, *args: objective.terms(*args)):
        torch.manual_seed(0)
        terms(objective, *items()).loss.backward()
    assert captured.failed


@pytest.mark.parametrize("kind", [RuntimeError, FileNotFoundError, ValueError])
def test_where_nothing_can_be_compiled_it_is_said_once(kind, at_once, monkeypatch):
    def compile(program, **_):
        raise kind("no compiler\nand why")

    monkeypatch.setattr(torch, "compile", compile)
    objective, captured = network(), CapturedTerms(compiles=True)
    with pytest.warns(DataWarning, match="^training steps are not compiled: no compiler$") as said:
        [captured(objective, *items()).loss.backward() for _ in range(3)]
    assert len(said) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_what_is_done_once_to_note_it_leaves_no_trace(waits, noted):
    found = []
    for captured in (CapturedTerms(compiles=True), lambda objective, x: objective.terms(x)):
        objective, seen = Tracking(waits), []
        torch.manual_seed(1)
        with warnings.catch_warnings(action="ignore"):
            for _ in range(3):
                x = torch.randn(5, 3).requires_grad_()
                loss = captured(objective, x).loss
                seen.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
        found.append((seen, dict(objective.norm.named_buffers())))
        if isinstance(captured, CapturedTerms):
            assert (captured.failed, len(captured.captured)) == (waits, not waits)
    torch.testing.assert_close(*found)


def test_an_objective_without_parameters(noted):
    captured, objective = CapturedTerms(compiles=True), network().requires_grad_(False)
    said = []
    for terms in (captured, lambda objective, *args: objective.terms(*args)):
        torch.manual_seed(3)
        said.append(terms(objective, *items()).loss)
    torch.testing.assert_close(*said)
    assert len(captured.captured) == 1


def test_nothing_is_compiled_before_it_is_worth_it_nor_where_it_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda program, **_: program)
    objective, asked, other = network(), CapturedTerms(compiles=True), CapturedTerms()
    for number in range(1, asked.worth_compiling + 1):
        for captured in (asked, other):
            captured(objective, *items())
        assert len(asked.captured) == (number == asked.worth_compiling)
    assert not other.captured


class Pair(nn.Module):
    """Two parameters with one gradient, and one whose gradient is the same number all over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.arange(3.0) + start) for start in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.a + self.b - x).square().sum(), self.c.sum()


def test_gradients_that_share_memory_are_each_their_own(noted):
    found = []
    for compiled in (False, True):
        module, x = Pair(), torch.tensor([1.0, 5.0, 2.0])
        numbers = JointProgram(module, (x,), 2)((x,), [1.0, 1.0]) if compiled else module(x)
        (torch.stack(numbers).sum() / 4).backward()
        found.append([parameter.grad for parameter in module.parameters()])
    torch.testing.assert_close(*found, rtol=0, atol=0)


class Reading(nn.Module):
    """A network whose Python reads numbers, as no program can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * sum(x.detach().flatten().tolist())


def test_what_python_reads_is_found_out_with_the_next_batch(noted):
    model = BayesianNetwork(Reading(), num_data=30).double()
    objective = RateDistortionELBO(beta=0.5)(model, MeanFieldGuide(model.initial_weights(1), 0.1))
    captured, (x, y) = CapturedTerms(compiles=True), items()
    captured(objective, x, y)
    assert captured.captured
    with pytest.warns(DataWarning, match="computes something else"):
        said = captured(objective, x.flip(0) * 2, y)
    assert captured.failed
    torch.manual_seed(0)
    said = captured(objective, x + 1, y).loss
    torch.manual_seed(0)
    torch.testing.assert_close(said, objective.terms(x + 1, y).loss)


@pytest.mark.parametrize(
    "one_hot",
    [
        lambda labels: nn.functional.one_hot(labels, 2),
        lambda labels: nn.functional.one_hot(labels, num_classes=2),
    ],
)
def test_classes_are_counted_without_asking_the_labels(one_hot):
    _, labels = items()
    with Unasked():
        noted = make_fx(one_hot)(labels)
    torch.testing.assert_close(noted(labels), nn.functional.one_hot(labels, 2), rtol=0, atol=0)
    with Unasked(), pytest.raises(RuntimeError):
        make_fx(nn.functional.one_hot)(labels)  # how many classes there are is read back


def test_tensors_that_lie_otherwise_have_a_program_of_their_own(noted):
    objective, captured, (x, y) = network(), CapturedTerms(compiles=True), items()
    for number, given in enumerate((x, x.T.contiguous().T, x), start=1):
        captured(objective, given, y)
        assert len(captured.captured) == min(number, 2)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, y):
        return ((self.weight * x * y.square()).sum(),)


def test_a_tensor_in_two_places_is_not_taken_for_one(noted):
    """As the support is that is the queries, too."""
    module, x, y = Product(), torch.arange(3.0), torch.tensor([2.0, 1.0, 3.0])
    program = JointProgram(module, [x, x], 1)
    program.prove([x, x], [1.0])
    torch.testing.assert_close(program([x, y], [1.0]), module(x, y))


def test_how_the_compiler_is_called(at_once, monkeypatch):
    """Whole, for these shapes alone, and with torch's own random numbers: others are not those of the step."""
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda program, **how: asked.update(how) or program)
    CapturedTerms(compiles=True)(network(), *items())
    assert asked == {"fullgraph": True, "dynamic": False, "options": {"fallback_random": True, "cpp_wrapper": True}}


def test_half_precision_is_not_compiled(noted):
    objective, captured = network(), CapturedTerms(compiles=True)
    with torch.autocast("cpu", torch.bfloat16):
        captured(objective, *items())
    assert not captured.captured


def test_copies_have_no_programs(noted):
    captured = CapturedTerms(compiles=True)
    captured(objective_of(every=False), *drawn())
    assert captured.captured
    assert not copy.deepcopy(captured).captured
    assert not pickle.loads(pickle.dumps(captured)).captured


@pytest.mark.parametrize("options", [SibOptions, BnnOptions, lambda **given: MetaOptions(methods="sib", **given)])
def test_a_run_says_whether_its_steps_are_compiled(options, monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    assert options(compile=True).loop.compile
    assert not options().loop.compile
    with pytest.raises(UserError, match=r"^`compile=true` is for steps of one process: leave it or `devices` out$"):
        options(compile=True, devices=2)
    monkeypatch.setenv("CXX", "c-plus-plus")
    with pytest.raises(UserError, match=r"^`compile=true` needs a C\+\+ compiler and c-plus-plus is not here: install it"):
        options(compile=True, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert options(compile=True, device="cuda").loop.compile  # graphs need none


def test_compiling_is_refused_where_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    with pytest.raises(UserError, match="add sib to `methods`"):
        MetaOptions(methods="prototypical", compile=True)
    with pytest.raises(UserError, match="no use for `compile=true`"):
        check_regression(SibOptions(data="linear", compile=True))
    with pytest.raises(UserError, match="for posteriors that are trained"):
        BnnOptions(algorithms="deterministic,laplace,nuts", noise=1.0, compile=True)
    with pytest.raises(UserError, match="compile"):
        BNN.fit(torch.nn.Linear(1, 1), *items(), compile="perhaps")


def test_a_run_that_was_compiled_is_read_where_there_is_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    text = options_to_yaml(BnnOptions(compile=True))
    monkeypatch.setenv("CXX", "c-plus-plus")
    assert not options_from_yaml(BnnOptions, text, "it", HERE).compile
    assert not hasattr(options_from_yaml(VidOptions, options_to_yaml(VidOptions()), "it", HERE), "compile")
    assert "compile" in WHERE  # beside `--resume`


def test_bnn_fit_compiles(monkeypatch, noted):
    monkeypatch.setenv("CXX", sys.executable)
    made, capture = [], CapturedTerms.capture
    monkeypatch.setattr(CapturedTerms, "capture", lambda self, *args: (made.append(self.compiles), capture(self, *args)))
    x, y = items()
    net = torch.nn.Sequential(*mlp(3, (4,), 2))
    fits = [BNN.fit(net, x.float(), y, epochs=2, batch=3, device="cpu", compile=compile) for compile in (False, True)]
    assert made
    assert all(made)
    found = [fit.posterior.loc for fit in fits]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_the_warning_of_an_error_without_words():
    assert [first_line(error) for error in (RuntimeError(), RuntimeError("\n a \n b"))] == ["RuntimeError", "a"]
