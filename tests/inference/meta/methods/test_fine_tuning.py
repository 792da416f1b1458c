"""Fine-tuning: the steps are those of ``torch.optim.SGD``, weight decay included."""

import pytest
import torch
import torch.nn.functional as F

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from inference.evaluation.predictive import predictive
from inference.meta.learner import build_objective
from inference.meta.methods import METHODS
from inference.meta.settings import GuideSettings, VariantSettings
from tests.conftest import gaussian_bank

WAY, D = 4, 6


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_its_steps_are_those_of_sgd(decay):
    sampler = EpisodeSampler(gaussian_bank(dim=D, noise=1.5), TaskSpec(way=WAY, shot=2, queries=3))
    tasks = sampler.sample(3, seed=1).to(dtype=torch.float64)
    variant = METHODS["fine-tuning"].variants(VariantSettings(given=f"steps=7:size=0.2:weight_decay={decay}"))[0]
    objective = build_objective(GuideSettings(way=WAY), variant, torch.zeros(9, D)).double()
    found = predictive(objective.model, objective.guide, tasks).labels.logits[0]
    scale, size = objective.model.predictor.scale.detach(), float(objective.guide.rule.log_size[0].exp())  # 0.2, rounded
    for t in range(3):
        head = torch.zeros(WAY, D, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([head], lr=size, weight_decay=decay)
        for _ in range(7):
            optimizer.zero_grad()
            F.cross_entropy(scale * tasks.support_x[t] @ head.T, tasks.support_y[t]).backward()
            optimizer.step()
        expected = (scale * tasks.query_x[t] @ head.T).log_softmax(-1)
        torch.testing.assert_close(found[t], expected, rtol=1e-10, atol=1e-10)


def test_a_negative_decay_is_one_line():
    with pytest.raises(UserError, match="weight_decay"):
        METHODS["fine-tuning"].variants(VariantSettings(given="weight_decay=-1"))
