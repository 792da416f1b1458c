"""Priors over weights: KLs against quadrature, the refreshed mixture, names."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from guides.mean_field import MeanFieldGuide
from inference.elbo import RateDistortionELBO
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import (
    GaussianWeightPrior,
    LaplaceWeightPrior,
    MixtureWeightPrior,
    PriorName,
    ScaledWeightPrior,
    ScaleMixtureWeightPrior,
    SpikeAndSlabWeightPrior,
    build_weight_prior,
)
from models.bayesian.weight_scales import PriorScales, WeightScales
from models.distributions.diagonal import DiagonalGaussian
from models.distributions.scale_mixture import ScaleMixture


@pytest.fixture(autouse=True)
def double(float64):
    pass


def quadrature(loc, scale, p):
    grid = loc + scale * torch.linspace(-12, 12, 400_001)
    q = torch.distributions.Normal(loc, scale)
    return float(torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)), grid))


class TestPriors:
    @pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.7, 0.2), (-2.0, 0.05)])
    def test_closed_forms_equal_quadrature(self, loc, scale):
        q = DiagonalGaussian(torch.tensor([loc]), torch.tensor([scale]).log())
        p = torch.distributions.Normal(0.3, 0.8)
        torch_normal = torch.distributions.Independent(p.expand([1]), 1)
        assert float(kl_divergence(q, torch_normal)) == pytest.approx(quadrature(loc, scale, p), rel=1e-6)
        laplace = LaplaceWeightPrior(0.6)(1)
        assert float(kl_divergence(q, laplace)) == pytest.approx(quadrature(loc, scale, laplace.base_dist), rel=1e-5)

    @pytest.mark.parametrize("prior", [ScaleMixtureWeightPrior, SpikeAndSlabWeightPrior])
    @pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.7, 0.2), (0.001, 0.002)])
    def test_scale_mixtures_bound_and_sample_the_quadrature(self, prior, loc, scale):
        q = DiagonalGaussian(torch.full((1,), loc), torch.full((1,), scale).log())
        component = prior()(1).base_dist
        exact = quadrature(loc, scale, ScaleMixture(component.logits, component.scales))
        bound = float(kl_divergence(q, prior(kl="bound")(1)))
        many = DiagonalGaussian(torch.full((200_000,), loc), torch.full((200_000,), scale).log())
        sampled = float(kl_divergence(many, prior(kl="monte_carlo")(200_000))) / 200_000
        assert exact - 1e-9 <= bound <= exact + math.log(2)
        assert sampled == pytest.approx(exact, abs=0.02)

    def test_gaussian_rate_gradients(self):
        loc, log_scale = torch.randn(2, 1, 6, requires_grad=True), torch.randn(2, 1, 6, requires_grad=True)
        prior = torch.distributions.Independent(torch.distributions.Normal(torch.randn(6), torch.rand(6) + 0.1), 1)
        shared = build_weight_prior("gaussian", 0.5)(6).expand([2, 1])
        for p in (prior, shared):
            rate = lambda a, b, p=p: kl_divergence(DiagonalGaussian(a, b), p)  # noqa: E731
            assert torch.autograd.gradcheck(rate, (loc, log_scale))
            torch.testing.assert_close(rate(loc, log_scale), kl_divergence(DiagonalGaussian(loc, log_scale).as_normal(), p))

    def test_mixture_marginal_is_refreshed_and_bounded_by_log_k(self):
        prior = MixtureWeightPrior.standard(3, 50)
        q = DiagonalGaussian(torch.randn(50), torch.full((50,), -2.0))
        torch.testing.assert_close(kl_divergence(q, prior(50)), kl_divergence(q, build_weight_prior("gaussian")(50)))
        prior.refresh(slice(1, 2), q.loc[None], q.log_scale[None])
        assert float(kl_divergence(q, prior(50))) == pytest.approx(math.log(3), abs=1e-6)

    def test_rate_of_a_long_vector_is_exact_in_single_precision(self):
        """A network's weights: the parts are millions of nats, their sum log K."""
        torch.set_default_dtype(torch.float32)
        loc, log_scale = 0.1 * torch.randn(4, 400_000), torch.randn(4, 400_000) - 4
        prior = MixtureWeightPrior(loc, log_scale)
        rate = kl_divergence(DiagonalGaussian(loc, log_scale), prior(400_000))
        torch.testing.assert_close(rate, torch.full((4,), math.log(4)), atol=1e-3, rtol=0)

    @pytest.mark.parametrize("name", PriorName)
    def test_every_prior_trains_a_network(self, name):
        model = BayesianNetwork(nn.Linear(3, 2), build_weight_prior(name, 0.7))
        built = RateDistortionELBO(beta=1.0)(model, MeanFieldGuide(model.initial_weights(1), 0.1))
        built.terms(torch.randn(4, 3), torch.zeros(4, dtype=torch.long)).loss.backward()
        assert bool(built.guide.log_scale.grad.isfinite().all())

    def test_unknown_prior_names_the_choices(self):
        with pytest.raises(ValueError, match=r"unknown prior 'cauchy': choose gaussian, laplace"):
            build_weight_prior("cauchy")

    def test_only_the_mixture_sees_the_data(self):
        """A rate against it bounds nothing; against the others it bounds what the weights know of the training set."""
        assert MixtureWeightPrior.standard(2, 3).sees_data
        assert not any(build_weight_prior(name).sees_data for name in PriorName)

    def test_mixture_is_made_anew_when_its_components_change(self):
        """Kept from step to step, but never for other tensors: not after a refresh, a load or a change of type."""
        prior = MixtureWeightPrior.standard(2, 3)
        first = prior(3)
        assert prior(3) is first
        prior.load_state_dict({"loc": torch.ones(2, 3), "log_scale": torch.zeros(2, 3)})
        torch.testing.assert_close(prior(3).loc, torch.ones(2, 3))
        assert prior.float()(3).loc.dtype == torch.float32


def test_a_mixture_is_its_start_until_there_are_posteriors():
    start = ScaledWeightPrior(GaussianWeightPrior(3.0), WeightScales({"weight": (1, 4)}, PriorScales.LAYER))
    mixture = MixtureWeightPrior.standard(2, 4, start)
    q = DiagonalGaussian(torch.randn(1, 4), torch.zeros(1, 4))
    torch.testing.assert_close(kl_divergence(q, mixture(4)), kl_divergence(q, start(4)))
    mixture.begin()
    torch.testing.assert_close(mixture.log_scale.exp(), torch.full((2, 4), 1.5))  # 3 units of 1/√4
    torch.testing.assert_close(kl_divergence(q, mixture(4)), kl_divergence(q, start(4)).detach())
    restored = MixtureWeightPrior.standard(2, 4, start)
    restored.load_state_dict(mixture.state_dict())
    assert restored.begun
