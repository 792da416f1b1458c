"""NIL: ANIL while it is trained, matching afterwards."""

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from inference.evaluation.predictive import predictive
from inference.meta.learner import build_objective
from inference.meta.methods import METHODS
from inference.meta.settings import GuideSettings, VariantSettings
from tests.conftest import gaussian_bank

WAY, D = 4, 6


@pytest.fixture(scope="module")
def tasks():
    sampler = EpisodeSampler(gaussian_bank(dim=D, noise=1.5), TaskSpec(way=WAY, shot=2, queries=3))
    return sampler.sample(5, seed=1).to(dtype=torch.float64)


def built(name, given=""):
    variant = METHODS[name].variants(VariantSettings(given=given))[0]
    return build_objective(GuideSettings(way=WAY), variant, torch.zeros(9, D)).double()


def test_its_loss_is_that_of_anil_and_its_predictions_those_of_matching(tasks):
    nil, anil, matching = built("nil", "steps=3"), built("anil", "steps=3"), built("matching")
    torch.testing.assert_close(nil(*tasks), anil(*tasks))
    found, expected = (predictive(o.model, o.guide, tasks).labels.logits for o in (nil, matching))
    torch.testing.assert_close(found, expected)


def test_predictions_do_not_read_what_the_head_has_learned(tasks):
    nil = built("nil")
    before = predictive(nil.model, nil.guide, tasks).probabilities()
    with torch.no_grad():
        for parameter in nil.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert torch.equal(predictive(nil.model, nil.guide, tasks).probabilities(), before)
    nil.model.likelihood.log_temperature.fill_(1.0)
    assert not torch.allclose(predictive(nil.model, nil.guide, tasks).probabilities(), before)


def test_the_mode_of_training_is_left_as_it_was(tasks):
    nil = built("nil")
    predictive(nil.model, nil.guide, tasks)
    assert nil.model.training
    assert nil.guide.training
    torch.testing.assert_close(nil(*tasks), built("anil")(*tasks))
