"""A process's part of a batch: its rows, their weight, and its rows of the noise that one process would have drawn."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

from data.errors import UserError
from data.seeding import draw_part, part_of_batch, seeded
from guides.tasks.families import Family, PosteriorParameters
from inference.runs.processes import NoiseOfBatch, SharedNoise, agree, is_main, our_part
from models.bayesian.draws import call
from models.bayesian.network import BayesianNetwork
from models.distributions.diagonal import GaussianWeights
from models.plates import data_plate, task_plate


def module(world, rank):
    return SimpleNamespace(trainer=SimpleNamespace(world_size=world), global_rank=rank)


@pytest.mark.parametrize(("batch", "world"), [(16, 2), (15, 2), (7, 3), (3, 3)])
def test_parts_make_up_the_batch_and_the_mean_of_their_losses_is_its_loss(batch, world):
    losses = torch.rand(batch)
    parts, means = [], []
    for rank in range(world):
        with our_part(module(world, rank), batch) as part:
            parts.append(part.of(losses))
            means.append(part.weight * part.of(losses).mean())
    torch.testing.assert_close(torch.cat(parts), losses)
    torch.testing.assert_close(torch.stack(means).mean(), losses.mean())


def test_one_process_has_all_and_changes_nothing():
    with our_part(module(1, 0), 5) as part:
        assert part == (slice(0, 5), 1.0)
        torch.manual_seed(0)
        noise = draw_part(torch.randn, (5, 2), 0)
    torch.manual_seed(0)
    assert torch.equal(noise, torch.randn(5, 2))


def test_fewer_rows_than_processes_is_said():
    with pytest.raises(UserError, match="a batch of 2 cannot be shared by 3 processes"), our_part(module(3, 0), 2):
        pass


FAMILIES = {
    "normal": lambda loc: dist.Normal(loc, 0.5 + loc.square()).to_event(2),
    "full covariance": lambda loc: dist.MultivariateNormal(loc, torch.eye(3) + 0.2).to_event(1),
    "low rank": lambda loc: dist.LowRankMultivariateNormal(loc, torch.ones(3, 2), torch.ones(3)).to_event(1),
    "uniform noise": lambda loc: dist.Gumbel(loc, 1.0).to_event(2),
    "no noise": lambda loc: dist.Delta(loc).to_event(2),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_tasks", [None, 100])
@pytest.mark.parametrize("particles", [False, True])
def test_latent_sites_of_tasks_are_our_rows_of_one_process_draws(family, num_tasks, particles):
    """A global site before and after them has the same draw everywhere."""
    locs = torch.randn(5, 1, 4, 3)

    def program(loc):
        with pyro.plate("particles", 6, dim=-3) if particles else pyro.plate("once", 1, dim=-3):
            first = pyro.sample("first", dist.Normal(0.0, 1.0))
            with task_plate(loc, num_tasks):
                weights = pyro.sample("weights", FAMILIES[family](loc))
                with pyro.plate("queries", 2, dim=-1):
                    labels = pyro.sample("labels", dist.Normal(weights.sum((-1, -2)), 1.0))
            return first, weights, labels, pyro.sample("last", dist.Normal(0.0, 1.0))

    with seeded(1):
        whole = program(locs)
    for rank in range(2):
        with seeded(1), our_part(module(2, rank), 5) as part:
            ours = program(part.of(locs))
        for name, one, two in zip(("first", "weights", "labels", "last"), whole, ours, strict=True):
            expected = one if name in ("first", "last") else part.of(one, 1)
            torch.testing.assert_close(two, expected, rtol=0, atol=0, msg=name)


def test_sites_of_items_are_shared_too():
    with seeded(1), data_plate(50, 6, torch.device("cpu")):
        whole = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0))
    with seeded(1), our_part(module(2, 1), 6), data_plate(50, 3, torch.device("cpu")):
        ours = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
    assert torch.equal(ours, whole[3:])


def test_draws_within_the_inner_steps_are_shared():
    theta = PosteriorParameters(torch.randn(4, 3, 2), torch.randn(4, 3, 2))
    with seeded(1):
        whole = Family.GAUSSIAN.expected_gradient(torch.square, theta, 5)
    with seeded(1), our_part(module(2, 1), 4):
        ours = Family.GAUSSIAN.expected_gradient(torch.square, PosteriorParameters(*(t[2:] for t in theta)), 5)
    for one, two in zip(whole, ours, strict=True):
        torch.testing.assert_close(two, one[2:])


@pytest.mark.parametrize(("copies", "maps"), [(1, True), (1, False), (3, False)])
@pytest.mark.parametrize("bias", [False, True])
def test_layers_that_draw_their_outputs_share_their_noise(copies, maps, bias):
    first = [torch.nn.Conv2d(1, 2, 3, bias=bias), torch.nn.ReLU(), torch.nn.Flatten()] if maps else [torch.nn.Flatten()]
    model = BayesianNetwork(torch.nn.Sequential(*first, torch.nn.Linear(8 if maps else 16, 3, bias=bias)), posteriors=copies)
    loc, variance = torch.randn(copies, model.num_weights), torch.rand(copies, model.num_weights)
    x = torch.randn(*([copies] if copies > 1 else []), 5, 1, 4, 4)
    with seeded(1):
        whole = model.outputs(x, GaussianWeights(loc, variance))
    for rank in range(2):
        with seeded(1), our_part(module(2, rank), 5) as part:
            ours = model.outputs(part.of(x, x.dim() - 4), GaussianWeights(loc, variance))
        torch.testing.assert_close(ours, part.of(whole, 1))


def test_plain_draws_of_weights_are_the_same_in_every_process():
    layer = torch.nn.Linear(5, 5, bias=False)
    weight = {"weight": GaussianWeights(torch.zeros(5, 5), torch.ones(5, 5))}
    with seeded(1):
        whole = call(layer, weight, torch.eye(5), linear="plain")
    with seeded(1), part_of_batch(slice(0, 5), 10), SharedNoise():
        assert torch.equal(call(layer, weight, torch.eye(5), linear="plain"), whole)


def test_noise_of_other_shapes_and_generators_is_left_alone():
    generator = torch.Generator()
    with part_of_batch(slice(0, 2), 4), NoiseOfBatch(0, 2):
        torch.manual_seed(0)
        other = torch.randn(3, 2)
        own = torch.rand(2, generator=generator.manual_seed(3))
    torch.manual_seed(0)
    assert torch.equal(other, torch.randn(3, 2))
    assert torch.equal(own, torch.rand(2, generator=generator.manual_seed(3)))


def test_one_process_agrees_with_itself():
    assert is_main()
    assert agree(lambda: 3) == 3
    with pytest.raises(UserError, match="wrong"):
        agree(lambda: (_ for _ in ()).throw(UserError("wrong")))
