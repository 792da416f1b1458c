"""MAML and its kin as unrolled guides, against loops over tasks that are differentiated by autograd."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import nn
from torch.func import functional_call

from data.episodes import Episode
from data.regression import radial_inputs, sinusoid_tasks
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart
from guides.tasks.unrolled import UnrolledGuide
from inference.elbo import RateDistortionELBO
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from models.networks.classifiers import mlp
from models.networks.functional import FunctionalNetwork, last_layer, split_weights
from models.networks.norms import with_norm
from models.tasks.model import EmpiricalBayesModel
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.priors import GaussianPrior

WAY, SHOT, QUERIES, TASKS = 3, 2, 3, 3
ALPHA = 0.3


@pytest.fixture(autouse=True)
def double(float64):
    pass


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *mlp(36, (8, 7), WAY, nn.Tanh))


def convolutional(norm: str = "task") -> nn.Sequential:
    """Two blocks of a Conv-4, whose norms are no longer at their start."""
    blocks = [
        layer
        for inputs, outputs in ((1, 4), (4, 8))
        for layer in (nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))
    ]
    network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8, WAY))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.running_mean, layer.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    return with_norm(network, norm)


NETWORKS = {"perceptron": perceptron} | {
    f"convolutional, {norm}": lambda norm=norm: convolutional(norm) for norm in ("task", "running", "group")
}


def images(tasks: int = TASKS) -> Episode:
    """Tasks of noise with a class's own gray, 6×6."""
    y = torch.arange(WAY).repeat(SHOT).expand(tasks, -1), torch.arange(WAY).repeat(QUERIES).expand(tasks, -1)
    centres = torch.randn(tasks, WAY, 1, 6, 6)
    x = (torch.stack([c[label] for c, label in zip(centres, part, strict=True)]) for part in y)
    support_x, query_x = (part + torch.randn_like(part) for part in x)
    return Episode(support_x, y[0], query_x, y[1], WAY)


def build(network, *, steps=3, adapted=None, likelihood=None, outputs=WAY, rule=(), **options):
    """Model and guide of MAML; ``rule`` has options of its steps."""
    functional = FunctionalNetwork(network, adapted)
    predictor, start = NetworkPredictor(functional, outputs), LearnedStart.from_network(functional)
    prior = GaussianPrior(start.loc.detach()[0], torch.ones(functional.num_weights), learned=False)
    likelihood = likelihood or CategoricalLikelihood()
    rule = GradientStep(steps, functional.num_weights, **{"size": ALPHA, "point": True, **dict(rule)})
    maml = {"steps": steps, "on": "support", "reduction": "mean", "beta": 0.0, "family": "delta"}
    guide = UnrolledGuide(prior, predictor, start, ExactGradient(likelihood), rule, **(maml | options))
    return EmpiricalBayesModel(prior, predictor, likelihood), guide


def nats(outputs, y):
    return F.cross_entropy(outputs, y, reduction="sum")


def loop(network, tasks, *, steps=3, adapted=None, size=ALPHA, first_order=False, nats=nats):
    """MAML one task after another, as Finn et al. 2017 write it in algorithm 2: query losses, and the gradient of their sum for
    what is adapted and, by name, for what is not."""
    own = dict(network.named_parameters())
    losses = []
    for x, y, query_x, query_y in zip(*tasks[:4], strict=True):
        moved = {name: p for name, p in own.items() if adapted is None or adapted(name)}
        for _ in range(steps):
            inner = nats(functional_call(network, moved, (x,)), y) / len(y)
            pulls = torch.autograd.grad(inner, list(moved.values()), create_graph=True)
            pulls = [pull.detach() for pull in pulls] if first_order else pulls
            moved = {n: p - size * g for (n, p), g in zip(moved.items(), pulls, strict=True)}
        losses.append(nats(functional_call(network, moved, (query_x,)), query_y))
    gradient = dict(zip(own, torch.autograd.grad(sum(losses), list(own.values())), strict=True))
    moves = torch.cat([g.flatten() for name, g in gradient.items() if adapted is None or adapted(name)])
    return torch.stack(losses).detach(), moves, {n: g for n, g in gradient.items() if adapted and not adapted(n)}


def step_of(model, guide, tasks):
    """The loss, with gradients left on the parameters."""
    loss = RateDistortionELBO(beta=0.0)(model, guide)(*tasks)
    loss.backward()
    return loss.detach()


class TestMAML:
    @pytest.mark.parametrize("steps", [1, 3])
    @pytest.mark.parametrize("first_order", [False, True])
    @pytest.mark.parametrize("network", NETWORKS)
    def test_loss_and_meta_gradient_are_those_of_a_loop(self, network, first_order, steps):
        network, tasks = NETWORKS[network](), images()
        model, guide = build(network, steps=steps, first_order=first_order)
        losses, gradient, _ = loop(network, tasks, steps=steps, first_order=first_order)
        torch.testing.assert_close(step_of(model, guide, tasks), losses.sum(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(guide.start.loc.grad[0], gradient, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("network", [perceptron, convolutional])
    def test_first_order_is_not_second_order(self, network):
        network, tasks = network(), images()
        assert not torch.allclose(loop(network, tasks)[1], loop(network, tasks, first_order=True)[1])

    def test_first_order_is_second_order_where_the_inner_loss_is_linear(self):
        """A linear output with loss −⟨y, ŷ⟩, whose gradient does not depend on the weights."""

        class Linear(CategoricalLikelihood):
            def output_gradient(self, outputs, targets):
                return -F.one_hot(targets, outputs.shape[-1]).to(outputs).expand_as(outputs)

        network, tasks, found = nn.Sequential(nn.Flatten(), nn.Linear(36, WAY)), images(), []
        for first_order in (False, True):
            model, guide = build(network, likelihood=Linear(), first_order=first_order)
            step_of(model, guide, tasks)
            found.append(guide.start.loc.grad)
        assert found[0].abs().max() > 0.1
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)

    def test_regression(self):
        """A Gaussian likelihood of variance ½ is the squared error."""
        x = 10 * torch.rand(TASKS, 15, 1) - 5
        y = torch.rand(TASKS, 1) * torch.sin(x[..., 0])
        tasks = Episode(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:], way=1)
        network, likelihood = nn.Sequential(*mlp(1, (6, 5), 1, nn.Tanh)), GaussianLikelihood(0.5**0.5, learned=False)
        model, guide = build(network, likelihood=likelihood, outputs=1, rule={"size": 0.05})
        losses, gradient, _ = loop(network, tasks, size=0.05, nats=lambda out, y: (out[..., 0] - y).square().sum())
        constant = tasks.query_y.numel() * 0.5 * math.log(math.pi)  # −log of the density's factor
        torch.testing.assert_close(step_of(model, guide, tasks), losses.sum() + constant, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(guide.start.loc.grad[0], gradient, rtol=1e-10, atol=1e-10)

    def test_gradient_through_three_steps(self):
        tasks = images(2)
        tasks = tasks._replace(support_x=tasks.support_x[..., 0, 0, :2], query_x=tasks.query_x[..., 0, 0, :2])
        _, guide = build(nn.Sequential(*mlp(2, (2,), WAY, nn.Tanh)), rule={"learned": True})

        def end(loc, log_size):
            guide.start.loc.data, guide.rule.log_size.data = loc.detach(), log_size.detach()
            parameters = {"start.loc": loc, "rule.log_size": log_size}
            return functional_call(Unrolling(guide), {f"guide.{n}": p for n, p in parameters.items()}, (tasks,))

        inputs = [guide.start.loc.detach().clone().requires_grad_(), guide.rule.log_size.detach().clone().requires_grad_()]
        assert torch.autograd.gradcheck(end, inputs)

    @pytest.mark.parametrize("network", [perceptron, convolutional])
    def test_without_steps_it_is_the_network(self, network):
        network, tasks = network(), images()
        model, guide = build(network, steps=0)
        expected = sum(nats(network(x), y) for x, y in zip(tasks.query_x, tasks.query_y, strict=True))
        torch.testing.assert_close(step_of(model, guide, tasks), expected)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_tasks_do_not_leak_into_each_other(self, network):
        model, guide = build(NETWORKS[network]())
        tasks = images(4)
        together = guide.unroll(*tasks)[-1].loc
        outputs = model.predictor(tasks.query_x, together)
        for i in range(4):
            alone = guide.unroll(*tasks.tasks(slice(i, i + 1)))[-1].loc
            torch.testing.assert_close(alone[0], together[i])
            torch.testing.assert_close(model.predictor(tasks.query_x[i : i + 1], alone)[0], outputs[i])

    def test_support_gradients_are_inductive(self):
        """Of the weights: queries are never looked at."""
        _, guide = build(convolutional())
        tasks = images()
        alone = tasks._replace(query_x=tasks.query_x[:, :1])
        assert not guide.saw_labels
        assert torch.equal(guide.unroll(*alone)[-1].loc, guide.unroll(*tasks)[-1].loc)

    def test_nothing_is_kept_for_a_gradient_where_none_is_asked_for(self):
        seen = []
        for first_order in (False, True):
            _, guide = build(perceptron(), first_order=first_order)
            guide.gradient.register_forward_hook(lambda _, __, given: seen.append(given.requires_grad))
            guide.unroll(*images())
            with torch.no_grad():
                guide.unroll(*images())
        assert seen == 3 * [True] + 9 * [False]

    @pytest.mark.parametrize("norm", ["task", "running", "group"])
    def test_predictions_depend_on_other_queries_under_task_norm_alone(self, norm):
        model, guide = build(convolutional(norm))
        tasks = images()
        loc = guide.unroll(*tasks)[-1].loc
        some = tasks.query_x.clone()
        some[:, 1:] += 1
        before, after = (model.predictor(x, loc)[:, 0] for x in (tasks.query_x, some))
        assert torch.allclose(before, after) == (norm != "task")

    def test_a_mean_over_items_is_the_sum_of_a_step_as_many_times_as_long(self):
        network, tasks = perceptron(), images()
        items = WAY * SHOT
        means = build(network)[1].unroll(*tasks)
        sums = build(network, reduction="sum", rule={"size": ALPHA / items})[1].unroll(*tasks)
        torch.testing.assert_close(means[-1].loc, sums[-1].loc)

    @pytest.mark.parametrize("anil", [False, True])
    def test_what_is_trained_is_the_start_and_what_is_not_adapted(self, anil):
        """The network's own values of what is adapted are constants."""
        network = convolutional()
        names = [name for name, _ in network.named_parameters()]
        adapted = last_layer(network) if anil else None
        model, guide = build(network, adapted=adapted)
        step_of(model, guide, images())
        trained = {n for n, p in nn.ModuleList([model, guide]).named_parameters() if p.grad is not None}
        rest = {f"0.predictor.network.network.{name}" for name in names if anil and not adapted(name)}
        assert trained == {"1.start.loc"} | rest
        assert len(rest) == (len(names) - 2 if anil else 0)


class TestItsKin:
    def test_anil_is_maml_on_the_last_layer(self):
        """And the layers before it learn: their gradient goes through the steps, too."""
        network, tasks = convolutional(), images()
        model, guide = build(network, adapted=last_layer(network))
        losses, gradient, rest = loop(network, tasks, adapted=last_layer(network))
        torch.testing.assert_close(step_of(model, guide, tasks), losses.sum(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(guide.start.loc.grad[0], gradient, rtol=1e-10, atol=1e-10)
        own = dict(model.predictor.network.network.named_parameters())
        assert own.keys() == rest.keys()
        for name, expected in rest.items():
            torch.testing.assert_close(own[name].grad, expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("norm", ["running", "group"])
    def test_anil_is_a_linear_head_on_features_that_are_computed_once(self, norm):
        """Where the norms see one item at a time."""
        network, tasks = convolutional(norm), images()
        _, whole = build(network, adapted=last_layer(network))
        support_x, query_x = (network[:-1](x.flatten(0, 1)).unflatten(0, (TASKS, -1)) for x in (tasks.support_x, tasks.query_x))
        _, head = build(network[-1])
        features = tasks._replace(support_x=support_x, query_x=query_x)
        torch.testing.assert_close(head.unroll(*features)[-1].loc, whole.unroll(*tasks)[-1].loc, rtol=1e-10, atol=1e-10)

    def test_meta_sgd_with_equal_sizes_is_maml(self):
        """And each of its sizes learns by itself."""
        network, tasks = perceptron(), images()
        model, guide = build(network, rule={"learned": True, "per_feature": True})
        losses, gradient, _ = loop(network, tasks)
        torch.testing.assert_close(step_of(model, guide, tasks), losses.sum(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(guide.start.loc.grad[0], gradient, rtol=1e-10, atol=1e-10)
        assert guide.rule.log_size.shape == guide.rule.log_size.grad.shape == (3, model.predictor.num_weights)
        assert (guide.rule.log_size.grad.abs() > 0).double().mean() > 0.9

    def test_meta_sgd_moves_each_weight_by_its_own_size(self):
        network, tasks = perceptron(), images()
        _, guide = build(network, steps=1, rule={"per_feature": True})
        sizes = torch.rand_like(guide.rule.log_size)
        guide.rule.log_size.copy_(sizes.log())
        (before, after), (_, plain) = guide.unroll(*tasks), build(network, steps=1)[1].unroll(*tasks)
        torch.testing.assert_close(after.loc - before.loc, sizes / ALPHA * (plain.loc - before.loc))

    def test_networks_that_are_shared_are_not_changed(self):
        network = convolutional()
        before = copy.deepcopy(network.state_dict())
        model, guide = build(network)
        step_of(model, guide, images())
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in network.parameters())


def sinusoids(seed: int, tasks: int = 25) -> Episode:
    """Ten points of each, without noise, as inputs and values."""
    episode = sinusoid_tasks(tasks, noise=0.0, seed=seed).to(dtype=torch.float64)
    support_x, query_x = (radial_inputs(x)[..., None] for x in (episode.support_x, episode.query_x))
    return episode._replace(support_x=support_x, query_x=query_x)


@pytest.mark.slow
@pytest.mark.parametrize("first_order", [False, True])
def test_sinusoids_are_learned_to_be_learned(first_order):
    """After a step from the trained start the error of new tasks is well below that before it, and below what an untrained
    start comes to."""
    network, likelihood = nn.Sequential(*mlp(1, (40, 40), 1)), GaussianLikelihood(0.5**0.5, learned=False)
    model, guide = build(network, steps=1, likelihood=likelihood, outputs=1, rule={"size": 0.01}, first_order=first_order)
    objective, test = RateDistortionELBO(beta=0.0)(model, guide), sinusoids(10**6, 200)
    optimizer = torch.optim.Adam([guide.start.loc], 3e-3)

    def errors():
        with torch.no_grad():
            ends = [model.predictor(test.query_x, θ.loc)[..., 0] for θ in guide.unroll(*test)]
        return [float((end - test.query_y).square().mean()) for end in ends]

    _, untrained = errors()
    for seed in range(800):
        optimizer.zero_grad()
        (objective(*sinusoids(seed)) / 25).backward()
        optimizer.step()
    before, after = errors()
    assert after < 0.6 * untrained
    assert after < 0.6 * before


def test_under_pyros_own_svi_nothing_is_amiss():
    """Warnings are errors here: what is adapted is a constant, and no parameter that Pyro is told of."""
    network, tasks = convolutional(), images()
    model, guide = build(network, adapted=last_layer(network))
    before = [p.detach().clone() for p in (guide.start.loc, *model.predictor.parameters())]
    svi = SVI(model, guide, Adam({"lr": 0.01}), TraceMeanField_ELBO())
    assert math.isfinite(svi.step(*tasks))
    after = (guide.start.loc, *model.predictor.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_start_tells_units_apart():
    network = perceptron()
    functional = FunctionalNetwork(network)
    loc, _ = LearnedStart.from_network(functional)(*images()[:3], rows=1)
    assert loc.shape == (TASKS, 1, functional.num_weights)
    units = split_weights(loc[0, 0], functional.shapes)["1.weight"]
    assert torch.equal(units, network[1].weight)
    assert torch.pdist(units).min() > 0


class Unrolling(nn.Module):
    """The last posterior's mean, of a guide whose parameters are given."""

    def __init__(self, guide):
        super().__init__()
        self.guide = guide

    def forward(self, tasks):
        return self.guide.unroll(*tasks)[-1].loc
