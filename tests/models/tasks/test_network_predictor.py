"""Networks as predictors: draws, flat items, and one pass forward for outputs and their pull-back."""

import pytest
import torch
from torch import nn

from models.networks import functional
from models.networks.classifiers import build_network
from models.networks.functional import FunctionalNetwork
from models.networks.norms import with_norm
from models.tasks.network_predictor import EncodedPredictor, NetworkPredictor
from models.tasks.predictors import Predictor

SHAPE, WAY, TASKS, QUERIES = (1, 16, 16), 3, 2, 4


@pytest.fixture(autouse=True)
def double(float64):
    pass


def build(**options) -> NetworkPredictor:
    return NetworkPredictor(FunctionalNetwork(with_norm(build_network("conv4-2", SHAPE, WAY), "task")), WAY, **options)


def weights_of(predictor: NetworkPredictor, *leading: int) -> torch.Tensor:
    return predictor.network.flat() + 0.2 * torch.randn(*leading, TASKS, 1, predictor.num_weights)


@pytest.mark.parametrize("draws", [(), (1,), (3,), (3, 2)])
@pytest.mark.parametrize("flat", [False, True])
def test_draws_in_front_are_each_what_it_is_alone(draws, flat):
    predictor = build(item_shape=SHAPE if flat else None)
    items, weights = torch.randn(TASKS, QUERIES, *SHAPE), weights_of(predictor, *draws)
    outputs = predictor(items.flatten(2) if flat else items, weights)
    assert outputs.shape == (*draws, TASKS, QUERIES, WAY)
    for one, found in zip(
        weights.flatten(0, -4) if draws else weights[None], outputs.view(-1, *outputs.shape[-3:]), strict=True
    ):
        expected = torch.stack([predictor.network.call(x, w[0]) for x, w in zip(items, one, strict=True)])
        torch.testing.assert_close(found, expected)


def test_flat_items_may_have_as_many_leading_dimensions_as_the_weights():
    predictor = build(item_shape=SHAPE)
    items, weights = torch.randn(3, TASKS, QUERIES, 256), weights_of(predictor, 3)
    expected = torch.stack([predictor(x, w) for x, w in zip(items, weights, strict=True)])
    torch.testing.assert_close(predictor(items, weights), expected)
    torch.testing.assert_close(predictor(items, weights[:1]), torch.stack([predictor(x, weights[0]) for x in items]))


def test_outputs_and_pull_back_of_one_pass_are_the_generic_ones():
    predictor, calls = build(), []
    items, weights, cotangent = torch.randn(TASKS, QUERIES, *SHAPE), weights_of(predictor), torch.randn(TASKS, QUERIES, WAY)
    predictor.network.register_forward_hook(lambda *_: calls.append(1))
    outputs, pull_back = predictor.linearised(items, weights)
    found = pull_back(cotangent)
    assert len(calls) == 1
    torch.testing.assert_close(outputs, predictor.outputs(items, weights))
    torch.testing.assert_close(found, predictor.generic_pull_back(items, weights, cotangent))
    expected = torch.autograd.functional.vjp(lambda w: predictor.outputs(items, w), weights, cotangent)[1]
    torch.testing.assert_close(found, expected)
    assert predictor.pull_back.__func__ is Predictor.pull_back


def test_a_network_is_one_row_for_tasks_of_its_way():
    assert build().rows(WAY) == 1
    with pytest.raises(ValueError, match="3 outputs, the task has 5"):
        build().rows(5)
    assert NetworkPredictor(FunctionalNetwork(nn.Linear(2, 1)), 1).num_weights == 3


def encoded(norm="task", first=4):
    """A network, and the predictor that adapts all but its ``first`` layers."""
    _, backbone, head = with_norm(build_network("conv4-2", SHAPE, WAY), norm)
    layers = [*backbone, head]
    whole = nn.Sequential(*layers)
    rest = FunctionalNetwork(nn.Sequential(*layers[first:]))
    return whole, EncodedPredictor(nn.Sequential(*layers[:first]), rest, WAY, SHAPE)


@pytest.mark.parametrize("norm", ["task", "running", "group"])
@pytest.mark.parametrize("numbers", [2**18, QUERIES * 256])
def test_items_go_through_the_encoder_and_then_through_each_tasks_network(norm, numbers, monkeypatch):
    monkeypatch.setattr(functional, "NUMBERS_AT_ONCE", numbers)
    whole, predictor = encoded(norm)
    items = torch.randn(TASKS, QUERIES, 256)
    start = predictor.network.flat().expand(TASKS, 1, -1)
    expected = torch.stack([whole(task.view(QUERIES, *SHAPE)) for task in items])
    torch.testing.assert_close(predictor(items, start), expected)
    weights = weights_of(predictor)
    maps = torch.stack([predictor.encoder(task.view(QUERIES, *SHAPE)) for task in items])
    expected = torch.stack([predictor.network.call(x, w[0]) for x, w in zip(maps, weights, strict=True)])
    torch.testing.assert_close(predictor(items, weights), expected)
    assert len(torch.autograd.grad(expected.sum(), list(predictor.encoder.parameters()))) == len(list(whole[:4].parameters()))


def test_the_encoder_runs_once_however_many_weights_follow():
    _, predictor = encoded("running")
    calls = []
    predictor.encoder.register_forward_hook(lambda *_: calls.append(1))
    prepared = predictor.prepare(torch.randn(TASKS, QUERIES, 256))
    for _ in range(3):
        predictor.linearised(prepared, weights_of(predictor))
    assert len(calls) == 1


def test_an_encoder_that_goes_on_counting_statistics_is_refused():
    with pytest.raises(ValueError, match="cannot keep statistics of each task"):
        EncodedPredictor(nn.BatchNorm2d(1), FunctionalNetwork(nn.Linear(2, 1)), 1)
