"""Laplace's approximation: curvature against autograd, exactness in linear regression, and every reading of its steps."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import validation_enabled
from pyro.util import check_model_guide_match
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import kl_divergence

from data.episodes import Episode
from data.regression import linear_evidence, linear_posterior
from guides.tasks.conjugate import ConjugateGuide
from guides.tasks.every_step import EveryStep, step_weights
from guides.tasks.families import Family
from guides.tasks.gate import PriorGate
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.laplace import LaplaceGuide, PriorStart, curvature_factor, curvature_root
from guides.tasks.rules import GradientStep
from guides.tasks.starts import RidgeStart
from guides.tasks.unrolled import UnrolledGuide
from inference.direct import direct_traces
from inference.elbo import RateDistortionELBO
from inference.evaluation.evaluate import evaluate_readings, readings
from inference.evaluation.predictive import predictive
from models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    OwnLikelihood,
    PoissonLikelihood,
    TemperedCategorical,
)
from models.networks.functional import FunctionalNetwork
from models.tasks.isotropic import IsotropicPrior
from models.tasks.model import EmpiricalBayesModel
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.predictors import CosinePredictor, DistancePredictor, LinearPredictor, PerceptronPredictor
from models.tasks.priors import GaussianPrior

WAY, TASKS, FEATURES = 3, 2, 4


def hessian_of(function):
    """Twice in reverse: torch's own goes forward first, and warns."""
    return torch.func.jacrev(torch.func.jacrev(function))


def tempered() -> TemperedCategorical:
    likelihood = TemperedCategorical()
    likelihood.log_temperature.fill_(0.7)
    return likelihood


LIKELIHOODS = {
    "categorical": (CategoricalLikelihood, 3, 1),
    "tempered": (tempered, 3, 1),
    "gaussian": (lambda: GaussianLikelihood(0.6), 1, 0.3),
    "two gaussians": (lambda: GaussianLikelihood(torch.tensor([0.6, 1.3]), outputs=2), 2, torch.tensor([0.3, 0.1])),
    "bernoulli": (BernoulliLikelihood, 1, 1.0),
    "poisson": (PoissonLikelihood, 1, 2.0),
}


def classification(dtype=torch.float64) -> Episode:
    labels = torch.arange(WAY).repeat(2).expand(TASKS, -1)
    centres = torch.randn(TASKS, WAY, FEATURES, dtype=dtype)
    items, queries = (centres.repeat(1, 2, 1) + 0.3 * torch.randn(TASKS, 2 * WAY, FEATURES, dtype=dtype) for _ in range(2))
    return Episode(items, labels, queries, labels, WAY)


def regression() -> Episode:
    x, y = torch.randn(TASKS, 5, FEATURES, dtype=torch.float64), torch.randn(TASKS, 5, dtype=torch.float64)
    return Episode(x, y, x[:, :2], y[:, :2], 1)


def classifier(steps=2, **options):
    """A network of which all weights are adapted, in single precision."""
    predictor = NetworkPredictor(FunctionalNetwork(nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, WAY))), WAY)
    prior = IsotropicPrior(predictor.network.flat(), 0.8)
    gradient, rule = ExactGradient(CategoricalLikelihood()), GradientStep(steps, predictor.num_weights, size=0.1)
    model = EmpiricalBayesModel(prior, predictor)
    start = PriorStart(prior)
    return model, LaplaceGuide(prior, predictor, start, gradient, rule, model.likelihood, steps=steps, **options)


def in_double(*programs):
    return tuple(program.double() for program in programs)


def linear(beta=1.0, noise=0.5, **options):
    """Linear regression, with a guide that starts at the mode."""
    loc, scale = torch.randn(FEATURES), torch.rand(FEATURES) + 0.5
    prior, likelihood = GaussianPrior(loc, scale, learned=False), GaussianLikelihood(noise, learned=False)
    predictor, rule = LinearPredictor(learned=False), GradientStep(0, FEATURES)
    model = EmpiricalBayesModel(prior, predictor, likelihood)
    start = RidgeStart(loc, scale, noise * beta**0.5)
    guide = LaplaceGuide(prior, predictor, start, ExactGradient(likelihood), rule, likelihood, steps=0, beta=beta, **options)
    model, guide = in_double(model, guide)
    start.prior_log_scale.data.copy_(prior.log_scale)
    start.log_noise.data.copy_(likelihood.log_noise + 0.5 * torch.tensor(beta).double().log())
    return model, guide


class TestCurvature:
    @pytest.mark.parametrize("name", LIKELIHOODS)
    def test_root_is_that_of_the_second_derivative(self, name, float64):
        build, outputs, target = LIKELIHOODS[name]
        likelihood, y = build().double(), torch.as_tensor(target)
        f = torch.randn(2, 4, outputs)
        root = curvature_root(likelihood, f)
        for task in range(2):
            for item in range(4):
                hessian = hessian_of(lambda o: -likelihood(o[None]).log_prob(y[None]).sum())(f[task, item])
                torch.testing.assert_close(root[task, item] @ root[task, item].mT, hessian)

    def test_of_an_own_likelihood_has_to_be_registered(self):
        with pytest.raises(NotImplementedError, match=r"OwnLikelihood is not known.*curvature_root\.register"):
            curvature_root(OwnLikelihood(lambda f: torch.distributions.Laplace(f[..., 0], 1.0)), torch.zeros(2, 1))

        class Doubled(GaussianLikelihood):
            pass

        curvature_root.register(Doubled, lambda likelihood, outputs: 2 * torch.ones_like(outputs)[..., None])
        assert curvature_root(Doubled(), torch.zeros(2, 1)).tolist() == [[[2.0]], [[2.0]]]

    @pytest.mark.parametrize("kind", [LinearPredictor, CosinePredictor, DistancePredictor, "network", "perceptron"])
    @pytest.mark.parametrize("leading", [(), (2,)])
    def test_factor_is_the_gauss_newton_matrix(self, kind, leading, float64):
        """Of each task by itself, by a dense Jacobian and the likelihood's Hessian."""
        if kind == "network":
            predictor = NetworkPredictor(
                FunctionalNetwork(nn.Sequential(nn.Linear(FEATURES, 2), nn.Tanh(), nn.Linear(2, WAY))), WAY
            )
        else:
            predictor = PerceptronPredictor((FEATURES, 2, WAY)) if kind == "perceptron" else kind()
        predictor = predictor.double()
        shape = (1, predictor.num_weights) if isinstance(kind, str) else (WAY, FEATURES)
        weights, items = torch.randn(*leading, TASKS, *shape), torch.randn(TASKS, 5, FEATURES)
        factor = curvature_factor(predictor, CategoricalLikelihood(), items, weights)
        assert factor.shape == (*leading, TASKS, 5 * WAY, shape[0] * shape[1])
        for index in torch.cartesian_prod(*map(torch.arange, (*leading, TASKS))).view(-1, len(leading) + 1).tolist():
            task = items[index[-1]][None]
            outputs = lambda w, task=task: predictor(task, w.view(1, *shape))[0]  # noqa: E731
            w = weights[tuple(index)].flatten()
            jacobian, p = torch.func.jacrev(outputs)(w), outputs(w).softmax(-1)
            hessian = torch.diag_embed(p) - p[..., None] * p[..., None, :]
            expected = torch.einsum("nap,nab,nbq->pq", jacobian, hessian, jacobian)
            found = factor[tuple(index)]
            torch.testing.assert_close(found.mT @ found, expected.detach())

    def test_of_a_linear_classifier_is_the_second_derivative(self, float64):
        """log |Σ⁻¹| against the Hessian of −log p(labels, w), by autograd."""
        task = classification()
        prior = IsotropicPrior(torch.zeros(FEATURES), 0.7).double()
        likelihood = CategoricalLikelihood()
        predictor, gradient = LinearPredictor(2.0).double(), ExactGradient(likelihood)
        rule = GradientStep(2, FEATURES, size=0.1)
        guide = LaplaceGuide(prior, predictor, PriorStart(prior), gradient, rule, likelihood, steps=2).double()
        loc = guide.unroll(*task)[-1].loc.detach()
        found = guide.posterior(loc, task.support_x, WAY)
        assert found.batch_shape == (TASKS, 1)
        for one in range(TASKS):

            def energy(w, one=one):
                labels = likelihood(predictor(task.support_x[one][None], w.view(1, WAY, FEATURES)))
                density = prior.distribution(prior.hyperparameters(), WAY).log_prob(w.view(WAY, FEATURES))
                return -labels.log_prob(task.support_y[one]).sum() - density

            hessian = hessian_of(energy)(loc[one].flatten())
            torch.testing.assert_close(found.log_det_precision()[one, 0], torch.logdet(hessian))
            torch.testing.assert_close(found.variance[one, 0].flatten(), torch.linalg.inv(hessian).diagonal())


class TestLinearRegression:
    @pytest.mark.parametrize("beta", [1.0, 0.3])
    def test_it_is_the_exact_posterior(self, beta, float64):
        task, (model, guide) = regression(), linear(beta)
        q = guide.posterior(guide.unroll(*task)[-1].loc, task.support_x, 1)
        mean, factor = ConjugateGuide(model.prior, model.likelihood, beta=beta).posterior(task.support_x, task.support_y)
        torch.testing.assert_close(q.mean[:, 0], mean)
        torch.testing.assert_close(q.variance[:, 0, 0], (factor @ factor.mT).diagonal(dim1=-2, dim2=-1))
        torch.testing.assert_close(q.log_det_precision()[:, 0], -torch.logdet(factor @ factor.mT))

    def exact(self, task, model):
        loc, scale = model.prior.loc, model.prior.log_scale.exp()
        return linear_evidence(task.support_x, task.support_y, loc, scale, float(model.likelihood.log_noise.exp()))

    def test_its_evidence_is_exact(self, float64):
        task, (model, guide) = regression(), linear()
        torch.testing.assert_close(guide.log_evidence(*task), self.exact(task, model), atol=1e-8, rtol=0)

    def test_every_draw_gives_the_evidence(self, float64):
        """log p(y given w) + log p(w) − log q(w), whatever w."""
        task, (model, guide) = regression(), linear()
        scored = task.on_support()
        traced = poutine.trace(guide).get_trace(*scored)
        told = poutine.trace(poutine.replay(model, trace=traced)).get_trace(*scored)
        drawn, sites = traced.nodes["weights"]["value"], (told.nodes["weights"]["fn"], traced.nodes["weights"]["fn"])
        prior, posterior = (fn.log_prob(drawn)[:, 0] for fn in sites)
        labels = told.nodes["labels"]["fn"].log_prob(task.support_y).sum(-1)
        torch.testing.assert_close(labels + prior - posterior, self.exact(task, model), atol=1e-8, rtol=0)

    def test_distortion_and_rate_make_the_evidence(self, float64):
        """−(E_q distortion + KL), the expectation by the dense covariance."""
        task, (model, guide) = regression(), linear()
        q = guide.posterior(guide.unroll(*task)[-1].loc, task.support_x, 1)
        loc, scale, noise = model.prior.loc, model.prior.log_scale.exp(), float(model.likelihood.log_noise.exp())
        _, covariance = linear_posterior(task.support_x, task.support_y, loc, scale, noise)
        at_mean = model.likelihood(model.predictor(task.support_x, q.mean[:, 0])).log_prob(task.support_y).sum(-1)
        spread = (task.support_x @ covariance @ task.support_x.mT).diagonal(dim1=-2, dim2=-1).sum(-1) / (2 * noise**2)
        rate = kl_divergence(q, model.prior.distribution(model.prior.hyperparameters(), 1))[:, 0]
        torch.testing.assert_close(at_mean - spread - rate, self.exact(task, model), atol=1e-8, rtol=0)

    def test_a_tempered_evidence(self, float64):
        """∫ p(y given w)^(1/β) p(w) dw is that under noise² β, with another constant."""
        task, (model, guide), beta = regression(), linear(0.3), 0.3
        noise = float(model.likelihood.log_noise.exp())
        loc, scale = model.prior.loc, model.prior.log_scale.exp()
        wide = linear_evidence(task.support_x, task.support_y, loc, scale, noise * beta**0.5)
        constant = lambda noise: -torch.tensor(noise).log() - 0.5 * torch.tensor(2 * torch.pi).log()  # noqa: E731
        shift = 5 * (constant(noise) / beta - constant(noise * beta**0.5))
        torch.testing.assert_close(guide.log_evidence(*task), wide + shift, atol=1e-8, rtol=0)

    def test_steps_under_the_prior_s_pull_end_at_the_mode(self, float64):
        """A Gaussian family descends distortion + rate; a point the distortion alone."""
        task, (model, _) = regression(), linear()
        task = task._replace(support_x=torch.linalg.qr(task.support_x).Q)  # equally steep everywhere
        at = {}
        for family in Family:
            likelihood, rule = model.likelihood, GradientStep(1, FEATURES, size=0.1)
            rule.forward = lambda index, p, pull, step=rule.forward: step(0, p, pull)  # of one size, however many
            gradient = ExactGradient(likelihood)
            options = {"steps": 60, "family": family}
            guide = LaplaceGuide(model.prior, model.predictor, PriorStart(model.prior), gradient, rule, likelihood, **options)
            with torch.no_grad():
                at[family] = guide.double().unroll(*task)[-1].loc
        mean, _ = ConjugateGuide(model.prior, model.likelihood).posterior(task.support_x, task.support_y)
        torch.testing.assert_close(at[Family.GAUSSIAN], mean, atol=1e-6, rtol=0)
        least_squares = torch.linalg.lstsq(task.support_x, task.support_y[..., None]).solution.mT
        torch.testing.assert_close(at[Family.DELTA], least_squares, atol=1e-6, rtol=0)


class TestGuide:
    def test_its_mean_is_where_descent_ends(self):
        task, (_, guide) = classification(), in_double(*classifier())
        descent = UnrolledGuide(
            guide.prior, guide.predictor, guide.start, guide.gradient, guide.rule, steps=2, on="support", family="delta"
        )
        point, q = (poutine.trace(g).get_trace(*task).nodes["weights"]["fn"] for g in (descent, guide))
        torch.testing.assert_close(q.mean, point.mean)
        assert not guide.saw_labels

    def test_every_parameter_gets_a_gradient(self):
        task, (model, guide) = classification(), in_double(*classifier())
        traces = (poutine.trace(program).get_trace(*task) for program in (model, guide))
        check_model_guide_match(*traces, 2)
        RateDistortionELBO(beta=1.0)(model, guide)(*task).backward()
        assert model.prior.loc.grad.abs().sum() > 0
        left_out = {guide.rule.scale_shift, *model.predictor.network.parameters()}  # of a point, and what w stands for
        assert {p for program in (model, guide) for p in program.parameters() if p.grad is None} <= left_out

    def test_traced_or_told_directly_it_is_one_objective(self):
        task, (model, guide) = classification(), in_double(*classifier())
        objective = RateDistortionELBO(beta=0.7)
        assert direct_traces(model, guide, task, {}) is not None
        pyro.set_rng_seed(0)
        direct = objective.trace_terms(*direct_traces(model, guide, task, {}))
        pyro.set_rng_seed(0)
        traced = objective.trace_terms(*objective._follow(model, guide, task, {}))
        torch.testing.assert_close(direct.loss, traced.loss)
        torch.testing.assert_close(direct.rate, traced.rate)

    def test_read_at_every_step_it_is_each_reading(self):
        task, (model, guide) = classification(), in_double(*classifier())
        at_all = guide.at_every_step().sites(*task)["weights"].distribution
        evidences = guide.at_every_step().log_evidence(*task)
        assert at_all.batch_shape == (3, TASKS, 1)
        for k in range(3):
            one = guide.after(k).sites(*task)["weights"].distribution
            torch.testing.assert_close(at_all.mean[k], one.mean)
            torch.testing.assert_close(at_all.variance[k], one.variance)
            torch.testing.assert_close(evidences[k], guide.after(k).log_evidence(*task))
        weights = step_weights(2, 0.5).double()
        together = RateDistortionELBO(beta=1.0)(EveryStep(model, weights), EveryStep(guide.at_every_step(), weights))
        each = [RateDistortionELBO(beta=1.0)(model, guide.after(k)).terms(*task).rate for k in range(3)]
        torch.testing.assert_close(together.terms(*task).rate, sum(w * rate for w, rate in zip(weights, each, strict=True)))

    def test_evaluation_reads_it_after_each_step(self):
        task, (model, guide) = classification(), in_double(*classifier())
        scores = evaluate_readings(model, readings(guide), task, tasks=TASKS, seed=0)
        assert list(scores) == [0, 1, 2]
        found = predictive(model, guide, task, num_samples=8)
        q = guide.sites(*task)["weights"].distribution
        rate = kl_divergence(q, model.prior.distribution(model.prior.hyperparameters(), 1))[:, 0]
        torch.testing.assert_close(found.rate, rate.detach())
        assert found.num_draws == 8
        assert not torch.equal(*found.labels.logits[:2])

    def test_it_descends_as_it_is_told(self):
        task, told = classification(torch.float32), {"family": Family.GAUSSIAN, "inner_samples": 2, "first_order": True}
        gate = PriorGate(27, 0.5)
        _, guide = classifier(on="queries", beta=0.7, gate=gate, **told)
        assert {name: getattr(guide, name) for name in told} == told
        assert (guide.gate, guide.beta, guide.saw_labels) == (gate, 0.7, True)
        assert guide(*task).log_scale.std() > 0  # a Gaussian's scale moves

    def test_the_likelihood_is_that_of_tasks_of_this_shot_and_way(self):
        """Curvature and fit under a temperature that depends on both."""
        task, (model, guide) = classification(), in_double(*classifier())
        likelihood = TemperedCategorical().double()
        likelihood.powers.copy_(torch.tensor([0.5, -0.3]))
        guide.likelihood = model.likelihood = likelihood
        loc = guide.unroll(*task)[-1].loc.detach()
        factor = curvature_factor(guide.predictor, likelihood.given(2, WAY), task.support_x, loc)
        precision = torch.eye(27, dtype=torch.float64) / 0.8**2 + factor.mT @ factor
        q = guide.posterior(loc, task.support_x, WAY)
        torch.testing.assert_close(q.log_det_precision()[:, 0], torch.logdet(precision), atol=1e-5, rtol=0)  # 0.8 was float32
        fit = model.labels(loc.unsqueeze(-3), task.support_y, task.support_x, WAY).log_prob(task.support_y).sum(-1)
        prior = model.prior.distribution(model.prior.hyperparameters(), 1).log_prob(loc)
        torch.testing.assert_close(guide.log_evidence(*task), fit + prior - q.log_prob(loc.unsqueeze(-3))[:, 0])

    def test_refuses_no_rate(self):
        with pytest.raises(ValueError, match="β must be positive"):
            classifier(beta=0.0)

    def test_on_another_device_nothing_is_read_back(self):
        with FakeTensorMode(), torch.device("cuda"):
            prior, predictor, task = (
                IsotropicPrior(torch.randn(FEATURES), 0.8),
                CosinePredictor(),
                classification(torch.float32),
            )
            model, rule = EmpiricalBayesModel(prior, predictor), GradientStep(2, FEATURES)
            gradient = ExactGradient(model.likelihood)
            guide = LaplaceGuide(prior, predictor, PriorStart(prior), gradient, rule, model.likelihood, steps=2)
            terms = RateDistortionELBO()(model, guide).terms(*task)
            with validation_enabled(False):  # a check reads a number back
                evidence = guide.log_evidence(*task)
        assert {t.device.type for t in (terms.loss, terms.rate, evidence)} == {"cuda"}


class TestIsotropicPrior:
    @pytest.mark.parametrize("learned", [False, True])
    def test_it_is_a_gaussian_of_one_scale(self, learned, float64):
        prior = IsotropicPrior(torch.randn(5), 0.3, learned=learned).double()
        prior.log_scale.data.fill_(0.3).log_()
        density = prior.distribution(prior.hyperparameters(), 2)
        value = torch.randn(2, 5)
        expected = torch.distributions.Normal(prior.loc, 0.3).log_prob(value).sum()
        torch.testing.assert_close(density.log_prob(value), expected)
        names = {name for name, _ in prior.named_parameters()}
        assert names == ({"loc", "log_scale"} if learned else {"loc"})
        assert set(prior.state_dict()) == {"loc", "log_scale"}

    def test_from_class_means(self, float64):
        means = torch.randn(200, 5) * torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0])
        prior = IsotropicPrior.from_class_means(means)
        torch.testing.assert_close(prior.loc, means.mean(0))
        torch.testing.assert_close(prior.log_scale.exp().square(), means.var(0).mean(), atol=1e-6, rtol=1e-6)

    def test_descent_starts_at_its_mean(self):
        prior = GaussianPrior(torch.randn(5), torch.rand(5) + 0.5)
        x = torch.zeros(4, 3, 5)
        loc, log_scale = PriorStart(prior)(x, torch.zeros(4, 3), x, 2)
        torch.testing.assert_close(loc, prior.loc.expand(4, 2, 5))
        torch.testing.assert_close(log_scale, prior.log_scale.expand(4, 2, 5))
