"""RateDistortionELBO on conjugate linear regression: posterior, evidence and empirical Bayes are exact."""

import pytest
import torch
from torch import nn

from data.regression import linear_evidence, linear_posterior, linear_tasks
from guides.tasks.free import FullCovarianceGuide
from guides.tasks.hyper import HyperGuide
from guides.tasks.rules import GradientStep
from guides.tasks.starts import RidgeStart
from guides.tasks.synthetic import SyntheticGradientGuide
from inference.elbo import RateDistortionELBO
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior, HierarchicalGaussianPrior
from tests.conftest import descend

NOISE = 0.5


@pytest.mark.usefixtures("float64")
class TestConjugateRegression:
    """Bayesian linear regression, where posterior, evidence and empirical-Bayes optimum are known."""

    tasks, queries, dim = 6, 30, 3

    def problem(self):
        loc, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.7, 0.3, 1.2])
        episode = linear_tasks(self.tasks, self.queries, loc, scale, noise=NOISE, seed=4)
        return loc, scale, episode.to(dtype=torch.float64)

    def fit(self, model, guide, data, *, steps=1500, particles=8):
        objective = RateDistortionELBO(beta=1.0, num_particles=particles, vectorize_particles=True, max_plate_nesting=2)(
            model, guide
        )
        descend(objective, *data, steps=steps)
        return objective

    def model(self, prior):
        predictor = LinearPredictor(1.0, learned=False)
        return EmpiricalBayesModel(prior, predictor, GaussianLikelihood(NOISE, learned=False)).double()

    @pytest.mark.slow
    def test_posterior_and_evidence_are_exact(self):
        loc, scale, data = self.problem()
        prior = GaussianPrior(loc, scale).requires_grad_(False)
        guide = FullCovarianceGuide(torch.zeros(self.tasks, 1, self.dim), torch.ones(()))
        objective = self.fit(self.model(prior), guide, data)
        mean, covariance = linear_posterior(data.query_x, data.query_y, loc, scale, NOISE)
        torch.testing.assert_close(guide.loc.detach()[:, 0], mean, atol=0.02, rtol=0)
        torch.testing.assert_close(guide.covariance().detach(), covariance, atol=0.004, rtol=0.05)
        elbo = -torch.stack([objective(*data).detach() for _ in range(300)]).mean()
        evidence = linear_evidence(data.query_x, data.query_y, loc, scale, NOISE).sum()
        assert elbo <= evidence + 0.05
        assert float(elbo) == pytest.approx(float(evidence), abs=0.1)

    @pytest.mark.slow
    def test_empirical_bayes_reaches_type_two_maximum_likelihood(self):
        _, _, data = self.problem()
        optimum = nn.ParameterList([torch.zeros(self.dim), torch.zeros(self.dim)])
        exact = torch.optim.LBFGS(optimum.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def closure():
            exact.zero_grad()
            loss = -linear_evidence(data.query_x, data.query_y, optimum[0], optimum[1].exp(), NOISE).sum()
            loss.backward()
            return loss

        exact.step(closure)
        prior = GaussianPrior(torch.zeros(self.dim), torch.ones(self.dim))
        guide = FullCovarianceGuide(torch.zeros(self.tasks, 1, self.dim), torch.ones(()))
        self.fit(self.model(prior), guide, data, steps=3000)
        torch.testing.assert_close(prior.loc.detach(), optimum[0].detach(), atol=0.03, rtol=0)
        torch.testing.assert_close(prior.log_scale.detach(), optimum[1].detach(), atol=0.06, rtol=0)

    def test_mean_field_variance_is_the_inverse_diagonal_precision(self):
        loc, scale, data = self.problem()
        start = RidgeStart(loc, scale, NOISE).double()
        mean, covariance = linear_posterior(data.query_x, data.query_y, loc, scale, NOISE)
        found, log_scale = start(data.query_x, data.query_y, data.query_x, 1)
        torch.testing.assert_close(found[:, 0], mean)
        expected = torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1).rsqrt()
        torch.testing.assert_close(log_scale.exp()[:, 0], expected)

    @pytest.mark.slow
    def test_hierarchical_bayes_concentrates_on_the_true_prior_with_many_tasks(self):
        """Equation 2: q(ψ) covers the ψ that made 300 tasks, and is narrower than p(ψ)."""
        loc, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.7, 0.3, 1.2])
        data = linear_tasks(300, 40, loc, scale, noise=NOISE, seed=1).to(dtype=torch.float64)
        data = data._replace(support_x=data.query_x, support_y=data.query_y)
        prior = HierarchicalGaussianPrior(torch.zeros(3), torch.ones(3), width=2.0)
        model = self.model(prior)
        hyper = HyperGuide(prior)
        guide = SyntheticGradientGuide(
            prior, model.predictor, RidgeStart(loc, scale, NOISE), nn.Identity(), GradientStep(0, 3), steps=0, hyper=hyper
        ).double()
        self.fit(model, guide, data, steps=600, particles=4)
        width = hyper.log_scales[0].exp()
        assert (width < 0.3).all()
        torch.testing.assert_close(hyper.locs[0].detach(), loc, atol=0.15, rtol=0)
        torch.testing.assert_close(hyper.locs[1].exp().detach(), scale, atol=0.12, rtol=0)
