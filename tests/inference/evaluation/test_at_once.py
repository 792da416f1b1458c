"""All readings of a guide at once: what Pyro's traces say of each, and no short cut where programs say something else."""

import copy

import pyro
import pytest
import torch

from guides.tasks.families import PosteriorParameters
from guides.tasks.gate import PriorGate
from guides.tasks.gradient_networks import ExactGradient, LabelledGradient, MLPGradient
from guides.tasks.laplace import LaplaceGuide
from guides.tasks.ridge import RidgePosteriorGuide
from inference.direct import Hidden
from inference.evaluation import evaluate as module
from inference.evaluation.at_once import predictives_at_once
from inference.evaluation.evaluate import Answers, answers, evaluate, evaluate_readings, readings
from inference.evaluation.predictive import CommonNoise, predictives
from models.likelihoods import CategoricalLikelihood, TemperedCategorical
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import CosinePredictor
from models.tasks.priors import MixturePrior
from tests.guides.tasks.test_unrolled import DIM, WAY, build, episode
from tests.inference.evaluation.test_predictive import hierarchical
from tests.inference.test_direct import by_chance, doubled, hooked, tilted, with_random_part, wrapped

BATCH = 6


class Blurred(EmpiricalBayesModel):
    """Labels of its own, of draws that are tensors."""

    def labels(self, weights, support_y, query_x, way):
        return super().labels(weights.roll(1, -1), support_y, query_x, way)


class Shrunk(CosinePredictor):
    """Outputs of its own, by what they are made of."""

    def linearised(self, features, weights, variance=None):
        outputs, pull_back = super().linearised(features, weights, variance)
        return 0.3 * outputs, lambda cotangent: 0.3 * pull_back(cotangent)


class Rewritten(EmpiricalBayesModel):
    """Sites of its own, of draws that are tensors."""

    def forward(self, *given):
        return super().forward(*given)

    def says_sites(self, *given):
        return True

    def sites(self, drawn, *given):
        return super().sites({name: value.clone() for name, value in drawn.items()}, *given)


def shrunk(model, guide):
    model.predictor = guide.predictor = Shrunk().double()


def outputs_replaced(model, guide):
    usual = model.predictor.outputs
    model.predictor.outputs = lambda features, weights: 0.3 * usual(features, weights)


def forward_replaced(model, guide):
    usual = model.predictor.forward
    model.predictor.forward = lambda features, weights: usual(features, 2 * weights)


def labels_replaced(model, guide):
    usual = model.labels
    model.labels = lambda weights, *given: usual(weights.roll(1, -1), *given)


def predictor_hooked(model, guide):
    model.predictor.register_forward_pre_hook(lambda _, given: (given[0], given[1].roll(1, -1)))


def draws_ignored(model, guide):
    model.predictor.outputs = lambda features, weights: features[..., :WAY]


def steps_averaged(model, guide):
    guide.read = lambda trajectory: PosteriorParameters(
        *(sum(part) / len(trajectory) for part in zip(*trajectory, strict=True))
    )
    guide.after = lambda steps: reading_of(guide, steps)


def reading_of(guide, steps):
    other = copy.copy(guide)
    other.steps = steps
    return other


CASES = {
    "cosine": {},
    "distance, gate": {"predictor": "distance", "gate": PriorGate(DIM, 0.8)},
    "linear, exact gradient": {"predictor": "linear", "gradient": ExactGradient(CategoricalLikelihood())},
    "draws in the steps": {"inner_samples": 2},
    "the paper's, a point": {"family": "delta", "gradient": MLPGradient(WAY)},
    "mixture, anchored": {"prior": MixturePrior, "anchor": LabelledGradient()},
}


def programs(kind=EmpiricalBayesModel, **options):
    model, guide = build(**options)
    return kind(model.prior, model.predictor, TemperedCategorical().double()), guide


def at_once(model, guides, tasks, *, numbers=2**22, **how):
    return list(predictives_at_once(model, guides, tasks, CommonNoise(3), numbers=numbers, batch=BATCH, **how))


@pytest.mark.parametrize("how", [{}, {"num_samples": 5}, {"first": 2, "num_samples": 4}])
@pytest.mark.parametrize("case", CASES)
def test_each_reading_is_what_traces_say(case, how):
    """Under the draws of its tasks' places, an even number of draws and an odd one."""
    model, guide = programs(**CASES[case])
    guides, tasks = list(readings(guide).values()), episode(4)
    traced = predictives(model, guides, tasks, CommonNoise(3), batch=BATCH, **how)
    expected = [Answers.of(one, tasks.query_y) for one in traced]
    for numbers in (2**22, 1):
        found = at_once(model, guides, tasks, numbers=numbers, **how)
        assert len(found) == (1 if numbers > 1 else len(guides)), "as many at a time as memory allows"
        assert {one.num_draws for one in found} == {traced[-1].num_draws}
        each = [answer for one in found for answer in Answers.of(one, tasks.query_y).readings()]
        torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-9)
    alone = at_once(model, guides[-1:], tasks, **how)[0]
    torch.testing.assert_close(next(Answers.of(alone, tasks.query_y).readings()), expected[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "change",
    [shrunk, outputs_replaced, forward_replaced, labels_replaced, predictor_hooked, draws_ignored, steps_averaged],
)
def test_what_is_changed_of_the_programs_is_heeded(change):
    """By their users, in a subclass or in place: the evaluation says what traces say, at once or not."""
    model, guide = programs()
    change(model, guide)
    guides, tasks = list(readings(guide).values()), episode(4)
    assert len(guides) == len(tasks.query_x), "nothing tells steps from tasks but its place"
    how = {"num_samples": 6, "first": 0, "batch": BATCH}
    traced = predictives(model, guides, tasks, CommonNoise(3), **how)
    expected = [Answers.of(one, tasks.query_y) for one in traced]
    torch.testing.assert_close(answers(model, guides, tasks, CommonNoise(3), **how), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [Blurred, Rewritten])
def test_models_that_expect_tensors_are_traced(kind):
    model, guide = programs(kind)
    tasks = episode(2)
    with pytest.raises(Hidden):
        at_once(model, [guide], tasks)
    how = {"num_samples": 6, "first": 0, "batch": BATCH}
    (expected,) = predictives(model, [guide], tasks, CommonNoise(3), **how)
    (found,) = answers(model, [guide], tasks, CommonNoise(3), **how)
    torch.testing.assert_close(found, Answers.of(expected, tasks.query_y), rtol=1e-9, atol=1e-9)


def test_guides_that_are_not_readings_of_one_are_traced():
    model, guide = programs(steps=1)
    _, other = programs(steps=1)
    tasks = episode(2)
    with pytest.raises(Hidden):
        at_once(model, [other.after(0), guide], tasks)
    with pytest.raises(Hidden):
        at_once(model, [torch.nn.Identity(), guide], tasks)
    with pytest.raises(ValueError, match="must be 1 or more"):
        evaluate(model, guide, tasks, tasks=2, seed=1, num_samples=-1)


def test_so_many_readings_are_held_as_memory_allows():
    """Of each 16 deviations and 32 outputs of 3 tasks with 24 queries, 4 classes, 10 features: 11 136 numbers."""
    model, guide = programs()
    tasks, guides = episode(3), list(readings(guide).values())
    sizes = {
        numbers: [one.rate.shape[0] for one in at_once(model, guides, tasks, numbers=numbers)] for numbers in (22271, 22272)
    }
    assert sizes == {22271: [1, 1, 1, 1], 22272: [2, 2]}


def test_evaluation_goes_this_way(monkeypatch):
    model, guide = programs()
    tasks = episode(4)
    expected = evaluate(model, guide, tasks, tasks=4, seed=1)
    monkeypatch.setattr(module, "predictives", None)
    assert evaluate(model, guide, tasks, tasks=4, seed=1) == expected


@pytest.mark.parametrize("change", [tilted, by_chance, with_random_part, hooked, wrapped, doubled])
def test_programs_that_say_something_else_are_traced(change):
    model, guide = programs(steps=1)
    tasks, guides = episode(2), list(readings(guide).values())
    assert at_once(model, guides, tasks)
    with pytest.raises(Hidden):
        at_once(change(model), guides, tasks)


def test_whoever_wants_to_follow_the_programs_can():
    model, guide = programs(steps=1)
    tasks = episode(2)
    with pyro.poutine.scale(scale=3.0), pytest.raises(Hidden):
        at_once(model, [guide], tasks)
    model, guide = hierarchical()
    with pytest.raises(Hidden):
        at_once(model, [guide], tasks)  # hyperparameters are drawn too
    found = answers(model, [guide.after(0), guide], tasks, CommonNoise(3), num_samples=4, first=0, batch=BATCH)
    assert [answer.probabilities.shape for answer in found] == 2 * [(2, 12 * 2, WAY)]
    model, guide = programs()
    correlated = RidgePosteriorGuide(model.prior, 0.5).double()
    with pytest.raises(Hidden):
        at_once(model, [correlated], tasks)
    with pytest.raises(Hidden):
        at_once(model, [guide.after(0), guide.after(2)], tasks)  # not all steps between


def laplace(model, guide):
    likelihood = model.likelihood
    gradient = ExactGradient(likelihood)
    return LaplaceGuide(model.prior, model.predictor, guide.start, gradient, guide.rule, likelihood, steps=2).double()


@pytest.mark.parametrize(
    ("build_guide", "work"),
    [(laplace, "unroll"), (lambda model, guide: RidgePosteriorGuide(model.prior, 0.5).double(), "posterior")],
)
def test_correlated_posteriors_are_not_found_in_vain(build_guide, work, monkeypatch):
    """Once for all readings, by the programs that are traced."""
    model, guide = programs(steps=2)
    guide = build_guide(model, guide)
    found, usual = [], getattr(type(guide), work)
    monkeypatch.setattr(type(guide), work, lambda self, *given, **how: found.append(1) or usual(self, *given, **how))
    evaluate_readings(model, readings(guide), episode(4), tasks=4, seed=1)
    assert len(found) == 1


def test_the_model_is_not_told_the_labels(monkeypatch):
    told, sites = [], EmpiricalBayesModel.sites

    def overheard(self, drawn, *given):
        told.append(given[3])
        return sites(self, drawn, *given)

    monkeypatch.setattr(EmpiricalBayesModel, "sites", overheard)
    model, guide = programs()
    tasks = episode(2)
    at_once(model, [guide], tasks)
    assert [labels.shape for labels in told] == [tasks.query_y.shape]
    assert not told[0].any()


def test_what_is_no_number_is_refused_as_ever():
    model, guide = programs()
    tasks = episode(2)
    model.prior.loc.data[0] = torch.nan
    with pytest.raises(ValueError, match="invalid values"):
        evaluate(model, guide, tasks, tasks=2, seed=1)
    model, guide = programs(steps=0)
    wrong = tasks._replace(query_y=tasks.query_y + WAY)
    with pytest.raises(ValueError, match="support"):
        evaluate(model, guide, wrong, tasks=2, seed=1)


def test_modes_and_random_state_are_left_as_they_were():
    model, guide = programs()
    model.train(), guide.eval()
    state = torch.get_rng_state()
    at_once(model, [guide], episode(2))
    assert model.training
    assert not guide.training
    assert torch.equal(state, torch.get_rng_state())
