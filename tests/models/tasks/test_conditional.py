"""Programs without latent sites: the scorer's predictions, under Pyro, with temperature and unlabelled queries."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from data.episodes import Episode
from guides.empty import EmptyGuide
from inference.elbo import RateDistortionELBO
from inference.meta.methods.nearest_mean import NearestMeanModel
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from models.tasks.conditional import ConditionalModel
from models.tasks.predictors import DistancePredictor
from models.tasks.scorers.attention import AttentionScorer
from models.tasks.scorers.base import MeansScorer, Scorer
from models.tasks.scorers.graph import GraphScorer

pytestmark = pytest.mark.usefixtures("float64")


def episode(way: int = 3, shot: int = 2) -> Episode:
    support_y = torch.arange(way).repeat_interleave(shot).expand(4, -1)
    return Episode(torch.randn(4, way * shot, 5), support_y, torch.randn(4, 6, 5), torch.randint(way, (4, 6)), way)


def site(model, *arguments):
    return poutine.trace(model).get_trace(*arguments).nodes["labels"]


def test_labels_are_categorical_in_the_scores_of_tasks_and_queries():
    tasks = episode()
    model = ConditionalModel(AttentionScorer())
    labels = site(model, *tasks)
    scores = model.scorer(*tasks[:3], 3)
    torch.testing.assert_close(labels["fn"].logits, scores.log_softmax(-1))
    assert [(f.name, f.dim, f.size) for f in labels["cond_indep_stack"]] == [("tasks", -2, 4), ("queries", -1, 6)]
    assert torch.equal(labels["value"], tasks.query_y)
    assert torch.equal(model(*tasks), tasks.query_y)


def test_the_temperature_knows_shot_and_way():
    tasks, model = episode(), ConditionalModel(AttentionScorer())
    model.likelihood.log_temperature.fill_(0.3)
    model.likelihood.powers.copy_(torch.tensor([0.5, -0.2]))
    temperature = torch.tensor(0.3).exp() * 2**0.5 * 3**-0.2
    expected = (model.scorer(*tasks[:3], 3) / temperature).log_softmax(-1)
    torch.testing.assert_close(site(model, *tasks)["fn"].logits, expected)
    plain = ConditionalModel(model.scorer, CategoricalLikelihood())
    torch.testing.assert_close(site(plain, *tasks)["fn"].logits, model.scorer(*tasks[:3], 3).log_softmax(-1))


def test_unlabelled_queries_are_not_scored():
    tasks, model = episode(), ConditionalModel(AttentionScorer())
    some = tasks.query_y.clone()
    some[:, ::2] = -1
    objective = RateDistortionELBO(beta=1.0)(model, EmptyGuide())
    each = site(model, *tasks)["fn"].log_prob(tasks.query_y)
    terms = objective.terms(*tasks[:3], some, 3)
    torch.testing.assert_close(terms.distortion, -each[:, 1::2].sum())
    torch.testing.assert_close(objective.terms(*tasks).distortion, -each.sum())
    assert torch.equal(model(*tasks[:3], some, 3), some)


def test_it_draws_labels_where_there_are_none():
    tasks, model = episode(), ConditionalModel(AttentionScorer())
    drawn = Predictive(model, guide=EmptyGuide(), num_samples=2000)(*tasks.unlabelled())["labels"]
    assert drawn.shape == (2000, 4, 6)
    expected = model.scorer(*tasks[:3], 3).softmax(-1)[..., 0]
    frequency = (drawn == 0).double().mean(0)
    assert bool(((frequency - expected).abs() < 5 * (expected * (1 - expected) / 2000).sqrt() + 1e-3).all())


def test_pyros_svi_trains_it():
    pyro.clear_param_store()
    tasks, model = episode(), ConditionalModel(AttentionScorer())
    before, expected = model.scorer.log_scale.item(), -site(model, *tasks)["fn"].log_prob(tasks.query_y).sum()
    loss = SVI(model, EmptyGuide(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(*tasks)
    assert loss == pytest.approx(expected.item())
    assert model.scorer.log_scale.item() != before


@pytest.mark.parametrize("way", [None, 3])
def test_the_way_is_given_read_off_the_labels_or_the_scorers(way):
    tasks = episode()
    assert site(ConditionalModel(AttentionScorer()), *tasks[:4], way)["fn"].logits.shape == (4, 6, 3)
    fewer = tasks.support_y.clamp_max(1)
    assert site(ConditionalModel(GraphScorer(5, 3)), tasks.support_x, fewer, tasks.query_x)["fn"].logits.shape == (4, 6, 3)
    assert site(ConditionalModel(AttentionScorer()), tasks.support_x, fewer, tasks.query_x)["fn"].logits.shape == (4, 6, 2)


def test_regression_has_no_unlabelled_queries():
    class Mean(Scorer):
        def forward(self, support_x, support_y, query_x, way):
            return support_y.mean(-1)[:, None, None].expand(-1, query_x.shape[1], 1)

    x, y = torch.randn(4, 6, 2), torch.randn(4, 6) - 3
    labels = site(ConditionalModel(Mean(), GaussianLikelihood(0.5)), x, y, x, y, 1)
    expected = torch.distributions.Normal(y.mean(-1, keepdim=True).expand(4, 6), 0.5).log_prob(y)
    torch.testing.assert_close(labels["fn"].log_prob(labels["value"]), expected)
    assert labels["mask"] is None


def test_means_are_the_nearest_mean_program():
    tasks = episode()
    known = site(NearestMeanModel(DistancePredictor(3.0)), *tasks)["fn"].logits
    torch.testing.assert_close(site(ConditionalModel(MeansScorer(DistancePredictor(3.0))), *tasks)["fn"].logits, known)
