"""What the posterior of tasks writes: groups that mean what ArviZ takes them to mean, and leave-one-out that is exact."""

import arviz
import pytest
import torch
from torch.nn.functional import one_hot

from inference.evaluation.arviz import LOO
from inference.evaluation.posterior import infer
from inference.evaluation.predictive import predictive
from inference.meta.options import SibOptions
from inference.meta.regression import TEST, scored_tasks
from tests.inference.meta.test_learner import BANK, learner, task
from tests.inference.meta.test_regression import NOISE, exact_loo, known_objective


def drawn(variable) -> torch.Tensor:
    """All draws of a variable, chains one behind the other."""
    return torch.tensor(variable.values).flatten(0, 1)


def linear(beta=1.0, tasks=8):
    """The exact posterior of linear tasks, and the tasks."""
    objective = known_objective(beta)
    episode = scored_tasks(SibOptions(data="linear", test_tasks=tasks), TEST)
    return infer(objective.model, objective.guide, episode, beta=beta), episode


class TestGroups:
    def test_are_the_same_every_time(self):
        posterior = learner().posterior(*task())
        one, two = (posterior.to_arviz(num_samples=16) for _ in range(2))
        for group in one.groups():
            assert one[group].equals(two[group]), group

    def test_hold_draws_of_what_they_say(self):
        """Label draws follow their own probabilities, and the observed data are the support's labels."""
        posterior = learner().posterior(*task())
        data = posterior.to_arviz(num_samples=2000)
        assert data.observed_data["labels"].values.tolist() == [[0, 1, 2]]
        for group, query_x in (("predictions", None), ("posterior_predictive", posterior.episode.support_x)):
            shares = one_hot(drawn(data[group]["labels"]), 3).double().mean(0)
            expected = posterior.predictive(query_x, num_samples=2000).probabilities().double()
            torch.testing.assert_close(shares, expected, atol=0.06, rtol=0)
        prior = drawn(data.prior_predictive["labels"]).double()
        assert (prior.mean(0) - 1).abs().max() < 0.1, "before any data every class is as likely"
        before = drawn(data.prior["weights"])
        torch.testing.assert_close(before.mean((0, 1, 2)), posterior.model.prior.loc.detach(), atol=0.1, rtol=0)

    def test_log_likelihood_is_of_the_support_and_known_labels_are_predictions(self):
        chosen = learner()
        posterior = chosen.posterior(*task())
        data = posterior.to_arviz(torch.zeros(1, 6, dtype=torch.long), num_samples=400, class_names=("a", "b", "c"))
        assert list(data.posterior["class"].values) == list(data.predictions["class"].values) == ["a", "b", "c"]
        support = posterior.episode
        on_support = predictive(chosen.model, chosen.guide, support, query_x=support.support_x, num_samples=4000)
        expected, found = on_support.log_likelihood(support.support_y), drawn(data.log_likelihood["labels"])
        assert data.log_likelihood["labels"].dims == ("chain", "draw", "task", "support")
        error = (found.mean(0) - expected.mean(0)) / (found.std(0) / len(found) ** 0.5)
        assert float(error.abs().max()) < 4.5, "standard errors, of three"
        density, probabilities = (drawn(data.predictions[name]) for name in ("log_density", "probabilities"))
        torch.testing.assert_close(density, probabilities[..., 0].log())
        predicted = torch.tensor(data.predictions_constant_data["log_predictive_density"].values)
        torch.testing.assert_close(predicted, probabilities[..., 0].mean(0).log())
        assert (data.attrs["dataset"], data.attrs["variant"]) == ("bank", chosen.variant.name)

    def test_without_a_support_there_is_nothing_observed(self):
        empty = BANK.items[:0][None], torch.empty(1, 0, dtype=torch.long)
        data = learner(initialisation="queries", way=3).posterior(*empty, BANK.items[None, :6]).to_arviz(num_samples=16)
        assert set(data.groups()) == {"posterior", "prior", "predictions", "predictions_constant_data"}

    def test_without_latent_sites_there_is_no_posterior(self):
        data = learner(methods="nearest-mean").posterior(*task()).to_arviz(num_samples=16)
        assert not {"posterior", "prior", "prior_predictive"} & set(data.groups())
        assert "no variable is latent" in data.attrs["draws"]

    def test_latent_hyperparameters_are_in_the_posterior(self):
        data = learner(prior="hierarchical").posterior(*task()).to_arviz(num_samples=16)
        assert data.posterior["prior_loc"].dims == data.prior["prior_loc"].dims == ("chain", "draw", "feature")
        assert data.posterior["weights"].dims == ("chain", "draw", "task", "class", "feature")

    def test_regression_has_numbers_and_no_classes(self):
        posterior, episode = linear()
        data = posterior.to_arviz(episode.query_y, num_samples=400)
        assert data.posterior["weights"].dims == ("chain", "draw", "task", "feature")
        assert set(data.predictions.data_vars) == {"y", "mean", "log_density"}
        assert "class" not in data.predictions.dims
        means = torch.einsum("std,tnd->stn", drawn(data.posterior["weights"]).double(), episode.support_x)
        assert float((drawn(data.posterior_predictive["y"]) - means).std()) == pytest.approx(NOISE, rel=0.03)


class TestAttributes:
    @pytest.mark.parametrize(
        ("options", "loo"),
        [({}, "amortized"), ({"posterior": "delta"}, "point"), ({"methods": "nearest-mean"}, "point")],
    )
    def test_say_what_loo_is_of_classifiers(self, options, loo):
        assert learner(**options).posterior(*task()).to_arviz(num_samples=16).attrs["loo"] == LOO[loo]

    def test_say_what_loo_is_of_an_exact_posterior(self):
        for beta, kind in ((1.0, "exact"), (0.5, "tempered")):
            data = linear(beta)[0].to_arviz(num_samples=16)
            assert (data.attrs["loo"], data.attrs["conditioned_on"]) == (LOO[kind], "the support's labels")

    def test_say_that_the_reference_saw_labels(self):
        exact = learner(gradient="exact")
        data = exact.posterior(*task(), query_y=torch.arange(6) % 3).to_arviz(num_samples=16)
        assert "labels of support and queries" in data.attrs["conditioned_on"]


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # some points of ten are influential, and ArviZ says so
class TestLeaveOneOut:
    def test_is_exact_leave_one_out_of_linear_regression(self):
        posterior, episode = linear()
        loo = arviz.loo(posterior.to_arviz(num_samples=1000), pointwise=True)
        error = torch.tensor(loo.loo_i.values) - exact_loo(episode)
        assert float(error.abs().mean()) < 0.05, "nats per point"
        assert abs(float(loo.elpd_loo) - float(exact_loo(episode).sum())) / error.numel() < 0.05

    def test_of_a_tempered_posterior_weighs_by_another_power(self):
        """What the attribute says: weights p(y_i given w)^(−1/β), not p(y_i given w)^(−1)."""
        beta = 0.5
        posterior, episode = linear(beta)
        density = posterior.to_arviz(num_samples=2000).log_likelihood["y"]
        weights, _ = arviz.psislw(-density.stack(__sample__=("chain", "draw")) / beta)
        terms = density.stack(__sample__=("chain", "draw")) + weights
        found = torch.tensor(terms.values).logsumexp(-1)
        naive = torch.tensor(arviz.loo(posterior.to_arviz(num_samples=2000), pointwise=True).loo_i.values)
        error, wrong = (float((value - exact_loo(episode, beta)).abs().mean()) for value in (found, naive))
        assert error < 0.06
        assert wrong > 2 * error
