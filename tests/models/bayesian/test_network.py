"""Bayesian networks: estimators against each other, K posteriors against single ones, any module."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import Predictive, TraceMeanField_ELBO
from torch import nn

from guides.low_rank import LowRankGuide
from guides.mean_field import MeanFieldGuide, PointGuide
from inference.direct import direct_traces
from inference.elbo import RateDistortionELBO
from models.bayesian.draws import DrawWhereUsed, Estimator, call, local
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior, LaplaceWeightPrior, MixtureWeightPrior, ScaledWeightPrior
from models.bayesian.weight_scales import PriorScales, WeightScales
from models.distributions.diagonal import GaussianWeights
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

    @pytest.mark.slow
    def test_local_has_the_expected_gradient_of_plain_and_less_variance(self):
        """Gradients of a two-layer network's loss, averaged over many draws, and their variances."""
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        x, y = torch.randn(64, 4), torch.randint(3, (64,))

        def gradients(estimator, repeats=3000):
            found = []
            for _ in range(repeats):
                weights = gaussian(network, 0.2)
                flat = [part for w in weights.values() for part in (w.loc, w.variance)]
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

        def written_out(x, *parts):
            return local(F.linear, x, GaussianWeights(*parts[:2]), GaussianWeights(*parts[2:]), {})

        parts = [
            torch.randn(2, 5, 4),
            layer.weight.expand(2, 3, 4),
            torch.rand(2, 3, 4),
            layer.bias.expand(2, 3),
            torch.rand(2, 3),
        ]
        for take in (lambda t: t[0], lambda t: t):
            gradients = []
            for function in (automatic, written_out):
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

    @pytest.mark.parametrize("posteriors", [1, 3])
    def test_loss_and_gradients_are_those_of_pyros_own_trace(self, posteriors):
        """Two layers and the rate, written with Pyro's Normal and automatic differentiation, under the same noise."""
        network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        leading = () if posteriors == 1 else (posteriors,)
        x, y = torch.randn(*leading, 7, 3), torch.randint(2, (*leading, 7))
        ours = objective(network, x, posteriors=posteriors, num_data=70, prior=GaussianWeightPrior(0.7))
        q = copy.deepcopy(ours.guide)
        shapes = list(ours.model.shapes.values())

        def guide(x, y):
            with pyro.plate("posteriors", posteriors, dim=-2):
                loc, scale = q.standard_loc.unsqueeze(-2), q.standard_log_scale.exp().unsqueeze(-2)
                pyro.sample("weights", dist.Normal(loc, scale).to_event(1))

        def parts(vectors):
            split = vectors.split([shape.numel() for shape in shapes], -1)
            return [part.unflatten(-1, shape) for part, shape in zip(split, shapes, strict=True)]

        def model(x, y):
            with pyro.plate("posteriors", posteriors, dim=-2):
                pyro.sample("weights", dist.Normal(0.0, 0.7).expand([ours.model.num_weights]).to_event(1))
                torch.manual_seed(1)
                hidden, means, variances = x, parts(q.standard_loc), parts((2 * q.standard_log_scale).exp())
                for i in (0, 2):
                    mean = hidden @ means[i].mT + means[i + 1].unsqueeze(-2)
                    variance = hidden.square() @ variances[i].mT + variances[i + 1].unsqueeze(-2)
                    hidden = mean + variance.sqrt() * torch.randn_like(mean)
                    hidden = hidden.relu() if i == 0 else hidden
                with pyro.plate("data", 70, subsample=torch.arange(7), dim=-1):
                    pyro.sample("labels", dist.Categorical(logits=hidden), obs=y)

        expected = TraceMeanField_ELBO().differentiable_loss(model, guide, x, y)
        torch.manual_seed(1)
        loss = ours(x, y)
        torch.testing.assert_close(loss, expected, atol=0, rtol=1e-12)
        for found, wanted in zip(ours.guide.parameters(), q.parameters(), strict=True):
            gradients = (
                torch.autograd.grad(loss, found, retain_graph=True),
                torch.autograd.grad(expected, wanted, retain_graph=True),
            )
            torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-10)

    @pytest.mark.parametrize("posteriors", [1, 3])
    @pytest.mark.parametrize("case", ["laplace", "mixture", "scaled", "noise", "zeros and ones", "low-rank"])
    def test_sites_say_what_handlers_follow(self, monkeypatch, case, posteriors):
        """Every number of both terms and every gradient, under the same noise."""
        network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1 if case == "zeros and ones" else 2))
        likelihoods = {"noise": GaussianLikelihood(0.5, outputs=2), "zeros and ones": BernoulliLikelihood()}
        model = BayesianNetwork(network, None, likelihoods.get(case), num_data=70, posteriors=posteriors)
        means = model.initial_weights(posteriors)
        scales = WeightScales(model.shapes, PriorScales.LAYER, posteriors) if case == "scaled" else None
        if case == "laplace":
            model.prior = LaplaceWeightPrior(0.7)
        elif case == "mixture":
            model.prior = MixtureWeightPrior(torch.randn(4, model.num_weights), torch.randn(4, model.num_weights))
        elif scales is not None:
            model.prior = ScaledWeightPrior(GaussianWeightPrior(0.7), scales)
        guide = (LowRankGuide if case == "low-rank" else MeanFieldGuide)(means, 0.1, scales=scales)
        leading = () if posteriors == 1 else (posteriors,)
        x = torch.randn(*leading, 7, 3)
        y = torch.randn(*leading, 7, 2) if case == "noise" else torch.randint(2, (*leading, 7))
        objective = RateDistortionELBO(beta=0.7)(model.double(), guide.double())
        assert direct_traces(model, guide, (x, y), {}) is not None
        found = []
        for short_cut in (direct_traces, lambda *call: None):
            monkeypatch.setattr("inference.elbo.direct_traces", short_cut)
            torch.manual_seed(1)
            terms = objective.terms(x, y)
            learned = [p for p in objective.parameters() if p.requires_grad]
            found.append([terms.distortion, terms.rate, *torch.autograd.grad(terms.loss, learned)])
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)

    def test_programs_without_labels_or_with_more_parameters_are_followed(self):
        x, y = torch.randn(4, 3), torch.randint(2, (4,))
        whole = objective(nn.Linear(3, 2), x)
        assert direct_traces(whole.model, whole.guide, (x, y), {}) is not None
        assert direct_traces(whole.model, whole.guide, (x,), {}) is None
        part = objective(nn.Linear(3, 2), x, random=lambda name: name == "weight")
        assert direct_traces(part.model, part.guide, (x, y), {}) is None

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

    @pytest.mark.slow
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

    def test_each_posterior_has_its_own_noise(self):
        """The distortion of K posteriors side by side is that of K single ones with their noises; so are the gradients."""
        network, noises = nn.Linear(3, 1), torch.tensor([0.3, 1.0, 2.0])
        model = BayesianNetwork(network, None, GaussianLikelihood(0.7), posteriors=3)
        assert model.likelihood.log_noise.shape == (3,)
        with torch.no_grad():
            model.likelihood.log_noise.copy_(noises.log())
        many = RateDistortionELBO()(model, PointGuide(model.initial_weights(3)))
        x, y = torch.randn(3, 7, 3), torch.randn(3, 7)
        loss = many.terms(x, y).distortion
        loss.backward()
        total = 0.0
        for k in range(3):
            single = BayesianNetwork(network, None, GaussianLikelihood(noises[k]))
            one = RateDistortionELBO()(single, PointGuide(many.guide.loc[k : k + 1].detach()))
            part = one.terms(x[k], y[k]).distortion
            part.backward()
            torch.testing.assert_close(single.likelihood.log_noise.grad, model.likelihood.log_noise.grad[k])
            total = total + part
        torch.testing.assert_close(loss, total)

    def test_integer_targets_of_a_bernoulli_are_its_zeros_and_ones(self):
        model = BayesianNetwork(nn.Linear(2, 1), None, BernoulliLikelihood())
        objective = RateDistortionELBO(beta=0.0)(model, PointGuide(model.initial_weights(1)))
        x, y = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
        torch.testing.assert_close(objective(x, y), objective(x, y.double()))

    def test_points_at_beta_zero_are_the_plain_network(self):
        network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        model = BayesianNetwork(network)
        plain = RateDistortionELBO(beta=0.0)(model, PointGuide(model.initial_weights(1)))
        x, y = torch.randn(5, 3), torch.randint(2, (5,))
        torch.testing.assert_close(plain(x, y), F.cross_entropy(network(x), y, reduction="sum"))

    def test_fewer_than_one_posterior_is_refused(self):
        with pytest.raises(ValueError, match="at least one"):
            BayesianNetwork(nn.Linear(2, 2), posteriors=0)


@pytest.mark.parametrize("posteriors", [1, 3])
@pytest.mark.parametrize("guide_class", [MeanFieldGuide, LowRankGuide])
def test_autocast_shortens_products_alone(guide_class, posteriors):
    """Rate to the digit and densities in float32, gradients close, while layers multiply in bfloat16."""
    torch.manual_seed(0)
    model = BayesianNetwork(build_network("mlp", (1, 8, 8), 10, hidden=(64,)), num_data=200, posteriors=posteriors)
    model.prior = GaussianWeightPrior(torch.linspace(0.5, 2, model.num_weights))
    guide = guide_class(model.float().initial_weights(posteriors).float()).float()
    objective = RateDistortionELBO()(model, guide)
    leading = () if posteriors == 1 else (posteriors,)
    x, y = torch.randn(*leading, 200, 1, 8, 8, dtype=torch.float32), torch.randint(10, (*leading, 200))
    gradients, terms = [], []
    for enabled in (False, True):
        torch.manual_seed(1)
        guide.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms.append(objective.terms(x, y))
        terms[-1].loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in guide.parameters()]))
    exact, short = terms
    assert short.rate == exact.rate
    assert short.distortion.dtype is torch.float32
    assert short.distortion != exact.distortion
    assert torch.isclose(short.distortion, exact.distortion, rtol=1e-3)
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()
