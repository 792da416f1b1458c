"""Training of posteriors: bootstrap samples, rounds, when rates are taken, what a state holds."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.items import LabelledItems
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.fitting import Recipe, prepare
from inference.bnn.training import BnnTraining
from models.bayesian.weight_priors import GaussianWeightPrior
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from tests.inference.bnn.conftest import items


def training(algorithm=Algorithm.BETA_BNN, n=400, likelihood=None, **settings) -> BnnTraining:
    """A training before its first step, with an optimiser at hand in place of Lightning's trainer."""
    data = items(n)
    if likelihood is not None:
        data = LabelledItems(data.items, torch.randn(n), ())
    outputs = 3 if likelihood is None else 1
    chosen = FitSettings(**{"posteriors": 2, "rounds": 2, "epochs": 4} | settings)
    module = prepare(
        nn.Linear(4, outputs), data, Recipe(algorithm, 1.0, likelihood or CategoricalLikelihood(), settings=chosen)
    )
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 0.1)
    module._trainer = SimpleNamespace(optimizers=[optimizer], world_size=1, global_rank=0, current_epoch=0)
    return module


class TestBootstrap:
    def test_samples_are_drawn_with_replacement(self):
        """1 − 1/e of the items are in a sample of as many, so 37 % are not."""
        order = training().draw_order(0, 0, 0)
        assert len(order) == 400
        assert len(order.unique()) / 400 == pytest.approx(1 - 1 / math.e, abs=0.05)

    def test_a_sample_has_n_b_items(self):
        assert len(training(bootstrap_size=60).draw_order(0, 0, 0)) == 60

    def test_a_posterior_keeps_its_sample_for_a_round(self):
        module = training()
        sample = module.draw_order(0, 1, 0)
        again = module.draw_order(0, 1, 1)
        assert sample.tolist() != again.tolist(), "in another order"
        assert sample.sort().values.tolist() == again.sort().values.tolist()
        for other in (module.draw_order(1, 1, 0), module.draw_order(0, 0, 0)):
            assert other.sort().values.tolist() != sample.sort().values.tolist()

    @pytest.mark.parametrize("algorithm", [Algorithm.VANILLA, Algorithm.FIXED, Algorithm.DETERMINISTIC])
    def test_without_a_mixture_every_item_is_seen_once_per_epoch(self, algorithm):
        order = training(algorithm, bootstrap_size=60).draw_order(0, 0, 3)
        assert order.sort().values.tolist() == list(range(400))


class TestRounds:
    def test_adam_starts_each_round_without_memory(self):
        module = training()
        optimizer = module.trainer.optimizers[0]
        module.objective(module.source.items[:5].expand(2, 5, 4), module.source.labels[:5].expand(2, 5)).backward()
        optimizer.step()
        assert optimizer.state
        module.start_segment(1, slice(0, 2))
        assert not optimizer.state

    def test_first_round_starts_from_the_networks_and_later_ones_from_the_mixture(self):
        module = training()
        module.mixture.refresh(slice(0, 2), torch.full_like(module.start, 3.0), torch.full_like(module.start, -1.0))
        module.start_segment(0, slice(0, 2))
        torch.testing.assert_close(module.objective.guide.loc.detach(), module.start)
        module.start_segment(1, slice(0, 2))
        torch.testing.assert_close(module.objective.guide.loc.detach(), torch.full_like(module.start, 3.0))
        torch.testing.assert_close(module.objective.guide.log_scale.detach(), torch.full_like(module.start, -1.0))

    def test_rates_are_against_the_mixture_that_a_posterior_was_trained_against(self):
        """Not the refreshed one, which holds the posterior itself: against that no rate exceeds log K."""
        module = training()
        module.trainer.current_epoch = 1  # the last of the first round, whose mixture is N(0, I)
        with torch.no_grad():
            module.objective.guide.place(torch.full_like(module.start, 2.0), torch.zeros_like(module.start))
        module.on_train_epoch_end()
        torch.testing.assert_close(module.rates, torch.full((2,), 0.5 * 4 * module.start.shape[1]))
        torch.testing.assert_close(module.mixture.loc, module.objective.guide.loc.detach())


class TestSteps:
    @pytest.mark.parametrize(("epoch", "share"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.0)])
    def test_the_loss_weighs_the_rate_by_a_beta_that_warms_up(self, epoch, share):
        """In half of four epochs; nats per item of 40."""
        module, logged = training(Algorithm.FIXED, n=40, beta_warmup=0.5), {}
        module.trainer.current_epoch = epoch
        module.means.add = lambda values, own=logged: own.update({name: value.detach() for name, value in values.items()})
        module.on_train_epoch_start()
        loss = module.training_step(0, 0)
        torch.testing.assert_close(loss, logged["train/distortion"] + share * logged["train/rate"] / 40)
        assert float(logged["train/rate"]) > 1

    def test_every_kind_of_number_is_learned_at_its_speed(self):
        settings = FitSettings(learning_rate=0.1, scale_speed=3.0, prior_speed=0.5)
        recipe = Recipe(Algorithm.VANILLA, 1.0, GaussianLikelihood(1.0), GaussianWeightPrior(), PriorScales.LAYER, settings)
        module = prepare(nn.Linear(4, 1), LabelledItems(torch.randn(9, 4), torch.randn(9), ()), recipe)
        groups = module.configure_optimizers()["optimizer"].param_groups
        rates = {id(group["params"][0]): group["lr"] for group in groups}
        model, guide = module.objective.model, module.objective.guide
        found = [rates[id(p)] for p in (guide.standard_log_scale, model.prior.scales.log_scale, model.likelihood.log_noise)]
        assert found == pytest.approx([0.3, 0.05, 0.1])


class TestNoise:
    def test_posteriors_that_train_in_turn_take_their_noise_with_them(self):
        module = training(Algorithm.ONLINE, likelihood=GaussianLikelihood(1.0))
        noise = module.objective.model.likelihood.log_noise
        for epoch, row, value in ((1, 0, -1.0), (3, 1, -2.0)):
            module.trainer.current_epoch = epoch
            module.start_segment(0, slice(row, row + 1))
            assert float(noise.detach()) == 0.0, "each starts from the given noise"
            with torch.no_grad():
                noise.fill_(value)
            module.on_train_epoch_end()
        module.start_segment(1, slice(0, 1))
        assert float(noise.detach()) == -1.0
        outputs = module.posterior().observation(torch.zeros(4, 5, 1)).scale[:, 0].log()
        torch.testing.assert_close(outputs, torch.tensor([-1.0, -2.0, -1.0, -2.0]))

    @pytest.mark.parametrize("algorithm", [Algorithm.BETA_BNN, Algorithm.ONLINE])
    def test_states_round_trip(self, algorithm):
        module = training(algorithm, likelihood=GaussianLikelihood(1.0))
        state = module.state_dict()
        other = training(algorithm, likelihood=GaussianLikelihood(0.2))
        other.load_state_dict(state)
        torch.testing.assert_close(other.state_dict(), state)
