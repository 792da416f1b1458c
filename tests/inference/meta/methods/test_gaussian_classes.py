"""Gaussian classes against the conjugate posterior written out, and as a method of a run."""

import pytest
import torch
from pyro import poutine
from torch.distributions import Normal, kl_divergence

from data.episodes import Episode
from inference.evaluation.predictive import predictive
from inference.meta.methods.gaussian_classes import CONTRAST, ClassMeansPosterior, GaussianClasses, moments

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.tensor([[0, 0, 1, 2, 2, 2], [1, 0, 2, 1, 1, 0]])
CENTERS = torch.randn(3, 4, generator=GENERATOR)
SUPPORT = CENTERS[LABELS] + 0.3 * torch.randn(2, 6, 4, generator=GENERATOR)
QUERIES = CENTERS[torch.tensor([[0, 1, 2], [2, 1, 0]])]
EPISODE = Episode(SUPPORT, LABELS, QUERIES, None, 3)


def by_hand(task: int):
    """(μ, τ², σ², d²) of one task, class by class."""
    classes = [SUPPORT[task][LABELS[task] == c] for c in range(3)]
    means = torch.stack([items.mean(0) for items in classes])
    pairs = [(means[a] - means[b]).square().sum() for a in range(3) for b in range(3) if a != b]
    residual = sum((items - items.mean(0)).square().sum() for items in classes)
    distance = torch.stack(pairs).mean()
    return means.mean(0), distance / 8, residual / (4 * (6 - 3)), distance


@pytest.mark.parametrize("task", [0, 1])
def test_moments(task):
    seen = moments(SUPPORT, LABELS, 3)
    for found, expected in zip(seen, by_hand(task), strict=True):
        torch.testing.assert_close(found[task].squeeze(), expected)


@pytest.mark.parametrize("task", [0, 1])
def test_posterior_is_conjugate(task):
    """Prior times the likelihood of a class's items, one item after another."""
    center, between, within, _ = by_hand(task)
    weights = ClassMeansPosterior()(*EPISODE)
    assert weights.shape == (2, 1, 3, 4)
    q = poutine.trace(ClassMeansPosterior()).get_trace(*EPISODE).nodes["weights"]["fn"].base_dist
    for c in range(3):
        mean, variance = center, between
        for item in SUPPORT[task][LABELS[task] == c]:
            gain = variance / (variance + within)
            mean, variance = mean + gain * (item - mean), variance * (1 - gain)
        torch.testing.assert_close(q.mean[task, 0, c], mean)
        torch.testing.assert_close(q.variance[task, 0, c], variance.expand(4))


def test_predictions_and_rate():
    predicted = predictive(GaussianClasses(), ClassMeansPosterior(), EPISODE, num_samples=2000)
    assert predicted.rate is not None
    center, between, within, distance = by_hand(0)
    counts = torch.bincount(LABELS[0])[:, None]
    variance = 1 / (1 / between + counts / within)
    means = torch.stack([SUPPORT[0][LABELS[0] == c].mean(0) for c in range(3)])
    q = Normal((center / between + counts * means / within) * variance, variance.sqrt().expand(3, 4))
    torch.testing.assert_close(predicted.rate[0], kl_divergence(q, Normal(center, between.sqrt()).expand((3, 4))).sum())
    w = q.sample((20_000,))
    logits = CONTRAST / distance * -0.5 * (QUERIES[0][:, None] - w[:, None]).square().sum(-1)
    torch.testing.assert_close(predicted.probabilities()[0], logits.softmax(-1).mean(0), atol=0.02, rtol=0)


def test_one_item_per_class_has_a_width_too():
    seen = moments(SUPPORT[:, [0, 2, 3]], torch.tensor([[0, 1, 2]] * 2), 3)
    torch.testing.assert_close(seen.within, seen.between / 2)


def test_equal_items_give_finite_numbers():
    episode = Episode(torch.ones(1, 6, 4), LABELS[:1], torch.ones(1, 2, 4), None, 3)
    probabilities = predictive(GaussianClasses(), ClassMeansPosterior(), episode, num_samples=4).probabilities()
    torch.testing.assert_close(probabilities, torch.full((1, 2, 3), 1 / 3), atol=1e-3, rtol=0)
