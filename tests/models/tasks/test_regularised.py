"""Models that cannot learn tasks by heart for free, beside sums and expectations written out by hand."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import Normal, kl_divergence

from data.episodes import Episode
from guides.tasks.regularised import CodesGuide, EncoderGuide
from inference.elbo import RateDistortionELBO
from inference.evaluation.posterior import infer
from inference.evaluation.predictive import predictive, trace_guide, trace_model
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from models.tasks.regularised import CodedModel, EncodedScorer, GaussianEncoder, RegularisedModel
from models.tasks.scorers.base import Scorer

TASKS, SUPPORT, QUERY, D, N = 3, 4, 5, 2, 30


class SlopeScorer(Scorer):
    """ŷ = a + ⟨c, mean of support⟩ · sum of the query: what each draw must be the same for."""

    def __init__(self, codes):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(0.3))
        self.direction = nn.Parameter(torch.linspace(-1, 1, codes))

    def forward(self, support_x, support_y, query_x, way):
        slope = (support_x.mean(1) @ self.direction + support_y.mean(1))[:, None]
        return (self.offset + slope * query_x.sum(-1))[..., None]


@pytest.fixture
def tasks():
    g = torch.Generator().manual_seed(1)
    sizes = ((TASKS, SUPPORT, D), (TASKS, SUPPORT), (TASKS, QUERY, D), (TASKS, QUERY))
    return Episode(*(torch.randn(size, generator=g, dtype=torch.float64) for size in sizes), 1)


def random_weights(num_tasks=N, scale=0.2):
    torch.manual_seed(0)
    model = RegularisedModel(
        EncodedScorer(nn.Linear(D, 3), SlopeScorer(3)), GaussianLikelihood(0.7, learned=False), num_tasks=num_tasks
    )
    return model.double(), EncoderGuide(model.start, scale).double()


def codes(at_means=False):
    torch.manual_seed(0)
    encoder = GaussianEncoder(nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, 6)), 3)
    model = CodedModel(encoder, SlopeScorer(3), GaussianLikelihood(0.7, learned=False))
    return model.double(), CodesGuide(encoder, at_means=at_means).double()


def by_hand(theta, tasks):
    """ŷ of all queries under encoder weights ``[P]``, ``[tasks, query]``."""
    matrix, bias = theta[:6].view(3, 2), theta[6:]
    support, query = tasks.support_x @ matrix.T + bias, tasks.query_x @ matrix.T + bias
    slope = support.mean(1) @ torch.linspace(-1, 1, 3).double() + tasks.support_y.mean(1)
    return 0.3 + slope[:, None] * query.sum(-1)


def test_support_and_queries_of_all_tasks_see_one_draw_of_the_encoder(tasks):
    model, guide = random_weights()
    guide_trace = trace_guide(guide, tasks, 6)
    model_trace = trace_model(model, guide_trace, tasks, 6)
    drawn = guide_trace.nodes["encoder"]["value"]
    assert drawn.shape == (6, 1, 1, 9)
    expected = torch.stack([by_hand(theta, tasks) for theta in drawn[:, 0, 0]])
    torch.testing.assert_close(model_trace.nodes["labels"]["fn"].mean, expected, atol=1e-6, rtol=1e-6)
    assert len(drawn.unique(dim=0)) == 6


def test_the_loss_is_the_sum_over_all_tasks_and_one_rate(tasks):
    """Also what is counted where: labels stand for N tasks in training and for themselves in evaluation."""
    model, guide = random_weights()
    for training, factor in ((True, N / TASKS), (False, 1.0)):
        model.train(training), guide.train(training)
        torch.manual_seed(3)
        terms = RateDistortionELBO(beta=0.5)(model, guide).terms(*tasks)
        torch.manual_seed(3)
        theta = guide.distribution().rsample()
        distortion = -Normal(by_hand(theta, tasks), 0.7).log_prob(tasks.query_y).sum() * factor
        mean, scale = guide.loc, guide.log_scale.exp()
        rate = 0.5 * (scale.square() + mean.square() - 1 - 2 * scale.log()).sum()
        torch.testing.assert_close(terms.distortion, distortion, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(terms.rate, rate)
        torch.testing.assert_close(terms.loss, distortion + 0.5 * rate, rtol=1e-6, atol=1e-6)


def test_the_rate_of_weights_is_what_draws_say():
    model, guide = random_weights()
    q, p = guide.distribution(), model.prior(torch.zeros((), dtype=torch.float64))
    torch.manual_seed(0)
    drawn = q.sample((100_000,))
    samples = (q.log_prob(drawn) - p.log_prob(drawn)).detach()
    error = 4 * float(samples.std()) / math.sqrt(len(samples))
    assert float(samples.mean()) == pytest.approx(float(kl_divergence(q, p).detach()), abs=error)


def test_a_point_is_weight_decay(tasks):
    model, guide = random_weights(scale=None)
    guide.eval(), model.eval()
    objective = RateDistortionELBO(beta=1.7)(model, guide)
    first = objective(*tasks)
    with torch.no_grad():
        before = guide.loc.clone()
        guide.loc.mul_(2)
    second = objective(*tasks)
    distortions = [-Normal(by_hand(theta, tasks), 0.7).log_prob(tasks.query_y).sum() for theta in (before, 2 * before)]
    penalty = 1.7 * 0.5 * 3 * before.square().sum()
    torch.testing.assert_close(second - first, distortions[1] - distortions[0] + penalty, rtol=1e-6, atol=1e-6)
    assert predictive(model, guide, tasks).rate is None
    assert predictive(model, guide, tasks).num_draws == 1


def test_the_rate_of_codes_is_in_closed_form_and_what_draws_say(tasks):
    model, guide = codes()
    terms = RateDistortionELBO(beta=1.0)(model, guide).terms(*tasks)
    mean, scale = (part.detach() for part in (lambda q: (q.mean, q.stddev))(model.encoder(tasks.query_x)))
    expected = 0.5 * (scale.square() + mean.square() - 1 - 2 * scale.log()).sum((-1, -2))
    torch.testing.assert_close(terms.rate.detach(), expected.sum())
    assert float(terms.rates["support_codes"].detach()) == 0
    torch.testing.assert_close(predictive(model, guide, tasks, num_samples=3).rate, expected)
    torch.manual_seed(0)
    drawn = mean + scale * torch.randn(40_000, *mean.shape, dtype=torch.float64)
    samples = (Normal(mean, scale).log_prob(drawn) - Normal(0.0, 1.0).log_prob(drawn)).sum((-1, -2, -3))
    error = 4 * float(samples.std()) / math.sqrt(len(samples))
    assert float(samples.mean()) == pytest.approx(float(expected.sum()), abs=error)


def test_predictions_read_a_query_through_its_code_alone(tasks):
    model, guide = codes()
    guide_trace = trace_guide(guide, tasks, 4)
    labels = trace_model(model, guide_trace, tasks, 4).nodes["labels"]["fn"].mean
    support, query = (guide_trace.nodes[name]["value"] for name in ("support_codes", "codes"))
    assert (support.shape, query.shape) == ((4, TASKS, SUPPORT, 3), (4, TASKS, QUERY, 3))
    slope = support.mean(2) @ torch.linspace(-1, 1, 3).double() + tasks.support_y.mean(1)
    torch.testing.assert_close(labels, 0.3 + slope[..., None] * query.sum(-1), rtol=1e-6, atol=1e-6)


def test_codes_that_are_tested_at_their_means_are_trained_by_draws(tasks):
    model, guide = codes(at_means=True)
    means = [model.encoder(x).mean.detach() for x in (tasks.support_x, tasks.query_x)]
    slope = means[0].mean(1) @ torch.linspace(-1, 1, 3).double() + tasks.support_y.mean(1)
    predicted = predictive(model, guide, tasks, num_samples=6)
    torch.testing.assert_close(predicted.labels.mean, (0.3 + slope[:, None] * means[1].sum(-1))[None], rtol=1e-6, atol=1e-6)
    assert predicted.rate is None
    losses = []
    for other in (guide, codes()[1]):
        other.load_state_dict(guide.state_dict())
        torch.manual_seed(4)
        losses.append(RateDistortionELBO(beta=0.5)(model.train(), other.train())(*tasks))
    torch.testing.assert_close(*losses)
    kinds = {name: type(site.distribution).__name__ for name, site in guide.eval().sites(*tasks).items()}
    assert kinds == {"support_codes": "Delta", "codes": "Delta"}


def test_weights_that_are_tested_at_their_mean_are_trained_by_draws(tasks):
    model, guide = random_weights()
    at_mean = EncoderGuide(model.start, 0.2, at_mean=True).double()
    predicted = predictive(model, at_mean, tasks, num_samples=6)
    torch.testing.assert_close(predicted.labels.mean, by_hand(at_mean.loc.detach(), tasks)[None], rtol=1e-6, atol=1e-6)
    losses = []
    for other in (guide, at_mean):
        torch.manual_seed(4)
        losses.append(RateDistortionELBO(beta=0.5)(model.train(), other.train())(*tasks))
    torch.testing.assert_close(*losses)
    drawn = at_mean.eval().drawn()
    assert drawn.loc is at_mean.loc
    assert predictive(model, drawn, tasks, num_samples=6).num_draws == 6
    assert predictive(model, at_mean, tasks, num_samples=6).num_draws == 1


class RunawayScorer(Scorer):
    """Two logits, which are no numbers where a code of the support is beyond a limit."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, support_x, support_y, query_x, way):
        beyond = support_x.abs().amax((1, 2))[:, None, None] > self.limit
        return torch.where(beyond, torch.nan, torch.cat([query_x[..., :1], -query_x[..., :1]], dim=-1))


@pytest.mark.parametrize("limit", [3.0, 1e9])
def test_what_runs_away_from_draws_of_the_prior_has_no_prior_predictive(limit, tasks):
    model = RegularisedModel(EncodedScorer(nn.Linear(D, 3), RunawayScorer(limit)), CategoricalLikelihood()).double()
    guide = EncoderGuide(0.1 * model.start, 0.01).double()
    labelled = tasks._replace(support_y=(tasks.support_y > 0).long(), way=2)
    data = infer(model, guide, labelled).to_arviz(num_samples=40)
    assert ("prior_predictive" in data) is (limit > 3)
    assert {"prior", "posterior", "posterior_predictive", "predictions"} <= {*data}


def test_draws_one_after_another_are_those_at_once(tasks):
    model, guide = random_weights()
    together = predictive(model, guide, tasks, num_samples=6).labels.mean
    model.draws_at_once = 2
    torch.testing.assert_close(predictive(model, guide, tasks, num_samples=6).labels.mean, together)


@pytest.mark.parametrize("made", [random_weights, codes])
def test_it_runs_under_pyros_own_svi(made, tasks):
    """Trace_ELBO's loss at β = 1 has the mean of ours, which has the KL in its place; and SVI's steps descend it."""
    model, guide = made()
    ours, theirs, differences = RateDistortionELBO(beta=1.0), Trace_ELBO(), []
    for seed in range(40):
        torch.manual_seed(seed)
        first = ours.loss(model, guide, *tasks)
        torch.manual_seed(seed)
        differences.append(first - theirs.loss(model, guide, *tasks))
    differences = torch.tensor(differences)
    assert float(differences.std()) > 0
    assert abs(float(differences.mean())) < 4 * float(differences.std()) / 40**0.5
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(*tasks) for _ in range(40)]
    assert sum(losses[-15:]) < sum(losses[:15])
    pyro.clear_param_store()


@pytest.mark.parametrize("made", [random_weights, codes])
def test_sites_are_those_of_the_program(made, tasks):
    """The direct way, without handlers, has the same loss as Pyro's."""
    model, guide = made()
    objective = RateDistortionELBO(beta=0.3)(model, guide)
    assert guide.says_sites(*tasks)
    assert model.says_sites(*tasks)
    assert not model.says_sites(*tasks[:3])
    assert not model.says_sites(*tasks[:3], None)
    torch.manual_seed(5)
    direct = objective(*tasks)
    type(guide).says_sites, kept = (lambda self, *args, **kwargs: False), type(guide).says_sites
    try:
        torch.manual_seed(5)
        followed = objective(*tasks)
    finally:
        type(guide).says_sites = kept
    torch.testing.assert_close(direct, followed)


def test_all_weights_are_bayes_by_backprop(tasks):
    torch.manual_seed(0)
    scorer = EncodedScorer(nn.Linear(D, 3), SlopeScorer(3))
    whole = dict(scorer.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in whole.values()])
    model = RegularisedModel(scorer, GaussianLikelihood(1.0), random=lambda name: True).double()
    torch.testing.assert_close(model.start, flat)
    assert {name for name, _ in model.named_parameters()} == {"likelihood.log_noise"}
    expected = by_hand(flat.double()[:9], tasks) - 0.3 + flat[9]
    torch.testing.assert_close(model.labels(flat.double(), *tasks[:3], 1).mean, expected, rtol=1e-6, atol=1e-6)


def test_a_scorer_without_random_weights_is_refused():
    with pytest.raises(ValueError, match="no parameter of the scorer is random"):
        RegularisedModel(SlopeScorer(2), GaussianLikelihood(1.0))


def test_other_queries_have_codes_of_their_own(tasks):
    model, guide = codes()
    asked = tasks.query_x[:, :2]
    own = predictive(model, guide, tasks._replace(query_x=asked), num_samples=4, seed=3).labels
    found = predictive(model, guide, tasks, query_x=asked, num_samples=4, seed=3).labels
    assert found.batch_shape == (4, TASKS, 2)
    torch.testing.assert_close(found.mean, own.mean)


@pytest.mark.parametrize(("made", "dims"), [(random_weights, (9,)), (codes, (TASKS, QUERY, 3))])
def test_draws_of_its_sites_are_saved(made, dims, tasks):
    model, guide = made()
    data = infer(model, guide, tasks).to_arviz(tasks.query_y, num_samples=8)
    name = "encoder" if len(dims) == 1 else "codes"
    assert data.posterior[name].shape[2:] == dims
    assert data.predictions["y"].shape[2:] == (TASKS, QUERY)
    assert data.posterior_predictive["y"].shape[2:] == (TASKS, SUPPORT)
    if len(dims) > 1:
        assert data.posterior["support_codes"].shape[2:] == (TASKS, SUPPORT, 3)
