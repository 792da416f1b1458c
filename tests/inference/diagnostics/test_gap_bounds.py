"""Bounds on the amortization gap: known labels reach the evidence where it is known, beliefs that are certain are labels."""

import math

import pytest
import torch

from data.episodes import Episode
from inference.diagnostics.amortization import task_losses
from inference.diagnostics.gap_bounds import ExpectedCategorical, informed_guide, refined_guide
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior

TASKS, HOW = 12, {"steps": 120, "particles": 4}


def flat_prior_model(scale=0.5):
    prior = GaussianPrior(torch.zeros(1), torch.full((1,), scale), learned=False)
    return EmpiricalBayesModel(prior, LinearPredictor(1.0, learned=False))


def one_query(seed=0):
    """Tasks with one query and two classes: by symmetry the evidence of any label is ½."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TASKS, 1, 1, generator=generator)
    y = torch.randint(2, (TASKS, 1), generator=generator)
    return Episode(torch.ones(TASKS, 2, 1), torch.arange(2).expand(TASKS, -1), x, y, 2)


def test_known_labels_reach_the_evidence():
    model, episode = flat_prior_model(), one_query()
    losses = task_losses(model, informed_guide(model, episode, **HOW), episode, on="queries", num_samples=4000)
    assert float(losses.mean()) == pytest.approx(math.log(2), abs=0.02)
    assert float(losses.mean()) > math.log(2) - 0.005, "the evidence is a bound"


def test_beliefs_that_are_certain_are_labels():
    model, episode = flat_prior_model(), one_query()
    certain = torch.nn.functional.one_hot(episode.query_y, 2).float()
    informed, refined = informed_guide(model, episode, **HOW), refined_guide(model, episode, certain, **HOW)
    torch.testing.assert_close(refined.loc, informed.loc)
    torch.testing.assert_close(refined.log_scale, informed.log_scale)


def test_beliefs_that_know_nothing_move_no_mean_and_labels_are_not_read():
    model, episode = flat_prior_model(), one_query()
    even = torch.full((TASKS, 1, 2), 0.5)
    found = refined_guide(model, episode, even, **HOW)
    assert float(found.loc.abs().max()) < 0.05
    torch.testing.assert_close(refined_guide(model, episode.unlabelled(), even, **HOW).loc, found.loc)


def test_the_log_probability_of_uncertain_labels_is_the_expected_one():
    logits, beliefs = torch.randn(5, 3), torch.rand(5, 3).softmax(-1)
    each = torch.stack([torch.distributions.Categorical(logits=logits).log_prob(torch.tensor(c)) for c in range(3)], -1)
    torch.testing.assert_close(ExpectedCategorical(logits=logits).log_prob(beliefs), (beliefs * each).sum(-1))
