"""The program whose prior has seen the support: its sites, and what it draws without labels."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from data.episodes import Episode
from models.likelihoods import GaussianLikelihood, TemperedCategorical
from models.tasks.adapted import AdaptedModel
from models.tasks.predictors import LinearPredictor

pytestmark = pytest.mark.usefixtures("float64")


class MeanPrior(nn.Module):
    """N(the support's mean item, 0.1²) for every row."""

    def forward(self, support_x, support_y, query_x, query_y, way):
        assert query_y is None, "a prior sees no query labels"
        loc = support_x.mean(1)[:, None, None, :].expand(-1, -1, way, -1)
        return dist.Normal(loc, 0.1).to_event(2)


class Shift(nn.Module):
    """φ = θ + the support's mean label."""

    def forward(self, weights, support_x, support_y, query_x):
        return weights + support_y.double().mean(-1)[:, None, None]


def classes() -> Episode:
    return Episode(
        torch.randn(4, 6, 5), torch.arange(3).repeat(2).expand(4, -1), torch.randn(4, 7, 5), torch.zeros(4, 7).long(), 3
    )


def test_labels_are_predicted_by_what_the_draw_is_adapted_to():
    tasks, likelihood = classes(), TemperedCategorical()
    likelihood.powers.copy_(torch.tensor([0.4, 0.2]))
    trace = poutine.trace(AdaptedModel(MeanPrior(), Shift(), LinearPredictor(2.0), likelihood)).get_trace(*tasks)
    weights, labels = trace.nodes["weights"], trace.nodes["labels"]
    assert weights["value"].shape == (4, 1, 3, 5)
    assert [(f.name, f.dim) for f in weights["cond_indep_stack"]] == [("tasks", -2)]
    assert [(f.name, f.dim, f.size) for f in labels["cond_indep_stack"]] == [("tasks", -2, 4), ("queries", -1, 7)]
    temperature = 2**0.4 * 3**0.2
    logits = 2 * tasks.query_x @ (weights["value"][:, 0] + 1).mT / temperature
    torch.testing.assert_close(labels["fn"].logits, logits.log_softmax(-1))
    assert torch.equal(labels["value"], tasks.query_y)
    assert set(trace.stochastic_nodes) == {"weights", "tasks", "queries"}, "a site, and plates"


def test_without_labels_it_draws_them_and_reads_the_way_off_the_support():
    tasks = classes().unlabelled()._replace(way=None)
    model = AdaptedModel(MeanPrior(), Shift(), LinearPredictor(2.0))
    drawn = model(*tasks)
    assert drawn.shape == (4, 7)
    assert set(drawn.unique().tolist()) <= {0, 1, 2}
    with pyro.plate("draws", 6, dim=-3):
        assert model(*tasks).shape == (6, 4, 7)


def test_regression_has_one_row_of_the_support_it_was_drawn_around():
    tasks = Episode(torch.randn(4, 6, 5), torch.randn(4, 6), torch.randn(4, 7, 5), torch.randn(4, 7), 1)
    model = AdaptedModel(MeanPrior(), Shift(), LinearPredictor(1.0), GaussianLikelihood(0.3))
    trace = poutine.trace(model).get_trace(*tasks)
    weights = trace.nodes["weights"]["value"][:, 0] + tasks.support_y.mean(-1)[:, None, None]
    torch.testing.assert_close(trace.nodes["labels"]["fn"].mean, (tasks.query_x @ weights.mT)[..., 0])
