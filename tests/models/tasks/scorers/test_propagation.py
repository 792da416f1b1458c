"""Label propagation against its iteration, a Gaussian field's posterior and its limits."""

import pytest
import torch
import torch.nn.functional as F

from models.tasks.scorers.base import one_hot
from models.tasks.scorers.propagation import PropagationScorer, field, nearest, normalised, propagate

pytestmark = pytest.mark.usefixtures("float64")
LABELS = torch.tensor([[0, 1, 2, -1, 0, -1, -1, -1, -1], [2, 1, 0, 1, -1, -1, -1, -1, -1]])


def graph(n: int = 9) -> torch.Tensor:
    """S of two random graphs whose edges are positive."""
    return normalised(torch.cdist(x := torch.randn(2, n, 3), x).square().neg().exp())


def inputs():
    return torch.randn(2, 4, 3), LABELS[:, :4], torch.randn(2, 5, 3)


def test_closed_form_is_the_fixed_point_of_propagation():
    """F ← αSF + (1 − α) Y converges to (1 − α) (I − αS)⁻¹ Y."""
    similarity, labels, alpha = graph(), one_hot(LABELS, 3, torch.float64), 0.9
    moving = labels
    for _ in range(500):
        moving = alpha * similarity @ moving + (1 - alpha) * labels
    torch.testing.assert_close((1 - alpha) * propagate(similarity, labels, alpha), moving, rtol=1e-12, atol=1e-13)


def test_it_is_the_posterior_of_a_gaussian_field():
    """Conditioned by blocks of a joint covariance, for which a little is added to a precision that has an eigenvalue of 0."""
    similarity, labels, alpha = graph(), one_hot(LABELS, 3, torch.float64), 0.99
    precision = alpha / (1 - alpha) * (torch.eye(9) - similarity)
    prior = torch.linalg.inv(precision + 1e-6 * torch.eye(9))
    gain = prior @ torch.linalg.inv(prior + torch.eye(9))
    mean, variance = field(similarity, labels, alpha)
    torch.testing.assert_close(mean, gain @ labels, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, (prior - gain @ prior).diagonal(0, -2, -1), rtol=1e-4, atol=1e-5)
    inverse = torch.linalg.inv(precision + torch.eye(9))  # the posterior's covariance, noise of variance 1
    torch.testing.assert_close(mean, inverse @ labels, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(variance, inverse.diagonal(0, -2, -1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean, (1 - alpha) * propagate(similarity, labels, alpha), rtol=1e-12, atol=1e-15)


def test_the_graph_is_that_of_scaled_items():
    scorer, x = PropagationScorer(3, neighbours=None, length=0.8), torch.randn(2, 9, 3)
    scaled = x / (0.8 * scorer.lengths(x).exp())
    assert float(scorer.lengths(x).detach().std()) > 0.01, "items have lengths of their own"
    weights = torch.cdist(scaled, scaled).square().mul(-0.5).exp()
    root = torch.diag_embed(weights.sum(-1).rsqrt())
    torch.testing.assert_close(scorer.graph(x), root @ weights @ root, rtol=1e-7, atol=1e-10)
    eigenvalues = torch.linalg.eigvalsh(scorer.graph(x))
    assert float(eigenvalues.detach().abs().max()) < 1 + 1e-12
    assert float((scorer.graph(x) - scorer.graph(x).mT).detach().abs().max()) < 1e-15


def test_edges_are_kept_by_either_end():
    x = torch.tensor([[0.0], [1.0], [2.1], [10.0]])
    weights = torch.cdist(x, x).neg().exp()
    assert nearest(weights, 2).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert bool(nearest(weights, 20).all())
    scorer = PropagationScorer(3, neighbours=3)
    edges = scorer.graph(torch.randn(5, 9, 3)) > 0
    assert bool((edges.sum(-1) >= 3).all())
    assert not bool(edges.all())


def test_logits_are_powers_of_the_shares():
    support_x, support_y, query_x = inputs()
    scorer = PropagationScorer(3, neighbours=None, length=1.0, scale=2.0)
    similarity = scorer.graph(torch.cat([support_x, query_x], dim=1))
    spread = propagate(similarity, one_hot(F.pad(support_y, (0, 5), value=-1), 3, torch.float64), 0.99)[:, 4:]
    probabilities = spread.square() / spread.square().sum(-1, keepdim=True)
    torch.testing.assert_close(scorer(support_x, support_y, query_x, 3).softmax(-1), probabilities, rtol=1e-4, atol=1e-6)


def test_without_spreading_the_nearest_labelled_item_decides():
    support_x, support_y, query_x = torch.randn(20, 4, 3), torch.arange(4).expand(20, -1), torch.randn(20, 5, 3)
    scorer = PropagationScorer(3, alpha=1e-9, neighbours=None, length=1.0, scale=1.0)
    edges = scorer.graph(torch.cat([support_x, query_x], dim=1))[:, 4:, :4]  # one item a class
    shares = edges / edges.sum(-1, keepdim=True)
    torch.testing.assert_close(scorer(support_x, support_y, query_x, 4).softmax(-1), shares, rtol=1e-4, atol=1e-5)
    scorer = PropagationScorer(3, alpha=1e-9, neighbours=None, length=0.1)
    with torch.no_grad():
        scorer.lengths[-2].weight.zero_()
    query_x = support_x + 0.05 * query_x[:, :4]
    assert torch.equal(scorer(support_x, support_y, query_x, 4).argmax(-1), torch.cdist(query_x, support_x).argmin(-1))


def test_a_query_that_no_label_reaches_says_so():
    support_x, support_y, query_x = inputs()
    scores = PropagationScorer(3)(support_x, support_y, 1e9 + query_x, 3)
    torch.testing.assert_close(scores.softmax(-1), torch.full((2, 5, 3), 1 / 3), rtol=1e-6, atol=1e-6)


def test_single_precision_is_solved_in_double():
    """Only what goes in and comes out is rounded; solved in single precision, the error is thirty times as large."""
    support_x, support_y, query_x = (part.float() if part.is_floating_point() else part for part in inputs())
    scorer = PropagationScorer(3, length=1.0, scale=1.0).float()
    single = scorer(support_x, support_y, query_x, 3)
    exact = scorer.double()(support_x.double(), support_y, query_x.double(), 3)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=3e-7)


@pytest.mark.parametrize("options", [{"alpha": 1.0}, {"alpha": -0.1}, {"neighbours": 1}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PropagationScorer(3, **options)
