"""What holds of every method: tasks stay apart, labels of queries are hidden, all that is learned gets a gradient."""

from functools import cache

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.semi_supervised import partly_unlabelled
from inference.diagnostics.dependence import is_transductive
from inference.evaluation.predictive import predictive
from inference.meta.choices import split_choice
from inference.meta.learner import build_objective
from inference.meta.methods import METHODS
from inference.meta.settings import NETWORK, GuideSettings, VariantSettings
from tests.conftest import gaussian_bank

WAY, D, IMAGES = 4, 6, (1, 16, 16)
SETTINGS = GuideSettings(way=WAY, backbone="conv4-6", image_shape=IMAGES)
OTHERS = (
    *("matching:full_context", "anil:first_order", "r2d2:posterior=full", "prototypical:predictor=cosine"),
    *("prototypical:descriptions", "fine-tuning:weight_decay=0.001"),
    "platipus:noise_only",
    *("maml:adapted=head", "maml:adapted=block", "maml:norm=task", "mr-maml:adapted=block:norm=group", "mr-maml:penalty=decay"),
    *("bmaml:start=means", "bmaml:loss=chaser", "bmaml:loss=distortion", "bmaml:particles=1"),
)
CASES = [*METHODS, *OTHERS]
TRANSDUCTIVE = {"sib", "tpn", "maml:norm=task"}
DENSE_HEADS = {name for name in CASES if name.startswith(("maml", "mr-maml"))}
IN_ORDER = {"graph", "graph-active", "llama", "platipus:noise_only"} | DENSE_HEADS
"""Methods whose predictions depend on how classes are numbered: by labels in dense layers, and by draws, whose noise follows
the order of all outputs, or that of classes which start alike."""
UNTRAINED = {"gaussian-classes", "fine-tuning"}


@cache
def drawn(dim):
    sampler = EpisodeSampler(gaussian_bank(dim=dim, noise=1.5), TaskSpec(way=WAY, shot=2, queries=3))
    return sampler.sample(5, seed=1).to(dtype=torch.float64)


@pytest.fixture
def tasks(request):
    """Tasks of features, or of images in rows for a method that takes these."""
    whole = "case" in request.fixturenames and takes_images(request.getfixturevalue("case")[0])
    return drawn(256 if whole else D)


def takes_images(case):
    name, given = split_choice(case)
    return METHODS[name].variants(VariantSettings(beta=(0.3,), given=given))[0].predictor == NETWORK


@pytest.fixture(params=CASES)
def case(request):
    """Name, and the objective of the method's first variant, its parameters moved a little from where they start."""
    name, given = split_choice(request.param)
    variant = METHODS[name].variants(VariantSettings(beta=(0.3,), steps=2, given=given))[0]
    generator = torch.Generator().manual_seed(0)
    objective = build_objective(SETTINGS, variant, torch.randn(9, D, generator=generator)).double()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return request.param, objective


def probabilities(objective, episode):
    return predictive(objective.model, objective.guide, episode, num_samples=8, seed=3).probabilities()


def test_tasks_do_not_leak(case, tasks):
    _, objective = case
    both = probabilities(objective, tasks)
    changed = tasks._replace(support_x=tasks.support_x.clone(), query_x=tasks.query_x.clone())
    changed.support_x[0] += 1.0
    changed.query_x[0] -= 1.0
    after = probabilities(objective, changed)
    torch.testing.assert_close(after[1:], both[1:], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(after[0], both[0])


def test_the_order_of_queries_is_irrelevant(case, tasks):
    _, objective = case
    order = torch.randperm(tasks.query_x.shape[1], generator=torch.Generator().manual_seed(2))
    moved = tasks._replace(query_x=tasks.query_x[:, order], query_y=tasks.query_y[:, order])
    torch.testing.assert_close(
        probabilities(objective, moved), probabilities(objective, tasks)[:, order], rtol=1e-8, atol=1e-10
    )


def test_labels_of_queries_are_never_read(case, tasks):
    _, objective = case
    other = tasks._replace(query_y=(tasks.query_y + 1) % WAY)
    assert torch.equal(probabilities(objective, other), probabilities(objective, tasks))
    assert torch.equal(probabilities(objective, tasks.unlabelled()), probabilities(objective, tasks))


def test_everything_learned_gets_a_gradient(case, tasks):
    name, objective = case
    learned = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert bool(learned) is (split_choice(name)[0] not in UNTRAINED)
    if METHODS[split_choice(name)[0]].asks:  # there is something to ask for
        tasks = partly_unlabelled(tasks, 0.5, seed=0, askable=True)
    if learned:
        objective(*tasks).backward()
        missing = {key for key, p in learned.items() if p.grad is None or not bool(p.grad.ne(0).any())}
        assert {key for key in missing if not key.endswith(NEVER)} == set()


NEVER = ("start.log_scale", "scorer.bias", "predictor.bias")
"""What no gradient reaches by construction: the scale of a point, and what is added to the logits of all classes."""


def test_renaming_classes_permutes_predictions(case, tasks):
    name, objective = case
    order = torch.tensor([2, 0, 3, 1])
    renamed = probabilities(objective, tasks._replace(support_y=order[tasks.support_y]))[..., order]
    same = torch.allclose(renamed, probabilities(objective, tasks), rtol=1e-8, atol=1e-10)
    assert same is (name not in IN_ORDER)


def test_of_llama_it_is_the_draws_that_follow_the_numbers_of_classes(tasks):
    variant = METHODS["llama"].variants(VariantSettings(beta=(0.3,)))[0]
    objective, order = build_objective(GuideSettings(way=WAY), variant, torch.zeros(9, D)).double(), torch.tensor([2, 0, 3, 1])
    renamed = tasks._replace(support_y=order[tasks.support_y])
    found = [predictive(objective.model, objective.guide, e, num_samples=4000) for e in (tasks, renamed)]
    torch.testing.assert_close(found[1].rate, found[0].rate)
    torch.testing.assert_close(found[1].probabilities()[..., order], found[0].probabilities(), rtol=0, atol=0.02)


def test_transductive_is_what_another_query_changes(case, tasks):
    name, objective = case
    assert is_transductive(objective.model, objective.guide, tasks) is (name in TRANSDUCTIVE)


def test_rates_are_of_what_has_a_posterior(case, tasks):
    name, objective = case
    predicted = predictive(objective.model, objective.guide, tasks, num_samples=8)
    assert (predicted.rate is not None) is (name in {"sib", "llama", "r2d2:posterior=full", "gaussian-classes"})
    assert predicted.rate is None or bool((predicted.rate > 0).all())


def test_a_prototypical_network_on_features_that_are_given_is_the_nearest_mean(tasks):
    means = torch.randn(9, D)
    found = [
        build_objective(GuideSettings(way=WAY), METHODS[name].variants(VariantSettings())[0], means).double()
        for name in ("nearest-mean", "prototypical")
    ]
    assert torch.equal(*(probabilities(objective, tasks) for objective in found))


@pytest.mark.parametrize(("given", "same"), [("descriptions", True), ("", False)])
def test_prototypes_of_descriptions_have_unit_length(tasks, given, same):
    variant = METHODS["prototypical"].variants(VariantSettings(given=given))[0]
    objective = build_objective(GuideSettings(way=WAY), variant, torch.zeros(9, D)).double()
    longer = tasks._replace(support_x=3 * tasks.support_x)
    assert torch.allclose(probabilities(objective, longer), probabilities(objective, tasks), rtol=1e-9, atol=1e-12) is same
