"""Bayesian networks: estimators against each other, K posteriors against single ones, any module, priors by quadrature."""

import math

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import Predictive
from torch import nn
from torch.distributions import kl_divergence

from guides.mean_field import MeanFieldGuide, PointGuide
from inference.elbo import RateDistortionELBO
from models.bayesian.draws import DrawWhereUsed, Estimator, LocalLinear, call
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import (
    LaplaceWeightPrior,
    MixtureWeightPrior,
    PriorName,
    ScaleMixtureWeightPrior,
    SpikeAndSlabWeightPrior,
    build_weight_prior,
)
from models.distributions.diagonal import DiagonalGaussian, GaussianWeights
from models.distributions.scale_mixture import ScaleMixture
from models.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, PoissonLikelihood
from models.networks.classifiers import build_network


@pytest.fixture(autouse=True)
def double(float64):
    pass


def gaussian(module: nn.Module, scale: float = 0.3) -> dict[str, GaussianWeights]:
    return {
        name: GaussianWeights(p.detach().clone().requires_grad_(), torch.full_like(p, scale**2).requires_grad_())
        for name, p in module.named_parameters()
    }


def draws(network, weights, x, estimator, repeats=4000):
    with torch.no_grad():
        outputs = [
            call(network, weights, x, linear=Estimator(estimator), convolution=Estimator(estimator)) for _ in range(repeats)
        ]
    return torch.stack(outputs)


class TestEstimators:
    @pytest.mark.parametrize("estimator", Estimator)
    def test_linear_outputs_have_the_moments_of_drawn_weights(self, estimator):
        layer, x = nn.Linear(5, 3), torch.randn(4, 5)
        outputs = draws(layer, gaussian(layer), x, estimator)
        torch.testing.assert_close(outputs.mean(0), layer(x), atol=0.06, rtol=0)
        expected = (0.09 * (x.square().sum(1, keepdim=True) + 1)).expand(4, 3)
        torch.testing.assert_close(outputs.var(0), expected.contiguous(), atol=0, rtol=0.12)

    @pytest.mark.parametrize("estimator", ["flipout", "plain"])
    def test_convolutions_share_weights_among_positions(self, estimator):
        """Covariance of two positions of one output map, with the same input patch: equal to the variance."""
        layer, x = nn.Conv2d(1, 1, 3), torch.ones(2, 1, 3, 5)
        outputs = draws(layer, gaussian(layer), x, estimator)
        first, last = outputs[:, 0, 0, 0, 0], outputs[:, 0, 0, 0, 2]
        assert float(torch.corrcoef(torch.stack([first, last]))[0, 1]) == pytest.approx(1, abs=1e-6)
        assert float(first.var()) == pytest.approx(0.09 * 10, rel=0.1)

    def test_local_convolution_does_not(self):
        layer, x = nn.Conv2d(1, 1, 3), torch.ones(2, 1, 3, 5)
        outputs = draws(layer, gaussian(layer), x, "local")
        assert abs(float(torch.corrcoef(outputs[:, 0, 0, 0, ::2].T)[0, 1])) < 0.1

    def test_flipout_decorrelates_examples(self):
        layer, x = nn.Conv2d(2, 3, 3), torch.ones(2, 2, 3, 3)
        outputs = draws(layer, gaussian(layer), x, "flipout")[..., 0, 0]
        assert abs(float(torch.corrcoef(outputs[:, :, 1].T)[0, 1])) < 0.1

    def test_local_has_the_expected_gradient_of_plain_and_less_variance(self):
        """Gradients of a two-layer network's loss, averaged over many draws, and their variances."""
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        x, y = torch.randn(64, 4), torch.randint(3, (64,))

        def gradients(estimator, repeats=3000):
            found = []
            for _ in range(repeats):
                weights = gaussian(network, 0.2)
                flat = [part for w in weights.values() for part in w]
                loss = F.cross_entropy(call(network, weights, x, linear=Estimator(estimator)), y)
                found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, flat)]))
            return torch.stack(found)

        local, plain = gradients("local"), gradients("plain")
        error = (local.var(0) + plain.var(0)).div(3000).sqrt()
        assert float(((local.mean(0) - plain.mean(0)) / error).square().mean()) < 1.5
        assert float(local.var(0).sum()) < 0.2 * float(plain.var(0).sum())

    def test_written_out_gradient_is_the_automatic_one(self):
        """The linear layer against the same noise through autograd, alone and for several posteriors at once."""
        layer = nn.Linear(4, 3)

        def automatic(x, weight, variance, bias, bias_variance):
            scale = F.linear(x.square(), variance, bias_variance).sqrt()
            return F.linear(x, weight, bias) + scale * torch.randn_like(scale)

        parts = [
            torch.randn(2, 5, 4),
            layer.weight.expand(2, 3, 4),
            torch.rand(2, 3, 4),
            layer.bias.expand(2, 3),
            torch.rand(2, 3),
        ]
        for take in (lambda t: t[0], lambda t: t):
            gradients = []
            for function in (automatic, lambda *a: LocalLinear.apply(*a)[0]):
                leaves = [take(p).detach().clone().requires_grad_() for p in parts]
                torch.manual_seed(0)
                several = leaves[0].dim() == 3
                outputs = torch.func.vmap(function, randomness="different")(*leaves) if several else function(*leaves)
                gradients.append([outputs, *torch.autograd.grad(outputs.square().sum(), leaves)])
            torch.testing.assert_close(*gradients)

    def test_other_operations_get_one_draw(self):
        """Layer norm, an embedding and a product with a parameter: correct because drawn plainly, once."""

        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.norm, self.gain = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Parameter(torch.ones(4))

            def forward(self, tokens):
                return self.gain * self.norm(self.table(tokens)) - self.gain * self.norm(self.table(tokens))

        network = Odd()
        outputs = draws(network, gaussian(network), torch.tensor([0, 3]), "local", repeats=3)
        torch.testing.assert_close(outputs, torch.zeros_like(outputs))

    def test_sequences_share_weights_among_tokens(self):
        layer, x = nn.Linear(3, 2), torch.ones(1, 4, 3)
        weights = gaussian(layer)
        with torch.no_grad(), DrawWhereUsed(weights):
            outputs = torch.func.functional_call(layer, {n: w.loc for n, w in weights.items()}, (x,))
        torch.testing.assert_close(outputs[:, :1].expand_as(outputs), outputs)

    @pytest.mark.parametrize("estimator", Estimator)
    def test_gradients_of_a_linear_layer_over_tokens(self, estimator):
        """The means' gradient of a sum of outputs is the sum of inputs, whatever the noise."""
        layer, x = nn.Linear(3, 2), torch.randn(5, 4, 3)
        weights = gaussian(layer)
        call(layer, weights, x, convolution=estimator).sum().backward()
        torch.testing.assert_close(weights["weight"].loc.grad, x.sum((0, 1)).expand(2, 3))
        torch.testing.assert_close(weights["bias"].loc.grad, torch.full((2,), 20.0))

    def test_a_layer_used_twice_is_refused(self):
        layer = nn.Linear(3, 3)
        with pytest.raises(ValueError, match="used twice"):
            call(nn.Sequential(layer, layer), gaussian(nn.Sequential(layer, layer)), torch.ones(2, 3))


def objective(network, x, posteriors=1, prior=None, num_data=None, **options):
    model = BayesianNetwork(network, prior, posteriors=posteriors, num_data=num_data, **options)
    guide = MeanFieldGuide(model.initial_weights(posteriors), 0.1)
    return RateDistortionELBO(beta=1.0)(model, guide)


class TestPosteriors:
    def test_side_by_side_equals_one_by_one(self):
        """Without noise (σ → 0) K networks give the K outputs, distortions and gradients of single ones."""
        network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        x, y = torch.randn(3, 7, 3), torch.randint(2, (3, 7))
        many = objective(network, x, posteriors=3)
        with torch.no_grad():
            many.guide.log_scale.fill_(-30)
        terms = many.terms(x, y)
        terms.loss.backward()
        for k in range(3):
            single = objective(network, x)
            with torch.no_grad():
                single.guide.loc.copy_(many.guide.loc[k : k + 1])
                single.guide.log_scale.fill_(-30)
            one = single.terms(x[k], y[k])
            one.loss.backward()
            torch.testing.assert_close(single.guide.loc.grad[0], many.guide.loc.grad[k])

    def test_minibatches_have_the_full_batch_loss_in_expectation(self):
        """Over all batches of an epoch, scaled to n; the rate is counted once in each."""
        network = nn.Linear(3, 2)
        x, y = torch.randn(12, 3), torch.randint(2, (12,))
        batched = objective(network, x, num_data=12)
        with torch.no_grad():
            batched.guide.log_scale.fill_(-30)
        full = batched.terms(x, y)
        parts = [batched.terms(a, b) for a, b in zip(x.split(4), y.split(4), strict=True)]
        torch.testing.assert_close(torch.stack([p.distortion for p in parts]).mean(), full.distortion)
        for part in parts:
            torch.testing.assert_close(part.rate, full.rate)

    def test_vectorised_particles(self):
        network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        model = BayesianNetwork(network, posteriors=2)
        guide = MeanFieldGuide(model.initial_weights(2), 0.1)
        many = RateDistortionELBO(num_particles=300, vectorize_particles=True, max_plate_nesting=2)(model, guide)
        one = RateDistortionELBO()(model, guide)
        x, y = torch.randn(2, 5, 3), torch.randint(2, (2, 5))
        with torch.no_grad():
            mean = torch.stack([one.terms(x, y).distortion for _ in range(300)]).mean()
            assert float(many.terms(x, y).distortion) == pytest.approx(float(mean), rel=0.05)
        torch.testing.assert_close(many.terms(x, y).rate, one.terms(x, y).rate)

    @pytest.mark.parametrize("name", ["lenet", "mlp"])
    @pytest.mark.parametrize("posteriors", [1, 3])
    def test_images(self, name, posteriors):
        network = build_network(name, (1, 16, 16), 10, hidden=(8,)).double()
        x = torch.randn(4, 1, 16, 16) if posteriors == 1 else torch.randn(posteriors, 4, 1, 16, 16)
        built = objective(network, x, posteriors=posteriors)
        terms = built.terms(x, torch.randint(10, x.shape[:-3]))
        terms.loss.backward()
        assert bool((built.guide.loc.grad != 0).any())
        assert bool(built.guide.log_scale.grad.isfinite().all())

    def test_resnet18_and_chosen_layers(self):
        network = build_network("resnet18", (3, 32, 32), 10).double()
        x = torch.randn(2, 3, 32, 32)
        built = objective(network, x, random=lambda name: name.startswith("2."))
        assert set(built.model.shapes) == {"2.weight", "2.bias"}
        built.terms(x, torch.tensor([0, 1])).loss.backward()
        assert network[1] is not built.model.network[1], "the caller's network is copied"
        everything = objective(network, x)
        everything.terms(x, torch.tensor([0, 1])).loss.backward()
        assert bool(everything.guide.loc.grad.isfinite().all())
        with pytest.raises(ValueError, match="batch norm"):
            BayesianNetwork(network, posteriors=2)

    @pytest.mark.parametrize(
        ("likelihood", "outputs"),
        [(CategoricalLikelihood(), 3), (GaussianLikelihood(0.5), 1), (BernoulliLikelihood(), 1), (PoissonLikelihood(), 1)],
    )
    def test_likelihoods_sample_and_score(self, likelihood, outputs):
        model = BayesianNetwork(nn.Linear(2, outputs), None, likelihood)
        guide = MeanFieldGuide(model.initial_weights(1), 0.1)
        x = torch.randn(6, 2)
        pyro.set_rng_seed(1)
        y = model(x).squeeze(0)
        assert y.shape == (6,)
        terms = RateDistortionELBO()(model, guide).terms(x, y)
        assert bool(terms.loss.isfinite())
        samples = Predictive(model.eval(), guide=guide.eval(), num_samples=5)(x)
        assert samples["weights"].shape == (5, 1, 1, model.num_weights)
        assert samples["labels"].shape == (5, 1, 6)

    def test_points_at_beta_zero_are_the_plain_network(self):
        network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        model = BayesianNetwork(network)
        plain = RateDistortionELBO(beta=0.0)(model, PointGuide(model.initial_weights(1)))
        x, y = torch.randn(5, 3), torch.randint(2, (5,))
        torch.testing.assert_close(plain(x, y), F.cross_entropy(network(x), y, reduction="sum"))

    def test_fewer_than_one_posterior_is_refused(self):
        with pytest.raises(ValueError, match="at least one"):
            BayesianNetwork(nn.Linear(2, 2), posteriors=0)


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
        built = objective(nn.Linear(3, 2), None, prior=build_weight_prior(name, 0.7))
        built.terms(torch.randn(4, 3), torch.zeros(4, dtype=torch.long)).loss.backward()
        assert bool(built.guide.log_scale.grad.isfinite().all())

    def test_unknown_prior_names_the_choices(self):
        with pytest.raises(ValueError, match=r"unknown prior 'cauchy': choose gaussian, laplace"):
            build_weight_prior("cauchy")
