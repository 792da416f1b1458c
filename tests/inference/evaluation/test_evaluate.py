"""Scores on tasks: those of the predictions, whatever shares a batch, a reading or a thread."""

import gc
import math
from dataclasses import asdict

import pyro
import pytest
import torch
from torch import nn

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.seeding import mix_seed
from guides.empty import EmptyGuide
from inference.evaluation.evaluate import TASKS_AT_ONCE, batches, evaluate, evaluate_readings, predictions, readings
from inference.evaluation.predictive import predictive
from inference.meta.methods.nearest_mean import NearestMeanModel
from models.tasks.predictors import DistancePredictor
from models.tasks.priors import HierarchicalGaussianPrior
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import WAY, build
from tests.inference.evaluation.test_predictive import hierarchical


def test_steps_are_not_asked_of_a_guide_without():
    with pytest.raises(UserError, match="takes no steps"):
        readings(EmptyGuide(), 2)
    assert list(readings(EmptyGuide(), 0)) == list(readings(EmptyGuide())) == [0]


class TestEvaluate:
    def sampler(self):
        return EpisodeSampler(gaussian_bank(), TaskSpec(way=WAY, shot=2, queries=6))

    def test_scores_are_those_of_the_predictions(self):
        model, guide = build()
        scores = evaluate(model, guide, self.sampler(), tasks=60, seed=3)
        parts = [
            (e, predictive(model, guide, e, seed=mix_seed(3, number), batch=TASKS_AT_ONCE))
            for number, e in enumerate(e.to(dtype=torch.float64) for e in batches(self.sampler(), 60, 3))
        ]
        right = torch.cat([(p.probabilities().argmax(-1) == e.query_y).double().mean(-1) for e, p in parts])
        assert scores.episodes == 60
        assert scores.accuracy == pytest.approx(float(right.mean()))
        assert scores.ci95 == pytest.approx(1.96 * float(right.std()) / math.sqrt(60))
        assert scores.rate == pytest.approx(float(torch.cat([p.rate for _, p in parts]).mean()))
        distortion = torch.cat([p.distortion(e.query_y) for e, p in parts]).mean()
        assert scores.distortion == pytest.approx(float(distortion))

    def test_every_task_has_draws_of_its_own_and_every_guide_the_same_ones(self):
        """So the interval over tasks holds the draws' error: one set for all would move all tasks together."""
        model, guide = build()
        one = self.sampler().sample(1, seed=3)

        class Repeated:
            def sample(self, count, seed):
                return one.tasks([0] * count)

        def distortions():
            found = predictions(model, guide, Repeated(), tasks=100, seed=3, num_samples=4)
            return torch.cat([predicted.distortion(e.query_y) for e, predicted in found])

        nats = distortions()
        assert len(nats.unique()) == 100
        torch.testing.assert_close(distortions(), nats, rtol=0, atol=0)
        again = [evaluate(model, guide, Repeated(), tasks=100, seed=seed, num_samples=4).distortion for seed in range(10)]
        assert torch.tensor(again).std() < 2 * nats.std() / math.sqrt(100), "the 1 - 1e-4 quantile of its error, by χ²"

    def test_more_tasks_begin_with_the_same_ones(self):
        first, more = (list(batches(self.sampler(), n, 5)) for n in (30, 80))
        assert torch.equal(first[0].query_x, more[0].query_x[:30])
        assert sum(len(e.query_x) for e in more) == 80
        assert not torch.equal(more[1].query_x, more[0].query_x[:30]), "no task is counted twice"

    @pytest.mark.parametrize("options", [{}, {"family": "delta"}, {"inner_samples": 2}, {"prior": HierarchicalGaussianPrior}])
    def test_readings_scored_together_are_each_as_it_is_alone(self, options):
        """From one unrolling, and from tasks in parts."""
        model, guide = hierarchical() if "prior" in options else build(**options)
        guides, settings = readings(guide), {"tasks": 60, "seed": 3, "num_samples": 5}
        alone = {k: evaluate(model, one, self.sampler(), **settings) for k, one in guides.items()}
        steps = []
        guide.gradient.register_forward_hook(lambda *_: steps.append(1))
        together = evaluate_readings(model, guides, self.sampler(), **settings)
        for k, score in alone.items():
            assert (together[k].rate is None) == (score.rate is None)
            numbers = [{name: value or 0 for name, value in asdict(one).items()} for one in (together[k], score)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-12)
        if "prior" not in options:
            assert len(steps) == 2 * guide.steps, "two batches, each unrolled once"

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
    def test_scores_do_not_depend_on_the_number_of_threads_but_by_rounding(self, dtype, tolerance, threads):
        model, guide = build()
        found = []
        for number in (1, 2):
            threads(number)
            scores = evaluate(model.to(dtype), guide.to(dtype), self.sampler(), tasks=120, seed=3)
            found.append(asdict(scores))
        assert found[0] == pytest.approx(found[1], rel=tolerance)

    def test_memory_does_not_grow_with_the_number_of_tasks(self):
        """Of a batch nothing is left but sums: as many numbers are held before the last one as before the second."""
        model, guide = build()
        held, known, batch = [], self.sampler(), iter(range(8))

        class Watched:
            def sample(self, count, seed):
                if next(batch) in (1, 7):
                    held.append(sum(one.numel() for one in gc.get_objects() if issubclass(type(one), torch.Tensor)))
                return known.sample(count, seed=seed)

        evaluate_readings(model, readings(guide), Watched(), tasks=400, seed=3, num_samples=2)
        second, last = held
        assert last - second < 50, "where 300 tasks are scored between them"

    def test_parts_of_a_batch_take_its_draws(self, monkeypatch):
        model, guide = build()

        def found():
            return list(predictions(model, guide, self.sampler(), tasks=60, seed=3))

        whole = found()
        monkeypatch.setattr("inference.evaluation.evaluate.NUMBERS_AT_ONCE", 20_000)
        parts = found()
        assert [len(e.query_x) for e, _ in parts] == [4] * 12 + [2, 4, 4, 2], "of batches of 50 and 10 tasks"
        for read in (lambda p: p.probabilities(), lambda p: p.rate):
            both = (torch.cat([read(predicted) for _, predicted in some]) for some in (parts, whole))
            torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)

    def test_a_method_without_latent_sites_has_no_rate(self):
        model, guide = NearestMeanModel(DistancePredictor()), pyro.nn.PyroModule()
        guide.forward = lambda *args: None
        scores = evaluate(model, guide, self.sampler(), tasks=20, seed=1)
        assert scores.rate is None
        assert scores.accuracy > 0.9

    def test_readings_are_the_steps_of_guides_that_take_them(self):
        _, guide = build(steps=2)
        assert [g.steps for g in readings(guide).values()] == [0, 1, 2]
        assert list(readings(guide, 4)) == [0, 1, 2, 3, 4]
        assert list(readings(nn.Identity())) == [0]
