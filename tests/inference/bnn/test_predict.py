"""Predictions of fitted networks: sums written out, any number of items, whatever they come as."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import inference.bnn.predict
from data.errors import UserError
from inference.bnn.bnn import BNN
from inference.bnn.predict import predict_items
from inference.evaluation.predictions import ClassPredictions
from inference.evaluation.value_predictions import ValuePredictions
from tests.inference.bnn.conftest import blobs


@pytest.fixture
def classes():
    x, y = blobs(60)
    return BNN.fit(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), x, y, epochs=5, batch=20), x


@pytest.fixture
def values():
    x = torch.randn(30, 4)
    return BNN.fit(nn.Linear(4, 1), x, x[:, 0], epochs=3, batch=10, noise=0.3), x


def test_classes_are_averaged_over_draws(classes):
    bnn, x = classes
    probabilities = bnn.posterior.outputs(x, num_samples=40, seed=2).softmax(-1)
    predicted = bnn.predict(x, seed=2)
    torch.testing.assert_close(predicted.probabilities, probabilities.mean(0))
    torch.testing.assert_close(predicted.labels, probabilities.mean(0).argmax(-1))
    entropy = -(probabilities.mean(0) * probabilities.mean(0).log()).sum(-1)
    torch.testing.assert_close(predicted.entropy, entropy)
    inner = -(probabilities * probabilities.log()).sum(-1).mean(0)
    torch.testing.assert_close(predicted.mutual_information, entropy - inner, atol=1e-5, rtol=1e-3)
    assert float(predicted.mutual_information.max()) > 1e-3


def test_values_split_their_variance(values):
    bnn, x = values
    functions, predicted = bnn.posterior.outputs(x, num_samples=40)[..., 0], bnn.predict(x)
    torch.testing.assert_close(predicted.draws, functions)
    torch.testing.assert_close(predicted.mean, functions.mean(0))
    torch.testing.assert_close(predicted.function_deviation, functions.std(0, correction=0))
    torch.testing.assert_close(predicted.noise_deviation, torch.full((30,), 0.3))
    total = (functions.var(0, correction=0) + 0.09).sqrt()
    torch.testing.assert_close(predicted.standard_deviation, total)


def test_binary_targets_are_two_classes():
    x = torch.randn(30, 4)
    bnn = BNN.fit(nn.Linear(4, 1), x, (x[:, 0] > 0).float(), likelihood="bernoulli", epochs=2)
    predicted = bnn.predict(x)
    positive = bnn.posterior.outputs(x)[..., 0].sigmoid().mean(0)
    torch.testing.assert_close(predicted.probabilities, torch.stack([1 - positive, positive], -1))


def test_counts_have_intervals_of_counts():
    x = torch.randn(30, 4)
    bnn = BNN.fit(nn.Linear(4, 1), x, torch.full((30,), 4), likelihood="poisson", epochs=30, batch=30, learning_rate=0.2)
    predicted = bnn.predict(x[:3])
    assert isinstance(predicted, ValuePredictions)
    assert bool((predicted.lower < predicted.mean).all())
    assert bool((predicted.mean < predicted.upper).all())
    torch.testing.assert_close(predicted.lower, bnn.predict(x[:3]).lower, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_no_prediction_depends_on_the_items_beside_it(kind, request, monkeypatch):
    bnn, x = request.getfixturevalue(kind)
    whole = bnn.predict(x)
    monkeypatch.setattr(inference.bnn.predict, "NUMBERS_AT_ONCE", 400)
    for other in (bnn.predict(x), type(whole).concatenate([bnn.predict(x[i : i + 1]) for i in range(len(x))])):
        for name, value in vars(whole).items():
            if name != "class_names":
                torch.testing.assert_close(getattr(other, name), value, atol=1e-6, rtol=1e-5)


class Counts(nn.Linear):
    """Knows the largest batch it has seen."""

    largest = 0

    def forward(self, x):
        Counts.largest = max(Counts.largest, len(x))
        return super().forward(x)


def test_memory_does_not_grow_with_the_number_of_items():
    x, y = torch.randn(30, 1), torch.arange(30) % 2
    bnn = BNN.fit(Counts(1, 2), x, y, epochs=1)
    Counts.largest = 0
    predicted = bnn.predict(torch.zeros(100_000, 1), num_samples=2)
    assert len(predicted) == 100_000
    assert Counts.largest == 1000
    bnn.predict(torch.zeros(30, 1))
    assert inference.bnn.posterior.items_at_once(torch.zeros(2, 3, 224, 224)) == 6, "large images pass a few at a time"


def test_draws_are_those_of_the_seed(classes):
    bnn, x = classes
    first, again, other = (bnn.predict(x, num_samples=4, seed=seed).probabilities for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["numpy", "pairs", "loader", "images"])
def test_items_of_any_kind_are_taken(kind):
    items = torch.randint(0, 256, (12, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y, names = torch.arange(12) % 3, ["ant", "bee", "cat"]
    network = nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(36, 3))
    given = {
        "numpy": (items.numpy(), y.numpy()),
        "pairs": (TensorDataset(items, y), None),
        "loader": (DataLoader(TensorDataset(items, y), batch_size=5), None),
        "images": ([Image.fromarray(item[0].numpy()) for item in items], [names[i] for i in y]),
    }[kind]
    expected = BNN.fit(network, items, y, epochs=1)
    bnn = BNN.fit(network, *given, epochs=1)
    torch.testing.assert_close(bnn.posterior.loc, expected.posterior.loc, atol=0, rtol=0)
    predicted = bnn.predict(given[0])
    torch.testing.assert_close(predicted.probabilities, expected.predict(items).probabilities, atol=0, rtol=0)
    assert predicted.class_names == (tuple(names) if kind == "images" else ("0", "1", "2"))


class Scaled(nn.Module):
    """uint8 images to floats."""

    def forward(self, x):
        return x.float() / 255


def test_several_targets_come_from_pairs_too():
    x = torch.randn(20, 3)
    bnn = BNN.fit(nn.Linear(3, 2), TensorDataset(x, x[:, :2]), epochs=1)
    assert isinstance(bnn.predict(x), ValuePredictions)
    assert bnn.predict(x).mean.shape == (20, 2)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(6, 4), None, "no targets: give one per item"),
        (torch.randn(6, 4), [0, 1], "6 items and 2 targets"),
        (torch.randn(0, 4), torch.zeros(0), "0 items and 0 targets"),
        ([Image.new("L", (6, 6)), Image.new("L", (8, 6))], [0, 1], "item 1 is 1×6×8 where the first is 1×6×6"),
        (torch.randn(6, 4), ["a", "b", 3, None, 1, 2], "targets must be numbers, or names"),
        (torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 5]), "labels from 0 to 5, but the network has outputs for 0 to 2"),
        (torch.randn(6, 4).log(), torch.zeros(6).long(), "items hold NaN or infinite numbers"),
        (torch.randn(6, 4), torch.rand(6, 2, 2), "y has shape 6×2×2"),
        (np.array(["a", "b"]), [0, 1], "an item of type"),
    ],
)
def test_bad_inputs_are_named_in_one_line(x, y, message):
    with pytest.raises(UserError, match=message) as error:
        BNN.fit(nn.Linear(4, 3), x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.randn(6, 5), {}, "x has shape 6×5: give n×4, as the network was fitted to items of shape 4"),
        (torch.randn(4), {}, "x has shape 4: give n×4"),
        (torch.full((2, 4), torch.inf), {}, "x holds NaN or infinite numbers"),
        (torch.randn(0, 4), {}, "x has no items"),
        (torch.randn(2, 4), {"num_samples": 0}, "`num_samples=0` must be a whole number, 1 or more"),
    ],
)
def test_items_that_cannot_be_predicted_are_named(values, x, options, message):
    with pytest.raises(UserError, match=message) as error:
        values[0].predict(x, **options)
    assert "\n" not in str(error.value)


def test_a_posterior_alone_is_enough(classes):
    bnn, x = classes
    predicted = predict_items(bnn.posterior, x, num_samples=40)
    assert isinstance(predicted, ClassPredictions)
    torch.testing.assert_close(predicted.probabilities, bnn.predict(x).probabilities, atol=0, rtol=0)
    assert dist.Categorical(probs=predicted.probabilities).entropy().shape == predicted.entropy.shape
