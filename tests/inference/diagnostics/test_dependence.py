"""Dependence on the support and on other queries: closed forms, quadrature; the PAC-Bayes bound of a loss that is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

from data.episodes import Episode, EpisodeSampler, TaskSpec
from data.errors import UserError
from data.regression import linear_posterior
from data.semi_supervised import partly_unlabelled
from guides.empty import EmptyGuide
from guides.tasks.conjugate import ConjugateGuide
from inference.diagnostics.dependence import (
    PacBayesBound,
    is_transductive,
    other_supports,
    query_information,
    renamed_supports,
    support_information,
)
from inference.meta.methods.nearest_mean import NearestMeanModel
from inference.meta.regression_tasks import LINEAR_PRIOR, NOISE, Problem
from models.tasks.predictors import DistancePredictor
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import build
from tests.guides.tasks.test_unrolled import episode as sib_tasks
from tests.inference.diagnostics.test_nuts import known_model

PRIOR = [part.double() for part in LINEAR_PRIOR]


class Says(PyroModule):
    """p(y given x, support) of a function of an episode."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def forward(self, support_x, support_y, query_x, query_y=None, way=None):
        fn = self.said(Episode(support_x, support_y, query_x, query_y, way))
        with pyro.plate("tasks", len(query_x), dim=-2), pyro.plate("queries", query_x.shape[1], dim=-1):
            pyro.sample("labels", fn.expand(query_x.shape[:2]), obs=query_y)


def information(said, episode, **options):
    return support_information(said if isinstance(said, PyroModule) else Says(said), EmptyGuide(), episode, **options)


def classes(tasks=20, way=5):
    sampler = EpisodeSampler(gaussian_bank(), TaskSpec(way, 2, 3))
    return sampler.sample(tasks, seed=0).to(dtype=torch.float64)


def first_label(one):
    """Of a task's first support item, nine times in ten; the support is all that is read."""
    told = torch.nn.functional.one_hot(one.support_y[:, :1], one.way)
    return dist.Categorical(0.9 * told + 0.1 / one.way)


def entropy_of(p):
    return float(-sum(x * math.log(x) for x in p if x))


@pytest.mark.parametrize("exclusive", [True, False])
def test_what_does_not_read_the_support_has_none(exclusive):
    blind = lambda one: dist.Categorical(logits=one.query_x[..., : one.way])  # noqa: E731
    found = information(blind, classes(), exclusive=exclusive)
    torch.testing.assert_close(found, torch.zeros(20, dtype=torch.float64), atol=1e-12, rtol=0)
    loud = lambda one: dist.Normal(one.query_x[..., 0], 0.3)  # noqa: E731
    assert float(information(loud, Problem("linear").tasks(17, queries=3, seed=0), exclusive=False).abs().max()) < 1e-12


@pytest.mark.parametrize("way", [2, 5, 7])
def test_that_of_a_renamed_label_is_its_closed_form(way):
    found = information(first_label, classes(way=way), exclusive=True)
    expected = math.log(way) - entropy_of([0.9 + 0.1 / way] + [0.1 / way] * (way - 1))
    torch.testing.assert_close(found, torch.full((20,), expected, dtype=torch.float64), atol=1e-7, rtol=0)


def test_what_treats_labels_alike_has_log_way_less_its_entropy():
    episode, model = classes(), NearestMeanModel(DistancePredictor()).double()
    trace = pyro.poutine.trace(model).get_trace(*episode)
    p = trace.nodes["labels"]["fn"].probs
    expected = math.log(5) - torch.special.entr(p).sum(-1).mean(-1)
    torch.testing.assert_close(information(model, episode, exclusive=True), expected.detach(), atol=1e-9, rtol=0)


def test_that_of_other_tasks_supports_is_over_all_of_them_but_the_own():
    """As many supports as there are others: each of them once."""
    episode = classes(tasks=9)
    episode = episode._replace(support_y=torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 4])[:, None].expand(9, 10))
    found = information(first_label, episode, exclusive=False, supports=8)
    own = entropy_of([0.92] + [0.02] * 4)
    for task, label in enumerate(episode.support_y[:, 0].tolist()):
        counts = torch.bincount(episode.support_y[:, 0], minlength=5)
        counts[label] -= 1
        expected = entropy_of((0.9 * counts / 8 + 0.02).tolist()) - own
        assert float(found[task]) == pytest.approx(expected, abs=1e-6)


def test_supports_that_tell_more_or_less_count_alike():
    """The mean entropy is over all supports: some are read nine times in ten, some once in ten more than chance."""

    def said(one):
        told = torch.nn.functional.one_hot(one.support_y[:, :1], 5)
        trust = torch.where(one.support_y[:, :1] == 0, 0.9, 0.1)[..., None]
        return dist.Categorical(trust * told + (1 - trust) / 5)

    strong, weak = (torch.tensor([trust + (1 - trust) / 5] + [(1 - trust) / 5] * 4) for trust in (0.9, 0.1))
    rows = [strong] + [weak.roll(shift) for shift in range(1, 5)]
    expected = entropy_of(torch.stack(rows).mean(0).tolist()) - sum(entropy_of(row.tolist()) for row in rows) / 5
    found = information(said, classes(), exclusive=True)
    torch.testing.assert_close(found, torch.full((20,), expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_renamed_supports_keep_their_groups_and_queries_their_classes():
    episode = partly_unlabelled(classes(), 0.5, seed=0)
    renamed = renamed_supports(episode, 16, 0)
    assert len(renamed) == 20, "whole turns"
    assert torch.equal(torch.stack([one.support_y for one in renamed]).float().mean(0).unique(), torch.tensor([-1.0, 2.0]))
    for one in renamed:
        assert torch.equal(one.support_y < 0, episode.support_y < 0)
        for task in range(3):
            name = {}
            pairs = (one.support_y, episode.support_y), (one.query_y, episode.query_y)
            for new, old in ((int(n), int(o)) for a, b in pairs for n, o in zip(a[task], b[task], strict=True)):
                assert name.setdefault(old, new) == new
            assert len(set(name.values())) == len(name)
    assert len({tuple(one.support_y[0].tolist()) for one in renamed}) > 15


def test_other_supports_are_of_other_tasks_and_all_different():
    episode = classes()
    found = other_supports(episode, 16, 3)
    assert len(found) == 16
    for one in found:
        assert one.query_x is episode.query_x
    for task in range(20):
        firsts = {tuple(one.support_x[task, 0].tolist()) for one in found}
        assert len(firsts) == 16
        assert tuple(episode.support_x[task, 0].tolist()) not in firsts


def mixture_information(means, scales):
    """H of the equal mixture of normals ``[M]`` less their mean entropy, by the trapezoid rule."""
    y = torch.linspace(float((means - 8 * scales).min()), float((means + 8 * scales).max()), 4001, dtype=torch.float64)
    log_p = dist.Normal(means[:, None], scales[:, None]).log_prob(y)
    mixed = log_p.logsumexp(0) - math.log(len(means))
    return float(torch.trapezoid(log_p.exp() * (log_p - mixed), y).mean())


@pytest.mark.parametrize(("scale", "expected"), [(1e-4, math.log(16)), (1e4, 0.0)])
def test_supports_that_say_the_same_or_all_differ(scale, expected):
    episode = Problem("linear").tasks(17, queries=3, seed=0)
    told = lambda one: dist.Normal(one.support_y.mean(-1, keepdim=True), scale)  # noqa: E731
    assert float(information(told, episode, exclusive=False).mean()) == pytest.approx(expected, abs=1e-4)


def exact(one):
    """The exact predictive of linear tasks."""
    mean, covariance = linear_posterior(one.support_x, one.support_y, *PRIOR, NOISE["linear"])
    variance = ((one.query_x @ covariance) * one.query_x).sum(-1) + NOISE["linear"] ** 2
    return dist.Normal((one.query_x @ mean[..., None])[..., 0], variance.sqrt())


@pytest.mark.parametrize("drawn", [False, True])
def test_exact_bayes_of_linear_tasks_is_what_quadrature_gives(drawn):
    """Written down, or through 32 draws of the exact posterior, within four standard errors: over 40 seeds
    the mean of tasks had a standard deviation of 0.005 and a task 0.02, and no bias."""
    episode, model = Problem("linear").tasks(17, queries=2, seed=4), known_model()
    guide = ConjugateGuide(model.prior, model.likelihood)
    how = {"exclusive": False, "num_samples": 32}
    found = support_information(model, guide, episode, **how) if drawn else information(exact, episode, **how)
    parts = [exact(episode._replace(support_x=x.expand(17, -1, -1), support_y=y.expand(17, -1)))
             for x, y in zip(episode.support_x, episode.support_y, strict=True)]  # fmt: skip
    means, scales = (torch.stack([getattr(part, name) for part in parts]) for name in ("loc", "scale"))  # [17, tasks, 2]
    others = [[s for s in range(17) if s != task] for task in range(17)]
    expected = [sum(mixture_information(means[s, t, q], scales[s, t, q]) for q in (0, 1)) / 2 for t, s in enumerate(others)]
    difference = found - torch.tensor(expected, dtype=torch.float64)
    assert float(found.mean()) > 0.5
    assert abs(float(difference.mean())) < 4 * 0.005
    assert float(difference.abs().max()) < 4 * 0.02


def test_with_many_supports_it_is_the_closed_form():
    """½ E log of the variance under the prior over that under the posterior, each with the noise: the mean over D of Gaussian
    predictives is that under the prior. 39 supports are short of it by 0.03, of 0.81; the tolerance is twice as much."""
    episode = Problem("linear").tasks(40, queries=6, seed=4)
    found = information(exact, episode, exclusive=False, supports=39)
    noise = NOISE["linear"] ** 2
    prior = ((episode.query_x * PRIOR[1]) ** 2).sum(-1) + noise
    variances = torch.stack([exact(one).variance for one in other_supports(episode, 39, 0)])
    expected = 0.5 * (prior.log() - variances.log()).mean(0)
    assert float(found.mean()) == pytest.approx(float(expected.mean()), abs=0.06)
    assert float(expected.mean()) > 0.5


def test_entropies_of_mixtures_are_of_the_mean_over_draws():
    """Two draws that say opposite things are one predictive that says nothing."""

    class Undecided(PyroModule):
        def forward(self, support_x, support_y, query_x, query_y=None, way=None):
            with pyro.plate("tasks", len(query_x), dim=-2):
                sign = pyro.sample("sign", dist.Normal(0.0, 1.0)).sign()
                with pyro.plate("queries", query_x.shape[1], dim=-1):
                    told = support_y[:, :1] * 2 - 1
                    pyro.sample("labels", dist.Categorical(logits=torch.stack([sign * told, -sign * told], -1)), obs=query_y)

    class Prior(PyroModule):
        def forward(self, support_x, support_y, query_x, query_y=None, way=None):
            with pyro.plate("tasks", len(query_x), dim=-2):
                pyro.sample("sign", dist.Normal(0.0, 1.0))

    found = support_information(Undecided(), Prior(), classes(way=2), exclusive=True)
    torch.testing.assert_close(found, torch.zeros(20, dtype=torch.float64), atol=1e-6, rtol=0)


def pooled(one):
    """The mean of the queries, which are seen together."""
    return dist.Normal(one.query_x.mean((1, 2))[:, None], 1.0)


def test_query_information_is_its_closed_form():
    episode = Problem("linear").tasks(6, queries=4, seed=0)
    found = query_information(Says(pooled), EmptyGuide(), episode)
    each, together = episode.query_x.mean(-1), episode.query_x.mean((1, 2))[:, None]
    expected = 0.5 * ((episode.query_y - each) ** 2 - (episode.query_y - together) ** 2).mean(-1)
    torch.testing.assert_close(found, expected)


def test_single_queries_lose_nothing_where_each_is_predicted_by_itself():
    model, episode = known_model(), Problem("linear").tasks(6, queries=4, seed=0)
    found = query_information(model, ConjugateGuide(model.prior, model.likelihood), episode)
    torch.testing.assert_close(found, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    model, guide = build()
    assert float(query_information(model, guide, sib_tasks()).abs().max()) > 1e-4


def test_methods_are_transductive_or_not():
    linear, episode = known_model(), Problem("linear").tasks(3, queries=4, seed=0)
    assert not is_transductive(linear, ConjugateGuide(linear.prior, linear.likelihood), episode)
    assert is_transductive(Says(pooled), EmptyGuide(), episode)
    slightly = lambda one: dist.Normal(one.query_x[..., 0] + 1e-6 * one.query_x.mean((1, 2))[:, None], 1.0)  # noqa: E731
    assert is_transductive(Says(slightly), EmptyGuide(), episode)
    assert not is_transductive(NearestMeanModel(DistancePredictor()).double(), EmptyGuide(), classes())
    assert is_transductive(*build(), sib_tasks())


def test_a_query_that_is_changed_may_change_itself():
    own = lambda one: dist.Normal(one.query_x[..., 0], one.query_x[..., 1].abs() + 1)  # noqa: E731
    assert not is_transductive(Says(own), EmptyGuide(), Problem("linear").tasks(3, queries=2, seed=0))


def test_variances_and_probabilities_count_too():
    episode = Problem("linear").tasks(3, queries=4, seed=0)
    wide = lambda one: dist.Normal(one.query_x[..., 0], 1 + one.query_x.abs().mean((1, 2))[:, None])  # noqa: E731
    assert is_transductive(Says(wide), EmptyGuide(), episode)
    batch = lambda one: dist.Categorical(logits=one.query_x - one.query_x.mean(1, keepdim=True))  # noqa: E731
    assert is_transductive(Says(batch), EmptyGuide(), episode)


def test_what_cannot_be_is_refused():
    linear = Problem("linear").tasks(16, queries=2, seed=0)
    with pytest.raises(UserError, match="17 tasks"):
        information(exact, linear, exclusive=False)
    with pytest.raises(UserError, match="`exclusive=False`"):
        information(exact, linear, exclusive=True)
    with pytest.raises(UserError, match="`supports="):
        information(exact, linear, exclusive=False, supports=0)
    with pytest.raises(UserError, match="`query_y`"):
        query_information(Says(exact), EmptyGuide(), linear.unlabelled())
    with pytest.raises(UserError, match="two queries"):
        is_transductive(Says(exact), EmptyGuide(), linear._replace(query_x=linear.query_x[:, :1]))


def test_the_bound_is_equation_9():
    bound = PacBayesBound(0.1, 3.0, tasks=51, queries=19, delta=0.1)
    assert bound.value == pytest.approx(0.1 + (1 / 6 + 0.1) * math.sqrt(3 + math.log(51 * 20 / 0.1)))
    assert bound.is_vacuous
    assert "vacuous" in str(bound)
    assert str(PacBayesBound(0.1, 0.0, tasks=20_000, queries=75)) == f"{0.1 + 0.08720 * math.sqrt(17.2284):.3f}"
    assert not PacBayesBound(0.1, 0.0, tasks=20_000, queries=75).is_vacuous


def test_rates_from_which_on_it_says_nothing_and_the_weight_of_the_rate():
    few, many = (PacBayesBound(0.0, 0.0, tasks=20_000, queries=queries) for queries in (15, 75))
    assert few.largest_rate() == pytest.approx(11, abs=0.2)
    assert many.largest_rate() == pytest.approx(114, abs=0.5)
    assert few.beta == pytest.approx(0.0245, abs=1e-4)
    at = [PacBayesBound(0.0, rate, tasks=20_000, queries=15).value for rate in (few.largest_rate(), 1e-3, 0.0)]
    assert at[0] == pytest.approx(1)
    assert (at[1] - at[2]) / 1e-3 == pytest.approx(few.beta, rel=1e-4), "the slope at 0"


@pytest.mark.parametrize("wrong", [{"loss": 1.1}, {"loss": -0.1}, {"rate": -1.0}, {"queries": 1}, {"tasks": 1}, {"delta": 0.0}])
def test_bounds_that_are_none_are_refused(wrong):
    with pytest.raises(UserError, match=f"`{next(iter(wrong))}="):
        PacBayesBound(**({"loss": 0.1, "rate": 1.0, "tasks": 10, "queries": 10, "delta": 0.05} | wrong))


def far(difference, scale):
    """P(|z| > 1) of z ~ N(difference, scale²)."""
    normal = dist.Normal(0.0, 1.0)
    return 1 - normal.cdf((1 - difference) / scale) + normal.cdf((-1 - difference) / scale)


def test_the_bound_holds_on_twenty_seeds():
    """Items z = c + ε with c ~ N(½, 1/4) of a task and ε ~ N(0, 1/4), loss 1[|z − θ| > 1], q(θ) = N(μ, 0.01) about the best μ
    of the training items under p(θ) = N(0, 1): losses in closed form."""
    scale = torch.tensor(0.1, dtype=torch.float64)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        centre = 0.5 + 0.5 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
        z = centre + 0.5 * torch.randn(40, 30, generator=generator, dtype=torch.float64)
        grid = torch.linspace(0, 1, 41, dtype=torch.float64)
        losses = far(z.flatten() - grid[:, None], scale).mean(-1)
        best = grid[losses.argmin()]
        rate = torch.distributions.kl_divergence(dist.Normal(best, scale), dist.Normal(0.0, 1.0))
        bound = PacBayesBound(float(losses.min()), float(rate), tasks=40, queries=30)
        risk = float(far(0.5 - best, (0.25 + 0.25 + scale**2).sqrt()))
        assert risk <= bound.value
        assert risk > 0.1
