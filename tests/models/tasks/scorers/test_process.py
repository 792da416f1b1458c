"""Conditional neural processes: a formula by hand, and what they can and cannot depend on."""

import pytest
import torch
import torch.nn.functional as F

from data.curves import raw_sinusoid_tasks
from data.episodes import EpisodeSampler, TaskSpec
from guides.empty import EmptyGuide
from inference.diagnostics.dependence import support_information
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.process import LEAST, ClassProcessScorer, MeanAndScale, NeuralProcessScorer
from tests.conftest import gaussian_bank


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return NeuralProcessScorer(1, width=8, code=6).double()


@pytest.fixture(scope="module")
def tasks():
    return raw_sinusoid_tasks(20, support=5, queries=3, seed=1).to(dtype=torch.float64)


def test_it_is_the_formula(scorer, tasks):
    def layers(network, value):
        first, _, second, _, last = network
        return last(F.relu(second(F.relu(first(value)))))

    for t in range(3):
        points = [torch.cat([x, y[None]]) for x, y in zip(tasks.support_x[t], tasks.support_y[t], strict=True)]
        code = torch.stack([layers(scorer.encoder, point) for point in points]).mean(0)
        expected = torch.stack([layers(scorer.decoder, torch.cat([x, code])) for x in tasks.query_x[t]])
        torch.testing.assert_close(scorer(*tasks[:3], 1)[t], expected)


def test_neither_order_nor_number_of_copies_of_the_support_matters(scorer, tasks):
    x, y, query, *_ = tasks
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    expected = scorer(x, y, query, 1)
    torch.testing.assert_close(scorer(x[:, order], y[:, order], query, 1), expected)
    torch.testing.assert_close(scorer(x.repeat(1, 3, 1), y.repeat(1, 3), query, 1), expected)
    assert not torch.allclose(scorer(x[:, 1:], y[:, 1:], query, 1), expected)


def test_without_a_support_the_code_is_zero(scorer, tasks):
    none = scorer(tasks.support_x[:, :0], tasks.support_y[:, :0], tasks.query_x, 1)
    expected = scorer.decoder(torch.cat([tasks.query_x, torch.zeros(20, 3, 6, dtype=torch.float64)], dim=-1))
    torch.testing.assert_close(none, expected)


def test_queries_do_not_see_each_other(scorer, tasks):
    alone = torch.cat([scorer(*tasks[:2], tasks.query_x[:, i : i + 1], 1) for i in range(3)], dim=1)
    torch.testing.assert_close(alone, scorer(*tasks[:3], 1))


def test_mean_and_scale_is_that_gaussian():
    outputs = torch.randn(4, 3, 2, dtype=torch.float64)
    scale = LEAST + torch.log1p(outputs[..., 1].exp())
    y = torch.randn(4, 3, dtype=torch.float64)
    expected = -0.5 * ((y - outputs[..., 0]) / scale) ** 2 - scale.log() - 0.5 * torch.tensor(2 * torch.pi).log()
    torch.testing.assert_close(MeanAndScale()(outputs).log_prob(y), expected, rtol=1e-6, atol=1e-6)


def test_predictions_tell_of_the_support_unless_its_encoder_is_zero(scorer, tasks):
    model = ConditionalModel(scorer, MeanAndScale())
    with torch.no_grad():
        scorer.decoder[0].weight[:, 1:] *= 100
        told = support_information(model, EmptyGuide(), tasks, exclusive=False)
        scorer.encoder[-1].weight.zero_()
        scorer.encoder[-1].bias.zero_()
    nothing = support_information(model, EmptyGuide(), tasks, exclusive=False)
    assert float(told.mean()) > 1e-3
    assert float(nothing.abs().max()) < 1e-12


class TestClasses:
    """The process whose labels are classes."""

    WAY = 4

    @pytest.fixture
    def scorer(self):
        torch.manual_seed(1)
        return ClassProcessScorer(6, width=8, code=5).double()

    @pytest.fixture
    def task(self):
        sampler = EpisodeSampler(gaussian_bank(dim=6, noise=1.5), TaskSpec(way=self.WAY, shot=3, queries=2))
        return sampler.sample(3, seed=1).to(dtype=torch.float64)

    def test_it_is_the_formula(self, scorer, task):
        found = scorer(*task[:3], self.WAY)
        assert found.shape == (3, 8, self.WAY)
        for t in range(3):
            said = [scorer.encoder(x) for x in task.support_x[t]]
            everything = torch.stack(said).mean(0)
            for c in range(self.WAY):
                own = torch.stack([s for s, y in zip(said, task.support_y[t].tolist(), strict=True) if y == c]).mean(0)
                expected = torch.stack([scorer.decoder(torch.cat([x, own, everything])) for x in task.query_x[t]])
                torch.testing.assert_close(found[t, :, c], expected[:, 0])

    def test_order_and_copies_of_the_support_do_not_matter_and_names_permute(self, scorer, task):
        x, y, query, *_ = task
        expected = scorer(x, y, query, self.WAY)
        order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(scorer(x[:, order], y[:, order], query, self.WAY), expected)
        torch.testing.assert_close(scorer(x.repeat(1, 2, 1), y.repeat(1, 2), query, self.WAY), expected)
        names = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(scorer(x, names[y], query, self.WAY)[..., names], expected)
        assert not torch.allclose(scorer(x, names[y], query, self.WAY), expected)

    def test_unlabelled_items_are_left_out_and_a_class_without_items_has_the_code_zero(self, scorer, task):
        x, y, query, *_ = task
        hidden = y.masked_fill(torch.arange(y.shape[1]) % 3 == 0, -1)
        kept = hidden[0] >= 0
        torch.testing.assert_close(scorer(x, hidden, query, self.WAY), scorer(x[:, kept], y[:, kept], query, self.WAY))
        more = scorer(x, y, query, self.WAY + 1)
        torch.testing.assert_close(more[..., : self.WAY], scorer(x, y, query, self.WAY))
        codes = torch.cat([torch.zeros(3, 5), scorer.encoder(x).mean(1)], dim=-1).double()
        expected = scorer.decoder(torch.cat([query, codes[:, None].expand(-1, 8, -1)], dim=-1))[..., 0]
        torch.testing.assert_close(more[..., self.WAY], expected)

    def test_other_classes_count(self, scorer, task):
        """By the code of all items: it is not a comparison with one class alone."""
        x, y, query, *_ = task
        moved = torch.where((y == 0)[..., None], x + 1, x)
        assert not torch.allclose(scorer(moved, y, query, self.WAY)[..., 1], scorer(x, y, query, self.WAY)[..., 1])
