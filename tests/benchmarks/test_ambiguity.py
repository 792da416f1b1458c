"""The tasks of benchmarks/ambiguity.py: half of them ambiguous, each with the queries of one pair; rows have their β."""

import pytest
import torch

from benchmarks.ambiguity import QUERIES, ROWS, SHOT, OnePair, build
from tests.data.test_ambiguous import PAIRS, attributes, numbered


def test_half_of_the_training_tasks_are_ambiguous_and_go_by_a_random_pair():
    episode = OnePair(numbered((45,) * 8)).sample(60, seed=1)
    support, query = (attributes(part) for part in (episode.support_x, episode.query_x))
    assert episode.support_y.shape == (60, 2 * SHOT)
    assert episode.query_y.shape == (60, 2 * QUERIES)
    ambiguous = (support == episode.support_y[..., None]).all((1, 2))
    assert int(ambiguous.sum()) == 30
    by = torch.stack([(query[..., a] * query[..., b] == episode.query_y).all(1) for a, b in PAIRS], -1)
    assert (by.sum(-1) == 1).all()
    assert (by[ambiguous].sum(0) > 3).all()


@pytest.mark.parametrize(("row", "beta"), list(zip(ROWS, (0, 0, 0, 0, 0, 1.5, 4.5, 15.0), strict=True)))
def test_a_kl_weight_beside_a_mean_loss_is_beta(row, beta):
    objective = build(row, 8)
    assert objective.elbo.beta == pytest.approx(beta)
    assert (getattr(objective.guide, "posterior", None) is not None) is (beta > 0)
