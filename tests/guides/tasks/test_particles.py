"""Particles that a kernel holds apart, against loops over pairs, MAML, and a Gaussian."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from data.episodes import Episode
from guides.tasks.families import PosteriorParameters
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.particles import ParticleMeans, ParticleStart, SteinGuide, SteinStep, kernel_between, stein_direction
from guides.tasks.rules import Pull
from inference.elbo import RateDistortionELBO
from inference.evaluation.predictive import draws_in, predictive, trace_guide, trace_model
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from models.networks.feature_space import class_means
from models.tasks.particles import ParticleModel
from models.tasks.predictors import LinearPredictor, PerceptronPredictor
from models.tasks.priors import GaussianPrior

M, TASKS, SHOT, D, WAY = 4, 3, 5, 6, 3


@pytest.fixture(autouse=True)
def double(float64):
    pass


def regression(tasks=TASKS):
    x, query_x = torch.randn(tasks, SHOT, 1), torch.randn(tasks, 7, 1)
    return Episode(x, (2 * x[..., 0]).sin(), query_x, (2 * query_x[..., 0]).sin(), 1)


def classes(tasks=TASKS):
    y, query_y = torch.arange(WAY).repeat(2).expand(tasks, -1), torch.arange(WAY).expand(tasks, -1)
    return Episode(torch.randn(tasks, 2 * WAY, D), y, torch.randn(tasks, WAY, D), query_y, WAY)


def network_pair(particles=M, *, loss="mixture", **options):
    """Model and guide of a perceptron under a Gaussian likelihood, the noise in nats."""
    predictor, likelihood = PerceptronPredictor((1, 4, 1)), GaussianLikelihood(0.5)
    prior = GaussianPrior(0.1 * torch.randn(predictor.num_weights), torch.rand(predictor.num_weights) + 0.5)
    start, rule = ParticleStart(torch.randn(particles, predictor.num_weights)), SteinStep(3, size=0.02)
    guide = SteinGuide(prior, predictor, start, ExactGradient(likelihood), rule, **{"steps": 3, **options})
    return ParticleModel(prior, predictor, likelihood, loss=loss, leader=guide.lead), guide


def head_pair(particles=M, start=ParticleMeans):
    predictor, prior = LinearPredictor(1.0), GaussianPrior(torch.zeros(D), torch.ones(D))
    begin, gradient = start(torch.randn(particles, D)), ExactGradient(CategoricalLikelihood())
    guide = SteinGuide(prior, predictor, begin, gradient, SteinStep(3, size=0.3), steps=3)
    return ParticleModel(prior, predictor, leader=guide.lead), guide


def objective_of(model, guide):
    plates = {"num_particles": guide.particles, "vectorize_particles": True, "max_plate_nesting": 2}
    return RateDistortionELBO(beta=0.0, **plates)(model, guide)


def naive_direction(points, gradients, beta):
    """Of one task, pair by pair; the kernel's gradient by autograd, at a bandwidth that stays."""
    pairs = sorted(float((points[a] - points[b]).square().sum()) for a in range(len(points)) for b in range(a))
    bandwidth = pairs[(len(pairs) - 1) // 2] / math.log(len(points))
    moves = []
    for m in range(len(points)):
        total = torch.zeros(points.shape[-1])
        for other in range(len(points)):
            at = points[other].clone().requires_grad_()
            kernel = (-(at - points[m]).square().sum() / bandwidth).exp()
            total += -kernel.detach() * gradients[other] + beta * torch.autograd.grad(kernel, at)[0]
        moves.append(total / len(points))
    return torch.stack(moves)


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("particles", [2, 5])
def test_the_direction_is_a_loop_over_pairs(particles, beta):
    points, gradients = torch.randn(2, TASKS, particles, D)
    expected = torch.stack([naive_direction(*task, beta) for task in zip(points, gradients, strict=True)])
    torch.testing.assert_close(stein_direction(points, gradients, beta), expected, rtol=1e-10, atol=1e-12)


def test_a_step_goes_along_the_direction_of_each_task_with_the_prior_in_it():
    loc, data, prior = torch.randn(3, M, TASKS, 2, D)
    θ = PosteriorParameters(loc, torch.zeros_like(loc))
    pull = Pull((data, None), (prior, prior), torch.ones(1, D), 0.7)
    rule = SteinStep(2, size=0.1)
    rule.shrink(1, 0.5)
    found = rule(1, θ, pull).loc
    for task in range(TASKS):
        points, gradients = (part[:, task].flatten(1) for part in (loc, data + 0.7 * prior))
        moved = points + 0.05 * naive_direction(points, gradients, 0.7)
        torch.testing.assert_close(found[:, task].flatten(1), moved, rtol=1e-9, atol=1e-10)
    assert torch.equal(rule(1, θ, pull).log_scale, θ.log_scale)


def test_two_particles_have_the_same_kernel_at_any_distance_and_equal_ones_stay_finite():
    for distance in (1e-3, 1.0, 1e3):
        kernel, _ = kernel_between(torch.tensor([[-distance, 0.0], [distance, 0.0]]))
        torch.testing.assert_close(kernel, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    for particles in (1, 2, 3):
        equal = torch.ones(particles, D).requires_grad_()
        direction = stein_direction(equal, torch.ones(particles, D), 1.0, 1e-6)
        torch.testing.assert_close(direction, -torch.ones(particles, D))  # together, as one
        (direction.square().sum() + kernel_between(equal, 1e-6)[0].sum()).backward()
        assert equal.grad.isfinite().all()


def test_of_the_bandwidth_no_gradient_is_taken():
    points = torch.tensor([[-0.5, 0.0], [0.5, 0.0]]).requires_grad_()
    kernel_between(points)[0][0, 1].backward()  # ½, were the bandwidth part of it
    slope = 2 * math.log(2) * 0.5  # 2/h ‖θ − θ'‖ k with h = 1 / log 2
    torch.testing.assert_close(points.grad, torch.tensor([[slope, 0.0], [-slope, 0.0]]))


def test_what_drives_near_particles_apart_is_bounded_in_the_priors_units():
    near = torch.tensor([[0.0], [1e-9]])
    step = SteinStep(1, size=1.0)
    for scale in (1.0, 100.0):
        loc = scale * near[:, None, None]
        pull = Pull((torch.zeros(2, 1, 1, 1), None), None, torch.full((1, 1), scale**2), 1.0)
        moved = step(0, PosteriorParameters(loc, loc), pull).loc - loc
        assert float(moved.abs().max()) < 1e-2 / scale


@pytest.mark.parametrize(("width", "short"), [(1.0, 0.1), (2.0, 0.045)])
def test_particles_reach_a_gaussian(width, short):
    """Its mean, and so much less than its covariance, of the same shape: within 5 % with twice the usual bandwidth."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    target = MultivariateNormal(torch.tensor([1.0, -2.0]), covariance)
    points = torch.randn(1, 50, 2)
    for _ in range(800):
        points = points + 0.5 * stein_direction(points, (points - target.mean) @ target.precision_matrix, 1.0, width=width)
    torch.testing.assert_close(points[0].mean(0), target.mean, rtol=0.05, atol=0.0)
    torch.testing.assert_close(points[0].T.cov(), (1 - short) * covariance, rtol=0.01, atol=0.0)


def loop(guide, task, steps=3, size=0.02, first_order=False):
    """MAML with a prior, of one particle: one task after another, by autograd; the weights at the end."""
    loc, scale = guide.prior.loc, guide.prior.log_scale.exp()
    ended = []
    for x, y in zip(task.support_x, task.support_y, strict=True):
        w = guide.start.loc[0]
        for _ in range(steps):
            at = w if w.requires_grad else w.detach().requires_grad_()
            outputs = guide.predictor(x, at[None])[..., 0]
            data = torch.autograd.grad(-Normal(outputs, 0.5).log_prob(y).sum(), at, create_graph=not first_order)[0]
            w = w - size * (data + (w - loc) / scale**2) / len(y)
        ended.append(w)
    return torch.stack(ended)


@pytest.mark.parametrize("first_order", [False, True])
def test_one_particle_is_maml_with_the_gradient_of_the_prior(first_order):
    (model, guide), task = network_pair(1, first_order=first_order), regression()
    expected = loop(guide, task, first_order=first_order)
    found = guide.unroll(*task)[-1].loc
    torch.testing.assert_close(found[0, :, 0], expected, rtol=1e-10, atol=1e-10)
    outputs = torch.stack([guide.predictor(x, w[None])[..., 0] for x, w in zip(task.query_x, expected, strict=True)])
    loss = -Normal(outputs, model.likelihood.log_noise.exp().detach()).log_prob(task.query_y).sum()
    objective = RateDistortionELBO(beta=0.0)(model, guide)
    own = objective(*task)
    torch.testing.assert_close(own, loss, rtol=1e-10, atol=1e-10)
    parameters = [guide.start.loc, guide.prior.loc, guide.prior.log_scale]
    for one, other in zip(torch.autograd.grad(own, parameters), torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("pair", [network_pair, head_pair])
def test_particles_are_exchangeable_and_tasks_do_not_leak(pair):
    (model, guide), task = pair(), regression() if pair is network_pair else classes()
    before, loss = guide.unroll(*task)[-1].loc, objective_of(model, guide)(*task)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        guide.start.loc.copy_(guide.start.loc[order])
    torch.testing.assert_close(guide.unroll(*task)[-1].loc, before[order])
    torch.testing.assert_close(objective_of(model, guide)(*task), loss)
    alone = guide.unroll(*task.tasks(slice(1, 2)))[-1].loc
    torch.testing.assert_close(alone, before[order][:, 1:2])


@pytest.mark.parametrize("start", [ParticleStart, ParticleMeans])
def test_renaming_classes_permutes_their_rows(start):
    (_, guide), task, order = head_pair(start=start), classes(), torch.tensor([2, 0, 1])
    renamed = guide.unroll(*task._replace(support_y=order[task.support_y]))[-1].loc
    torch.testing.assert_close(renamed[..., order, :], guide.unroll(*task)[-1].loc)


def test_particles_that_start_alike_for_all_classes_tell_them_apart_along_the_same_directions():
    task = classes(1)
    for start, rank in ((ParticleStart, 1), (ParticleMeans, M)):
        loc = head_pair(start=start)[1].after(1).unroll(*task)[-1].loc[:, 0]
        apart = (loc - loc.mean(1, keepdim=True)).flatten(1)  # what no class has in common with all others
        assert torch.linalg.matrix_rank(apart, rtol=1e-9) == rank


def test_where_particles_start():
    task, numbers = classes(), torch.randn(M, D)
    loc, _ = ParticleStart(numbers)(task.support_x, task.support_y, task.query_x, WAY)
    assert torch.equal(loc, numbers[:, None, None].expand(M, TASKS, WAY, D))
    loc, _ = ParticleMeans(numbers)(task.support_x, task.support_y, task.query_x, WAY)
    for m in range(M):
        torch.testing.assert_close(loc[m], numbers[m] * class_means(task.support_x, task.support_y))


def test_the_mean_and_the_sum_over_items_have_the_same_posterior():
    task = regression()
    (_, mean), (_, total) = network_pair(), network_pair(reduction="sum")
    total.load_state_dict(mean.state_dict())
    total.rule = SteinStep(3, size=0.02 / SHOT)
    torch.testing.assert_close(mean.unroll(*task)[-1].loc, total.unroll(*task)[-1].loc)


def test_of_the_squared_error_the_posterior_is_that_of_its_likelihood():
    """Steps that are 2 noise² as long: the same as on nats with as much shorter ones."""
    task, (_, nats) = regression(), network_pair()
    squared = ExactGradient(GaussianLikelihood(0.5**0.5, learned=False))
    rule = SteinStep(3, size=0.02 / (2 * 0.5**2))
    errors = SteinGuide(nats.prior, nats.predictor, nats.start, squared, rule, steps=3, likelihood=GaussianLikelihood(0.5))
    torch.testing.assert_close(errors.unroll(*task)[-1].loc, nats.unroll(*task)[-1].loc)


def test_the_evaluators_draws_are_the_particles():
    (model, guide), task = network_pair(), regression()
    weights = guide.unroll(*task)[-1].loc
    for asked in (1, 3, M, 32):
        said = predictive(model, guide, task, num_samples=asked)
        assert said.num_draws == M
        assert said.rate is None
        torch.testing.assert_close(said.labels.mean, guide.predictor(task.query_x, weights)[..., 0])
    trace = trace_guide(guide, task, 1)
    assert draws_in(trace, 1) == M
    assert trace_model(model, trace, task, 1).nodes["labels"]["fn"].batch_shape == (M, TASKS, 7)
    assert predictive(*network_pair(1), task).num_draws == 1


def test_what_is_refused():
    with pytest.raises(ValueError, match="leader_steps"):
        network_pair(leader_steps=-1)
    with pytest.raises(ValueError, match="step size"):
        SteinStep(1, size=0.0)
