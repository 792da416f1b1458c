"""Algorithms, their settings, and the order in which posteriors train."""

import pytest

from data.errors import UserError
from inference.bnn.algorithms import Algorithm, FitSettings, Plan


class TestPlan:
    def test_visits_posteriors_as_the_slide_says(self):
        together = Plan(posteriors=3, rounds=2, epochs=4)
        assert [together.position(e)[:2] for e in (0, 1, 2)] == [(0, slice(0, 3)), (0, slice(0, 3)), (1, slice(0, 3))]
        online = Plan(posteriors=3, rounds=2, epochs=4, online=True)
        rows = [online.position(e).rows.start for e in range(online.total_epochs)]
        assert rows == [0, 0, 1, 1, 2, 2] * 2
        assert [online.position(e).round for e in (5, 6)] == [0, 1]
        assert online.progress(6) == 0.5

    def test_beta_rises_in_a_share_of_the_first_round_alone(self):
        plan = Plan(posteriors=2, rounds=2, epochs=8)
        assert [plan.warmed(epoch, 0.5) for epoch in (0, 0.5, 1, 2, 3.9, 4, 4.5)] == [0, 0.25, 0.5, 1, 1, 1, 1]
        assert plan.warmed(0, 0.0) == 1
        online = Plan(posteriors=2, rounds=2, epochs=8, online=True)
        assert [online.warmed(epoch, 1.0) for epoch in (3, 4, 5, 8)] == [0.75, 0, 0.25, 1], "each posterior has its own"


class TestFitSettings:
    def test_only_mixtures_have_rounds_and_bootstrap_samples(self):
        settings = FitSettings(posteriors=3, rounds=2, epochs=4, bootstrap_size=7)
        assert settings.plan(Algorithm.BETA_BNN) == Plan(3, 2, 4)
        assert settings.plan(Algorithm.ONLINE) == Plan(3, 2, 4, online=True)
        assert settings.plan(Algorithm.VANILLA) == settings.plan(Algorithm.DETERMINISTIC) == Plan(3, 1, 4)
        assert settings.items_per_epoch(Algorithm.ONLINE, 100) == 7
        assert settings.items_per_epoch(Algorithm.FIXED, 100) == 100
        assert FitSettings().items_per_epoch(Algorithm.ONLINE, 100) == 100

    def test_networks_are_as_many_as_asked_for_else_four_in_a_mixture_and_one_elsewhere(self):
        for algorithm in Algorithm:
            assert FitSettings().plan(algorithm).posteriors == (4 if algorithm.is_mixture else 1)
            assert FitSettings(posteriors=2).plan(algorithm).posteriors == 2

    @pytest.mark.parametrize("algorithm", Algorithm)
    def test_rounds_are_asked_of_mixtures_alone(self, algorithm):
        settings = FitSettings(epochs=5, rounds=2)
        if algorithm.is_mixture:
            with pytest.raises(UserError, match="`epochs=5` must be a multiple of `rounds=2`"):
                settings.plan(algorithm)
        else:
            assert settings.plan(algorithm).total_epochs == 5

    @pytest.mark.parametrize("algorithm", Algorithm)
    def test_a_mixture_has_two_rounds_at_least(self, algorithm):
        """In the first all posteriors of β-BNN, and one of online's, meet the prior that the mixture starts from: a rate of
        that round would be called one against the mixture."""
        settings = FitSettings(rounds=1)
        if algorithm.is_mixture:
            with pytest.raises(UserError, match=f"{algorithm}: the mixture counts from the second round on: choose `rounds=2`"):
                settings.plan(algorithm)
        else:
            assert settings.plan(algorithm).rounds == 1

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ({"posteriors": 0}, "`posteriors=0`: must be a whole number, above 0"),
            ({"epochs": 2.5}, "`epochs=2.5`: must be a whole number"),
            ({"bootstrap_size": 0}, "`bootstrap_size=0`"),
            ({"seed": -1}, "`seed=-1`: must be a whole number, 0 or more"),
            ({"learning_rate": 0.0}, "`learning_rate=0.0`: must be a number, above 0"),
            ({"initial_scale": "wide"}, "`initial_scale=wide`: must be a number"),
            ({"prior_speed": 0}, "`prior_speed=0`: must be a number, above 0"),
            ({"beta_warmup": 1.5}, "`beta_warmup=1.5`: must be a number, 0 or more and at most 1"),
        ],
    )
    def test_bad_arguments_are_named(self, argument, message):
        with pytest.raises(UserError, match=message):
            FitSettings(**argument)
