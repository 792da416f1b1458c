"""What holds of every scorer: tasks apart, order, names of classes, transduction, gradients, devices."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from data.errors import UserError
from models.tasks.predictors import CosinePredictor, DistancePredictor
from models.tasks.scorers.attention import AttentionScorer, FullContextScorer
from models.tasks.scorers.base import DescriptionsScorer, MeansScorer, Scorer, labelled_means, log_sums, one_hot
from models.tasks.scorers.graph import GraphScorer
from models.tasks.scorers.pairs import PairScorer
from models.tasks.scorers.process import ClassProcessScorer
from models.tasks.scorers.propagation import PropagationScorer
from models.tasks.scorers.relation import RelationScorer

WAY, SHOT, DIM = 3, 2, 5
SCORERS = {
    "means": lambda: MeansScorer(CosinePredictor()),
    "descriptions": lambda: DescriptionsScorer(DistancePredictor(), DIM, DIM),
    "classes-process": lambda: ClassProcessScorer(DIM, width=7, code=6),
    "attention": AttentionScorer,
    "full-context": lambda: FullContextScorer(DIM),
    "relation": lambda: RelationScorer(DIM),
    "relation-sum": lambda: RelationScorer(DIM, summed=True),
    "pairs": lambda: PairScorer(DIM, width=7),
    "propagation": lambda: PropagationScorer(DIM, length=1.0, neighbours=6),
    "graph": lambda: GraphScorer(DIM, WAY, width=6, growth=4, widths=(8,)),
}
USE_UNLABELLED = ("propagation", "graph")
each = pytest.mark.parametrize("name", SCORERS)
pytestmark = pytest.mark.usefixtures("float64")


def build(name: str) -> Scorer:
    return SCORERS[name]()


def tasks(number: int = 4, queries: int = 6):
    """Support items, class after class, their labels, and queries."""
    support_y = torch.arange(WAY).repeat_interleave(SHOT).expand(number, -1)
    return torch.randn(number, WAY * SHOT, DIM), support_y, torch.randn(number, queries, DIM)


@each
def test_shape_and_finite(name):
    assert build(name)(*tasks(), WAY).shape == (4, 6, WAY)
    assert bool(build(name)(*tasks(), WAY).isfinite().all())


@each
def test_tasks_do_not_leak(name):
    scorer, (support_x, support_y, query_x) = build(name), tasks()
    together = scorer(support_x, support_y, query_x, WAY)
    for task in range(4):
        alone = scorer(*(part[task : task + 1] for part in (support_x, support_y, query_x)), WAY)
        torch.testing.assert_close(together[task], alone[0])


@each
def test_queries_have_no_order(name):
    scorer, (support_x, support_y, query_x) = build(name), tasks()
    order = torch.randperm(6)
    expected = scorer(support_x, support_y, query_x, WAY)[:, order]
    torch.testing.assert_close(scorer(support_x, support_y, query_x[:, order], WAY), expected)


@each
def test_the_order_of_support_items_matters_to_full_context_alone(name):
    scorer, (support_x, support_y, query_x) = build(name), tasks()
    order = torch.randperm(WAY * SHOT)
    moved = scorer(support_x[:, order], support_y[:, order], query_x, WAY)
    assert torch.allclose(moved, scorer(support_x, support_y, query_x, WAY)) == (name != "full-context")


@each
def test_renaming_classes_renames_predictions(name):
    """Where items stay where they are; the graph's dense layers alone see which class is which."""
    scorer, (support_x, support_y, query_x) = build(name), tasks()
    names = torch.tensor([2, 0, 1])
    renamed = scorer(support_x, names[support_y], query_x, WAY)[..., names]
    assert torch.allclose(renamed, scorer(support_x, support_y, query_x, WAY)) == (name != "graph")


@each
def test_transductive_says_whether_another_query_changes_a_prediction(name):
    scorer, (support_x, support_y, query_x) = build(name), tasks()
    before = scorer(support_x, support_y, query_x, WAY)[:, 0]
    other = torch.cat([query_x[:, :1], torch.randn(4, 5, DIM)], dim=1)
    unchanged = torch.allclose(scorer(support_x, support_y, other, WAY)[:, 0], before)
    assert unchanged == (not scorer.transductive)
    assert scorer.transductive == (name == "propagation")


@each
def test_unlabelled_support_items_are_used_or_as_if_they_were_not_there(name):
    scorer, (support_x, support_y, query_x) = build(name), tasks()
    unlabelled = support_y.clone()
    unlabelled[:, [1, 5]] = -1
    kept = [0, 2, 3, 4]
    without = scorer(support_x[:, kept], support_y[:, kept], query_x, WAY)
    scores = scorer(support_x, unlabelled, query_x, WAY)
    assert torch.allclose(scores, without) == (name not in USE_UNLABELLED)
    assert not torch.allclose(scores, scorer(support_x, support_y, query_x, WAY)), "their labels are not known"
    moved = support_x.clone()
    moved[:, [1, 5]] += 0.1
    assert torch.allclose(scorer(moved, unlabelled, query_x, WAY), scores) == (name not in USE_UNLABELLED)


@each
def test_every_parameter_learns(name):
    scorer = build(name)
    scorer(*tasks(), WAY).log_softmax(-1)[..., 0].sum().backward()
    still = [n for n, p in scorer.named_parameters() if p.grad is None or not bool(p.grad.any())]
    drop_out = {"means": ["predictor.bias"], "pairs": ["bias"]}  # constants of all classes
    assert [n for n in still if abs(float(scorer.get_parameter(n).grad)) < 1e-12] == still
    assert set(still) <= set(drop_out.get(name, []))


@each
def test_a_class_without_labelled_items_leaves_predictions_and_gradients_finite(name):
    scorer, (support_x, support_y, query_x) = build(name), tasks()
    support_x.requires_grad_()
    log_probabilities = scorer(support_x, torch.where(support_y == 1, -1, support_y), query_x, WAY).log_softmax(-1)
    log_probabilities[..., 0].sum().backward()
    assert bool(log_probabilities[..., [0, 2]].isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in (support_x, *scorer.parameters()))


@pytest.mark.filterwarnings("ignore:.*data pointer of FakeTensor")  # torch's own, as it makes an LSTM
@each
def test_single_precision_and_a_device_that_is_not_there(name):
    """No tensor of the CPU meets those of the device, no number is read back, and numbers keep their type."""
    torch.set_default_dtype(torch.float32)
    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=False):  # whose LSTM asks for a driver
        with torch.device("cuda"):
            scorer, arguments = build(name), tasks()
        scores = scorer(*arguments, WAY)
    assert (scores.device.type, scores.dtype) == ("cuda", torch.float32)


def test_another_number_of_classes_is_refused_by_those_that_are_made_for_one():
    for name in SCORERS:
        scorer, (support_x, support_y, query_x) = build(name), tasks()
        assert scorer.way == (WAY if name == "graph" else None)
        if scorer.way is None:
            assert scorer(support_x, support_y, query_x, 4).shape == (4, 6, 4)
        else:
            with pytest.raises(UserError, match="`way=3`"):
                scorer(support_x, support_y, query_x, 4)


def test_means_are_those_of_the_labelled_items():
    support_x, support_y, query_x = tasks()
    means = support_x.view(4, WAY, SHOT, DIM).mean(2)
    expected = DistancePredictor(2.0)(query_x, means)
    torch.testing.assert_close(MeansScorer(DistancePredictor(2.0))(support_x, support_y, query_x, WAY), expected)
    support_y = support_y.clone()
    support_y[:, 0] = -1
    torch.testing.assert_close(labelled_means(support_x, support_y, WAY)[:, 0], support_x[:, 1])


def test_sums_by_class_are_in_logarithms_and_leave_the_unlabelled_out():
    scores, labels = torch.randn(1, 2, 5) * 300, torch.tensor([[0, 2, 0, -1, 2]])
    sums = log_sums(scores, labels, 3)
    for name, items in ((0, [0, 2]), (2, [1, 4])):
        torch.testing.assert_close(sums[..., name], scores[..., items].logsumexp(-1))
    assert bool(sums.isfinite().all())
    assert torch.equal(sums.softmax(-1)[..., 1], torch.zeros(1, 2))
    assert one_hot(labels, 3, torch.float64).tolist() == [[[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]]]


class TestDescriptions:
    def test_with_items_for_descriptions_and_a_map_that_changes_nothing_it_is_the_means(self):
        scorer = DescriptionsScorer(DistancePredictor(), DIM, DIM, unit=False)
        batch = tasks()
        torch.testing.assert_close(scorer(*batch, WAY), MeansScorer(DistancePredictor())(*batch, WAY), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("unit", [True, False])
    def test_it_is_the_distance_to_mapped_descriptions(self, unit):
        """−‖x − c_k‖², up to what all classes have in common; descriptions may be longer than features."""
        scorer = DescriptionsScorer(DistancePredictor(2.0), DIM + 2, DIM, unit=unit)
        nn.init.normal_(scorer.map.weight)
        described, query = torch.randn(4, WAY, DIM + 2), torch.randn(4, 6, DIM)
        found = scorer(described, torch.arange(WAY).expand(4, -1), query, WAY)
        prototypes = described @ scorer.map.weight.T
        if unit:
            prototypes = prototypes / prototypes.norm(dim=-1, keepdim=True)
        distances = (query[:, :, None] - prototypes[:, None]).square().sum(-1)  # of which the predictor takes a half
        torch.testing.assert_close(found.log_softmax(-1), (-0.5 * scorer.predictor.scale * distances).log_softmax(-1))
