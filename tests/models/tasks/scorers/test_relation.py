"""The relation network against its network on each pair."""

import pytest
import torch

from models.tasks.scorers.relation import RelationScorer

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("summed", [False, True])
def test_each_class_is_compared_by_itself(summed):
    scorer = RelationScorer(4, widths=(7, 3), summed=summed)
    support_x, query_x = torch.randn(2, 7, 4), torch.randn(2, 5, 4)
    support_y = torch.tensor([[0, 1, 1, 2, 2, 2, 0], [2, 2, 1, 0, 0, 1, -1]])
    scores = scorer(support_x, support_y, query_x, 3)
    for task, query, name in ((0, 1, 0), (0, 4, 2), (1, 0, 1), (1, 3, 0)):
        items = support_x[task][support_y[task] == name]
        vector = items.sum(0) if summed else items.mean(0)
        expected = scorer.relation(torch.cat([query_x[task, query], vector]))[0]
        torch.testing.assert_close(scores[task, query, name], expected, rtol=1e-12, atol=1e-12)


def test_any_number_of_classes_with_the_same_scores_for_those_there_are():
    scorer, support_x, query_x = RelationScorer(4), torch.randn(1, 6, 4), torch.randn(1, 5, 4)
    few = scorer(support_x[:, :3], torch.arange(3)[None], query_x, 3)
    torch.testing.assert_close(scorer(support_x, torch.arange(6)[None], query_x, 6)[..., :3], few, rtol=1e-12, atol=1e-12)


def test_hidden_layers_are_rectified():
    scorer = RelationScorer(4, widths=(7, 3))
    kinds = [type(layer).__name__ for layer in scorer.relation]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [layer.out_features for layer in scorer.relation[::2]] == [7, 3, 1]
