"""Predictions for one's own task: those of the posterior, whatever the number of queries and the form of the items."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import UserError
from inference.meta.learner import FittedLearner
from inference.meta.prediction import relative_distance, shares
from inference.meta.stages import embed_items
from inference.runs.tensors import load_tensors, save_tensors
from models.networks.feature_network import FeatureNetwork
from tests.conftest import marked_images
from tests.inference.meta.test_learner import BANK, SibOptions, build, learner, task

NAMES = ["owl", "ant", "bee"]


def unequal(queries=6):
    """Three, two and one labelled items of three classes, by name, and queries."""
    rows = torch.tensor([0, 1, 2, 12, 13, 24])
    return BANK.items[rows], [NAMES[i] for i in (0, 0, 0, 1, 1, 2)], BANK.items[-queries:]


def test_equals_the_posterior():
    fitted, (support_x, support_y, query_x) = learner(), task()
    predicted = fitted.predict(support_x, support_y, query_x, num_samples=32)
    posterior = fitted.posterior(support_x, support_y, query_x)
    expected = posterior.probabilities(num_samples=32)[0]
    torch.testing.assert_close(predicted.probabilities, expected, atol=1e-5, rtol=1e-4)
    draws = posterior.predictive(num_samples=32).labels.probs[:, 0]
    for found, level in ((predicted.lower, 0.05), (predicted.upper, 0.95)):
        torch.testing.assert_close(found, draws.quantile(level, dim=0), atol=1e-5, rtol=1e-4)
    assert predicted.class_names == ("0", "1", "2")


def test_names_and_unequal_numbers_of_labelled_items():
    x, y, queries = unequal()
    predicted = learner().predict(x, y, queries)
    numbers = torch.tensor([sorted(NAMES).index(name) for name in y])
    expected = learner().posterior(x, numbers, queries).probabilities(num_samples=200)[0]
    torch.testing.assert_close(predicted.probabilities, expected, atol=1e-5, rtol=1e-4)
    assert predicted.class_names == ("ant", "bee", "owl")
    assert predicted.names == [predicted.class_names[i] for i in expected.argmax(-1).tolist()]
    gaps = learner().predict(x, [{"owl": 9, "ant": 3, "bee": 4}[name] for name in y], queries)
    assert gaps.class_names == ("3", "4", "9")
    torch.testing.assert_close(gaps.probabilities, predicted.probabilities)


def test_many_queries_are_shared_out(monkeypatch):
    """Every query is predicted once, in a part of the task's usual size, as the posterior of that part predicts it."""
    fitted, (x, y, _) = learner(), unequal()
    queries = BANK.items[torch.arange(96) % len(BANK)] + torch.arange(96)[:, None] * 1e-3
    done: list[int] = []
    predicted = fitted.predict(x, y, queries, batch=20, num_samples=32, watch=done.append)
    assert sum(done) == 96
    numbers = torch.tensor([sorted(NAMES).index(name) for name in y])
    parts = [rows for several in shares(96, 20, at_once=1000, seed=0) for rows in several]
    assert [len(rows) for rows in parts] == [20, 19, 19, 19, 19]
    for rows in parts:
        expected = fitted.posterior(x, numbers, queries[rows]).probabilities(num_samples=32)[0]
        torch.testing.assert_close(predicted.probabilities[rows], expected, atol=1e-5, rtol=1e-4)


def test_memory_does_not_depend_on_the_number_of_queries(monkeypatch):
    monkeypatch.setattr("inference.meta.prediction.NUMBERS_AT_ONCE", 1)
    (x, y, queries), done = unequal(40), []
    small = learner().predict(x, y, queries, batch=4, watch=done.append)
    assert max(done) == 4
    monkeypatch.undo()
    torch.testing.assert_close(small.probabilities, learner().predict(x, y, queries, batch=4).probabilities)


@pytest.mark.parametrize(("count", "most"), [(1, 75), (75, 75), (76, 75), (1000, 7), (10, 1)])
def test_shares_hold_every_query_once_in_nearly_equal_parts(count, most):
    parts = [rows for several in shares(count, most, at_once=30, seed=3) for rows in several]
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    sizes = [len(rows) for rows in parts]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


def test_one_query_alone():
    x, y, queries = unequal(1)
    assert learner().predict(x, y, queries).probabilities.shape == (1, 3)


def test_before_the_first_step_queries_do_not_matter_to_one_another():
    x, y, queries = unequal(12)
    alone = learner().predict(x, y, queries, steps=0, batch=1)
    together = learner().predict(x, y, queries, steps=0)
    torch.testing.assert_close(alone.probabilities, together.probabilities, atol=1e-5, rtol=1e-4)


def test_distance_is_in_units_of_the_distance_between_classes():
    support, labels = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 1.0]]), torch.tensor([0, 0, 1])
    queries = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 9.0]])
    torch.testing.assert_close(relative_distance(support, labels, queries), torch.tensor([0.0, 0.5, 2.0]))


def test_images_of_any_size_and_colour(tmp_path):
    data = marked_images()
    side = data.image_shape[-1]
    network = FeatureNetwork("conv4-8", data.image_shape).eval()
    fitted = build(SibOptions(beta=0.1, progress=False), embed_items(network, data.train), network, "own")
    images = [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in data.test.items[:9]]
    labels = [f"c{i % 3}" for i in range(9)]
    predicted = fitted.predict(images, labels, images)
    tensors = fitted.predict(data.test.items[:9], labels, data.test.items[:9].numpy())
    torch.testing.assert_close(predicted.probabilities, tensors.probabilities)
    larger = [image.resize((3 * side, 2 * side)) for image in images]
    assert fitted.predict(larger, labels, np.stack([np.asarray(image) for image in images])).probabilities.shape == (9, 3)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    files = fitted.predict(images, labels, sorted(tmp_path.iterdir()))
    torch.testing.assert_close(files.probabilities, predicted.probabilities)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((BANK.items[:3], [0, 1], BANK.items), "support_x has 3 items and support_y 2 labels"),
        ((BANK.items[:2], [1, 1], BANK.items), "one class"),
        ((BANK.items[:2], [0.5, 1.0], BANK.items), "real numbers"),
        ((BANK.items[:2, :4], [0, 1], BANK.items), "features of 10 numbers are expected"),
        ((BANK.items[:2], [0, 1], []), "no items"),
        ((BANK.items[:2], [0, 1], BANK.items[:0]), "query_x has no items"),
    ],
)
def test_errors_are_one_line(given, message):
    with pytest.raises(UserError, match=message) as error:
        learner().predict(*given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", [{"num_samples": 0}, {"num_samples": 2.5}, {"batch": 0}, {"batch": "3"}])
def test_wrong_options_are_one_line(option):
    with pytest.raises(UserError, match=rf"`{next(iter(option))}=.*must be a whole number"):
        learner().predict(BANK.items[:2], [0, 1], BANK.items, **option)


class TestSaving:
    @pytest.mark.parametrize("lost", ["spec", "variant", "settings", "dataset"])
    def test_a_file_that_lacks_something_is_refused(self, lost, tmp_path):
        path = learner().save(tmp_path / "sib.safetensors")
        tensors, metadata = load_tensors(path)
        save_tensors(path, tensors, {name: value for name, value in metadata.items() if name != lost})
        with pytest.raises(UserError, match=r"sib\.safetensors is damaged: it lacks"):
            FittedLearner.load(path)

    def test_a_place_that_cannot_be_written_to(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot write to"):
            learner().save(tmp_path / "file" / "sib.safetensors")

    def test_a_file_holds_everything(self, tmp_path):
        data = marked_images()
        network = FeatureNetwork("conv4-8", data.image_shape).eval()
        network.standardize.fit(data.train.items)
        fitted = build(SibOptions(beta=0.1, progress=False), embed_items(network, data.train), network, "own")
        given = (data.test.items[:9], [i % 3 for i in range(9)], data.test.items)
        expected = fitted.predict(*given)
        loaded = FittedLearner.load(fitted.save(tmp_path / "sib.safetensors"))
        assert torch.equal(loaded.predict(*given).probabilities, expected.probabilities)
        double = loaded.to(torch.float64).predict(*given)
        assert double.probabilities.dtype == torch.float64
        torch.testing.assert_close(double.probabilities, expected.probabilities.double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(double.distance, expected.distance.double(), atol=1e-5, rtol=1e-5)

    def test_features_alone_need_no_network(self, tmp_path):
        fitted = learner()
        loaded = FittedLearner.load(fitted.save(tmp_path / "sib.safetensors")).to("cpu", torch.float64)
        torch.testing.assert_close(
            loaded.predict(*task()).probabilities, fitted.predict(*task()).probabilities.double(), atol=1e-6, rtol=0
        )

    def test_other_files_are_refused(self, tmp_path):
        file = save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
        with pytest.raises(UserError, match="holds no learner of SIB"):
            FittedLearner.load(file)


def test_distance_of_one_query_is_that_among_many():
    """Features far from 0 have squares that cancel."""
    generator = torch.Generator().manual_seed(0)
    x, queries = (torch.randn(n, 8, generator=generator) + 1000 for n in (6, 60))
    y = torch.arange(6)
    many = relative_distance(x, y, queries)
    torch.testing.assert_close(torch.cat([relative_distance(x, y, query[None]) for query in queries]), many)
    exact = torch.stack([(query - x).norm(dim=-1).min() for query in queries])
    torch.testing.assert_close(many * torch.pdist(x).mean(), exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_predicts_in_any_precision(dtype):
    x, y, queries = unequal()
    expected = learner().predict(x, y, queries)
    predicted = learner().to(dtype).predict(x, y, queries)
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(predicted.probabilities.float(), expected.probabilities, atol=tolerance, rtol=0)
    torch.testing.assert_close(predicted.distance.float(), expected.distance, atol=tolerance, rtol=0)
    assert predicted.lower.dtype in (torch.float32, torch.float64)
