"""The ordinary classifier of zero-shot runs: what it says of whole tasks, and how much of their statistics it takes."""

import pytest
import torch

from data.sources.domains import LetterDomains
from inference.meta.classifiers import SHARES, DomainClassifier
from models.networks.backbones import CosineClassifier
from models.networks.feature_network import FeatureNetwork


@pytest.fixture(scope="module")
def tasks():
    return LetterDomains(16, way=3).tasks("val", slice(0, 4), 2)


@pytest.fixture
def classifier():
    network = FeatureNetwork("conv4-4", (1, 16, 16))
    return DomainClassifier(network, CosineClassifier(network.num_features, 3))


def test_tasks_are_read_as_the_network_reads_their_images(classifier, tasks):
    probabilities = classifier.probabilities(tasks.query_x)
    classifier.network.eval()
    with torch.no_grad():
        alone = classifier.head(classifier.network(tasks.query_x[2])).softmax(-1)
    torch.testing.assert_close(probabilities[2], alone)
    scores = classifier.scores(tasks)
    right = (probabilities.argmax(-1) == tasks.query_y).float().mean()
    assert scores.accuracy == pytest.approx(float(right))
    assert scores.distortion == pytest.approx(6 * scores.nll, rel=1e-5), "nats per task of six queries"


def test_no_task_tells_another_anything(classifier, tasks):
    together = classifier.probabilities(tasks.query_x, share=0.5)
    torch.testing.assert_close(together[1:2], classifier.probabilities(tasks.query_x[1:2], share=0.5))


def test_the_share_is_the_one_with_the_lowest_nll(classifier, tasks, monkeypatch):
    real = DomainClassifier.scores
    costs = dict(zip(SHARES, (3.0, 1.0, 2.0), strict=True))

    class Scored:
        def __init__(self, nll: float) -> None:
            self.nll = nll

    monkeypatch.setattr(DomainClassifier, "scores", lambda self, validation, share=0.0: Scored(costs[share]))
    assert classifier.best_share(tasks) == SHARES[1]
    monkeypatch.setattr(DomainClassifier, "scores", real)
    assert classifier.best_share(tasks) in SHARES
