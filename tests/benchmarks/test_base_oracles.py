"""What queries could tell of base classes: weights by the others' labels, by guesses, and what balances classes."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.base_oracles import BaseClasses, Held, balancing, gains, less_shares
from models.tasks.predictors import CosinePredictor, DistancePredictor

CLASSES, DIM, TASKS, QUERIES = 4, 5, 3, 6


@pytest.fixture
def classes(float64):
    return BaseClasses(CosinePredictor().double(), torch.randn(CLASSES, DIM), torch.rand(CLASSES, DIM) * 0.1)


def queries():
    return F.normalize(torch.randn(TASKS, QUERIES, DIM), dim=-1), torch.randint(CLASSES, (TASKS, QUERIES))


def test_labels_of_others_leave_out_the_item_itself(classes):
    """Held against one classifier per item, whose own class is without it and whose other classes have theirs."""
    items, labels = queries()
    found = classes.by_others(items, labels, 3.0)
    for task in range(TASKS):
        for item in range(QUERIES):
            weights = classes.loc.clone()
            for c in range(CLASSES):
                others = [items[task, i] for i in range(QUERIES) if i != item and labels[task, i] == c]
                direction = 3 * classes.loc[c] / classes.loc[c].norm() + sum(others, torch.zeros(DIM))
                weights[c] = classes.loc[c].norm() * direction / direction.norm()
            length = (weights.square() + classes.variance).sum(-1).sqrt()
            expected = 10 * (weights @ items[task, item]) / length
            torch.testing.assert_close(found[task, item], expected)


def test_a_class_that_counts_for_much_is_not_drawn(classes):
    items, labels = queries()
    before = classes.outputs(items)
    torch.testing.assert_close(classes.by_others(items, labels, 1e9), before)
    torch.testing.assert_close(classes.by_guesses(items, 1e9), before)
    assert not torch.allclose(classes.by_guesses(items, 1.0), before)


def test_guesses_are_probabilities_of_the_round_before(classes):
    items, _ = queries()
    outputs = classes.outputs(items)
    for _ in range(2):
        sums = torch.einsum("tqc,tqd->tcd", outputs.softmax(-1), items) + 2 * F.normalize(classes.loc, dim=-1)
        outputs = classes.outputs(items, F.normalize(sums, dim=-1) * classes.loc.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(classes.by_guesses(items, 2.0), outputs)


def test_offsets_make_all_classes_equally_frequent(float64):
    outputs = torch.randn(50, CLASSES) + torch.tensor([2.0, 0.0, 0.0, -2.0])
    share = (outputs + balancing(outputs)).softmax(-1).mean(0)
    torch.testing.assert_close(share, torch.full((CLASSES,), 1 / CLASSES))


def test_a_class_with_many_queries_is_less_probable_less_shares(float64):
    outputs = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    first = 3 * torch.sigmoid(torch.tensor(3.0))
    expected = torch.stack([(first + 4) / 5.5, (3 - first + 4) / 5.5]).log() * -0.5
    torch.testing.assert_close(less_shares(outputs) - outputs, expected.expand(3, 2))


def test_gains_are_of_base_queries_over_the_guide_as_it_is(float64):
    """Two classes far apart, and every item where its class is: nothing is left to gain, or lost."""
    places = 5.0 * torch.eye(2)
    classes = BaseClasses(DistancePredictor().double(), places, torch.zeros(2, 2))
    labels = torch.tensor([[0, 1, 0], [1, 1, 0]])
    found = gains(classes, Held(places, places[labels], torch.full((2, 3, 2), 2.0), labels))
    assert found.pop("Base") == ["100.00"]
    assert set(found["centred"]) == {"+0.00 ± 0.00"}
    assert found["labels, its own too"] == found["guesses, base queries"] == ["+0.00 ± 0.00"] * 4
    swapped = Held(places, places[1 - labels], torch.full((2, 3, 2), 2.0), labels)
    assert gains(classes, swapped)["Base"] == ["0.00"]
