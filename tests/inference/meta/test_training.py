"""Meta-training: what a step minimises and what is logged."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from data.episodes import EpisodeSampler, TaskSpec
from data.mixed import Extent, VariedSampler
from data.seeding import mix_seed, seeded
from guides.tasks.gate import PriorGate
from guides.tasks.regularised import EncoderGuide
from guides.tasks.starts import LearnedStart, QueryMeans, SupportMeans
from inference.elbo import RateDistortionELBO
from inference.evaluation.evaluate import TASKS_AT_ONCE, evaluate
from inference.meta.settings import MetaSchedule
from inference.meta.training import DRAWS, TASKS, MetaTraining, every_step, objective_weights
from models.likelihoods import CategoricalLikelihood
from models.networks.feature_space import FeatureSpace
from models.tasks.predictors import PREDICTORS
from models.tasks.priors import GaussianPrior, MixturePrior
from models.tasks.regularised import RegularisedModel
from models.tasks.scorers.process import ClassProcessScorer
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import DIM, build
from tests.inference.evaluation.test_predictive import hierarchical

SCHEDULE = MetaSchedule(tasks=64, batch=8, validations=2, validation_tasks=10, seed=4)


def training(model, guide, beta=0.5) -> MetaTraining:
    sampler = EpisodeSampler(gaussian_bank(), TaskSpec(way=4, shot=1, queries=5))
    module = MetaTraining(RateDistortionELBO(beta=beta)(model, guide), sampler, sampler, SCHEDULE)
    module.logged = {}
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)
    module.log_dict = lambda values, **_: module.logged.update(values)
    module.means.add = lambda values: module.logged.update({name: value.detach() for name, value in values.items()})
    return module


def expected_terms(module: MetaTraining):
    """The objective's terms on the step's own tasks and draws."""
    seeds = (SCHEDULE.seed, 0, 0, 0)
    episode = module.training_tasks.sample(SCHEDULE.batch, seed=mix_seed(*seeds, TASKS)).to(dtype=torch.float64)
    with seeded(*seeds, DRAWS):
        return every_step(module.objective, module.weights).terms(*episode)


def test_a_step_is_the_objective_per_task_over_every_step():
    module = training(*build())
    loss, terms = module.training_step(0, 0), expected_terms(module)
    torch.testing.assert_close(loss, (terms.distortion + 0.5 * terms.rate) / 8)
    torch.testing.assert_close(module.logged["train/distortion"], terms.distortion.detach() / 8)
    torch.testing.assert_close(module.logged["train/rate"], terms.rate.detach() / 8)


def test_a_step_does_not_depend_on_the_number_of_threads_but_by_rounding(threads):
    """Enough tasks that torch shares them out."""
    module, found = training(*build()), []
    module.schedule = replace(SCHEDULE, batch=400)
    for number in (1, 2):
        threads(number)
        module.zero_grad()
        loss = module.training_step(0, 0)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
    assert len(found[0]) > 4
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_every_step_of_every_epoch_has_tasks_of_its_own():
    module, seen = training(*build()), []
    sample = module.training_tasks.sample
    module.training_tasks.sample = lambda count, seed: seen.append(seed) or sample(count, seed=seed)
    for epoch, index in ((0, 0), (0, 1), (1, 0)):
        module._trainer.current_epoch = epoch
        module.training_step(0, index)
    assert len(set(seen)) == 3


def test_the_last_step_counts_twice_and_all_count():
    """Weights ½ for θ⁰, θ¹, θ² and 1 for θ³, divided by their sum: rates have no noise, so they tell."""
    model, guide = build(steps=3, beta=0.5)
    module = training(model, guide)
    rate = expected_terms(module).rate / 8
    tasks = module.training_tasks.sample(8, seed=mix_seed(SCHEDULE.seed, 0, 0, 0, TASKS)).to(dtype=torch.float64)
    each = [RateDistortionELBO(beta=0.5)(model, guide.after(k)).terms(*tasks).rate / 8 for k in range(4)]
    torch.testing.assert_close(rate, 0.2 * (each[0] + each[1] + each[2]) + 0.4 * each[3])
    assert len({round(part.item(), 6) for part in each}) == 4


def test_what_takes_no_steps_is_trained_as_it_is():
    for steps, earlier in ((0, 0.5), (2, 0.0)):
        objective = RateDistortionELBO(beta=0.5)(*build(steps=steps))
        assert objective_weights(objective, earlier) is None
        assert every_step(objective, None) is objective


def test_weights_of_steps_follow_the_module_and_stay_out_of_its_checkpoints():
    module = training(*build())
    assert module.weights.dtype == torch.float64
    assert module.float().weights.dtype == torch.float32
    assert not any("weights" in name for name in module.state_dict())


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_validation_watches_the_objective(beta):
    """What chooses the checkpoint is distortion + β · rate after every step, with the β and the weights of training, on
    validation tasks."""
    model, guide = build(steps=2)
    module = training(model, guide, beta=beta)
    module.on_train_epoch_end()
    (sampler,) = module.validation
    scores = [evaluate(model, guide.after(k), sampler, tasks=10, seed=4, num_samples=8) for k in range(3)]
    losses = [score.distortion + beta * score.rate for score in scores]
    assert module.logged["val/loss"] == pytest.approx(0.25 * losses[0] + 0.25 * losses[1] + 0.5 * losses[2])
    named = tuple(module.logged[f"val/{name}"] for name in ("accuracy", "nll", "rate", "distortion"))
    assert named == pytest.approx((scores[2].accuracy, scores[2].nll, scores[2].rate, scores[2].distortion))


def test_checkpoints_are_chosen_without_the_rate_of_what_all_tasks_share():
    """Training pays its part of it; however much that is, held-out tasks are judged by their distortion."""
    torch.manual_seed(0)
    model = RegularisedModel(
        ClassProcessScorer(DIM, width=4, code=4, depth=1), CategoricalLikelihood(), random=bool, num_tasks=64
    )
    guide, logged = EncoderGuide(model.start, at_mean=True), []
    for scale in (0.1, 1e-6):
        guide.log_scale.data.fill_(math.log(scale))
        module = training(model.train(), guide)
        module.training_step(0, 0)
        module.on_train_epoch_end()
        logged.append(module.logged)
        rate = kl_divergence(Normal(guide.loc, scale), Normal(0.0, 1.0)).sum()
        torch.testing.assert_close(logged[-1]["train/rate"], rate.detach() / 64)
        losses = (logged[-1][name] for name in ("train/loss", "train/distortion", "train/rate"))
        loss, distortion, shared = map(float, losses)
        assert loss == pytest.approx(distortion + 0.5 * shared)
    assert [one["val/loss"] for one in logged] == pytest.approx([logged[0]["val/distortion"]] * 2, rel=1e-6)
    assert logged[0]["val/rate"] == 0.0


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_validate_their_parts_of_the_same_tasks(world):
    """Ten tasks, which three or four cannot share equally: what Lightning makes the mean of is weighted by them."""
    model, guide = build(steps=2)
    alone = training(model, guide)
    alone.on_train_epoch_end()
    logged, seen = [], []
    for rank in range(world):
        module = training(model, guide)
        module._trainer.world_size, module._trainer.global_rank = world, rank
        module.validated = lambda scores, share, know=module.validated: seen.append(scores[0].episodes) or know(scores, share)
        module.on_train_epoch_end()
        logged.append(module.logged)
    assert sum(seen) == 10
    assert max(seen) - min(seen) <= 1
    means = {name: sum(one[name] for one in logged) / world for name in logged[0]}
    assert means == pytest.approx(alone.logged)


def test_processes_beyond_a_batch_of_tasks_validate_all_of_them():
    """Some would have a part of no task, and the mean over processes would be no number."""
    logged = []
    for world in (1, TASKS_AT_ONCE + 1):
        module = training(*build(steps=0))
        module.schedule, module._trainer.world_size = replace(SCHEDULE, validation_tasks=TASKS_AT_ONCE + 1), world
        module.on_train_epoch_end()
        logged.append(module.logged)
    assert logged[0] == logged[1]


def test_scales_and_the_gate_learn_faster():
    """On the logarithmic axes along which they must fall by orders of magnitude where β is large."""
    model, guide = build(gate=PriorGate(DIM, 0.5), learned=True)
    module = training(model, guide)
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    fast = [model.prior.log_scale, guide.start.log_scale, guide.start.log_ratio, guide.gate.logit, model.predictor.log_scale]
    assert {rates.pop(id(p)) for p in fast} == {5 * SCHEDULE.learning_rate}
    assert set(rates.values()) == {SCHEDULE.learning_rate}
    assert len(rates) + len(fast) == sum(1 for _ in module.parameters())


SLOW_LOGARITHMS = {"rule.log_size"}  # step sizes are bounded, and start where they belong


@pytest.mark.parametrize("prior", [GaussianPrior, MixturePrior])
@pytest.mark.parametrize("start", [SupportMeans, LearnedStart, QueryMeans])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_part_says_which_of_its_numbers_are_logarithms(predictor, start, prior):
    """Whatever is called a logarithm or a logit is learned faster, or listed here with a reason."""
    model, guide = build(predictor=predictor, prior=prior, start=start, learned=True, gate=PriorGate(DIM, 0.5))
    slow, quick = (group["params"] for group in training(model, guide).configure_optimizers()["optimizer"].param_groups)
    named = {id(p): name for module in (model, guide) for name, p in module.named_parameters()}
    always = {"prior.log_scale", "predictor.log_scale", "start.log_scale", "gate.logit"}
    assert {named[id(p)] for p in quick} - {"start.log_ratio"} == always
    sounding = {named[id(p)] for p in slow if named[id(p)].rpartition(".")[2].startswith("log")}
    assert sounding == SLOW_LOGARITHMS


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


def embedded_training(model, guide):
    """On raw items of twice the dimension, through a learned map, and on the same items mapped."""
    bank = gaussian_bank(dim=2 * DIM)
    space = FeatureSpace(2 * DIM, DIM, learned=True).fit(bank.items, bank.labels).double()
    raw = EpisodeSampler(replace(bank, items=bank.items.double()), TaskSpec(way=4, shot=1, queries=5))
    with torch.no_grad():
        mapped = raw.on(space(raw.items))
    objective = RateDistortionELBO(beta=0.5)(model, guide)
    modules = MetaTraining(objective, raw, raw, SCHEDULE, space), MetaTraining(objective, mapped, mapped, SCHEDULE)
    for module in modules:
        module.logged = {}
        module._trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)
        module.log_dict = lambda values, own=module.logged, **_: own.update(values)
        module.means.add = lambda values, own=module.logged: own.update(
            {name: value.detach() for name, value in values.items()}
        )
    return modules


def test_features_are_trained_by_the_same_objective():
    """The loss is that of mapped features, on which the map's gradient is taken; so is validation's."""
    through, plain = embedded_training(*build())
    loss = through.training_step(0, 0)
    torch.testing.assert_close(loss, plain.training_step(0, 0))
    (gradient,) = torch.autograd.grad(loss, through.embedding.change)
    assert bool((gradient != 0).any())
    for module in (through, plain):
        module.on_train_epoch_end()
    found, expected = ({name: float(value) for name, value in module.logged.items()} for module in (through, plain))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("together", "updates"), [(1, 8), (3, 4)])
def test_the_rate_falls_to_zero_over_all_updates(together, updates):
    """Two rounds of four batches, whose gradients are added up in threes: the last of a round is by itself."""
    module = training(*build())
    module._trainer.accumulate_grad_batches = together
    assert module.configure_optimizers()["lr_scheduler"]["scheduler"].T_max == updates


def test_the_map_has_a_step_size_and_a_prior_of_its_own():
    through, _ = embedded_training(*build())
    groups = through.configure_optimizers()["optimizer"].param_groups
    (own,) = (group for group in groups if group["params"] == [through.embedding.change])
    assert (own["lr"], own["weight_decay"]) == (SCHEDULE.feature_learning_rate, SCHEDULE.feature_decay)
    assert {group["weight_decay"] for group in groups if group is not own} == {0}


def test_tasks_of_all_shapes_count_alike():
    """What guesses in all of them has the same loss in all of them, that of the usual tasks."""
    bank = gaussian_bank(classes=9, images=30)
    sampler = VariedSampler(lambda spec: EpisodeSampler(bank, spec), TaskSpec(4, 1, 5), Extent(4, 8), Extent(1, 2))
    model, guide = build(steps=0)
    module = MetaTraining(RateDistortionELBO(beta=0.0)(model, guide), sampler, (sampler.of(4, 1), sampler.of(8, 1)), SCHEDULE)
    module.logged = {}
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=0)
    module.log_dict = lambda values, **_: module.logged.update(values)
    module.means.add = module.logged.update
    model.predictor.flatten()
    losses = [module.training_step(0, index).item() for index in range(20)]
    assert losses == pytest.approx(20 * [20 * math.log(4)])
    module.on_train_epoch_end()
    assert module.logged["val/loss"] == pytest.approx(20 * math.log(4))
