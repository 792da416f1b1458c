"""Meta-training: what a step minimises and what is logged."""

from types import SimpleNamespace

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.seeding import mix_seed, seeded
from inference.elbo import RateDistortionELBO
from inference.evaluation.evaluate import evaluate
from inference.meta.settings import MetaSchedule
from inference.meta.training import DRAWS, TASKS, MetaTraining
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import build
from tests.inference.evaluation.test_predictive import hierarchical

SCHEDULE = MetaSchedule(tasks=64, batch=8, validations=2, validation_tasks=10, seed=4)


def training(model, guide, beta=0.5) -> MetaTraining:
    sampler = EpisodeSampler(gaussian_bank(), TaskSpec(way=4, shot=1, queries=5))
    module = MetaTraining(RateDistortionELBO(beta=beta)(model, guide), sampler, sampler, SCHEDULE)
    module.logged = {}
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)
    module.log_dict = lambda values, **_: module.logged.update(values)
    return module


def expected_terms(module: MetaTraining):
    """The objective's terms on the step's own tasks and draws."""
    seeds = (SCHEDULE.seed, 0, 0, 0)
    episode = module.training_tasks.sample(SCHEDULE.batch, seed=mix_seed(*seeds, TASKS)).to(dtype=torch.float64)
    with seeded(*seeds, DRAWS):
        return module.objective.terms(*episode)


def test_a_step_is_the_objective_per_task():
    module = training(*build())
    loss, terms = module.training_step(0, 0), expected_terms(module)
    torch.testing.assert_close(loss, (terms.distortion + 0.5 * terms.rate) / 8)
    torch.testing.assert_close(module.logged["train/distortion"], terms.distortion.detach() / 8)
    torch.testing.assert_close(module.logged["train/rate"], terms.rate.detach() / 8)


def test_every_step_of_every_epoch_has_tasks_of_its_own():
    module, seen = training(*build()), []
    sample = module.training_tasks.sample
    module.training_tasks.sample = lambda count, seed: seen.append(seed) or sample(count, seed=seed)
    for epoch, index in ((0, 0), (0, 1), (1, 0)):
        module._trainer.current_epoch = epoch
        module.training_step(0, index)
    assert len(set(seen)) == 3


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_validation_watches_the_objective(beta):
    """What chooses the checkpoint is distortion + β · rate, with the β of training, on validation tasks."""
    module = training(*build(), beta=beta)
    module.on_train_epoch_end()
    scores = evaluate(module.objective.model, module.objective.guide, module.validation, tasks=10, seed=4, num_samples=8)
    assert module.logged["val/loss"] == pytest.approx(scores.distortion + beta * scores.rate)
    named = (module.logged["val/accuracy"], module.logged["val/nll"], module.logged["val/rate"])
    assert named == pytest.approx((scores.accuracy, scores.nll, scores.rate))


def test_a_hierarchical_prior_is_logged_per_task_too():
    """Its terms stand for all N tasks of training; the log is of one. (It was N / batch times too large.)"""
    model, guide = hierarchical()
    module = training(model, guide)
    module.training_step(0, 0)
    terms = expected_terms(module)
    torch.testing.assert_close(module.logged["train/distortion"], terms.distortion.detach() / 1000)
    assert 1 < float(module.logged["train/distortion"]) < 200, "twenty queries per task cost about a nat each"


def test_hyperparameters_are_counted_once_for_all_tasks():
    model, guide = hierarchical()
    rates = expected_terms(training(model, guide)).rates
    model.num_tasks = guide.num_tasks = 2000
    more = expected_terms(training(model, guide)).rates
    torch.testing.assert_close(more["weights"], 2 * rates["weights"])
    torch.testing.assert_close(more["prior_loc"], rates["prior_loc"])


def test_lengths_of_a_schedule():
    assert MetaSchedule(tasks=16000, batch=16, validations=10).steps == 100
    assert MetaSchedule(tasks=1, batch=16, validations=10).steps == 1
    assert MetaSchedule(tasks=65, batch=8, validations=2).steps == pytest.approx(5)
