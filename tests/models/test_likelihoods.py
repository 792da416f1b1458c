"""Likelihoods: targets as they read them, and learned numbers per posterior."""

import pyro.distributions as dist
import pytest
import torch

from models.distributions.by_class import ClassByClass
from models.likelihoods import (
    LIKELIHOODS,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    LikelihoodName,
    PoissonLikelihood,
)


class TestNoise:
    def test_copies_have_their_own_learned_noise_and_share_a_fixed_one(self):
        learned, fixed = GaussianLikelihood(0.5), GaussianLikelihood(0.5, learned=False)
        copies = learned.copies(3)
        torch.testing.assert_close(copies.log_noise.exp(), torch.full((3,), 0.5))
        assert copies.log_noise.requires_grad
        assert learned.log_noise.shape == (), "the given one is as it was"
        assert learned.copies(1) is learned
        assert fixed.copies(3) is fixed

    def test_rows_are_the_noise_of_each_draws_posterior(self):
        likelihood = GaussianLikelihood(torch.tensor([0.1, 2.0]))
        outputs = torch.zeros(3, 5, 1)
        scale = likelihood.rows(torch.tensor([0, 1, 0]))(outputs).scale
        torch.testing.assert_close(scale, torch.tensor([0.1, 2.0, 0.1])[:, None].expand(3, 5))

    def test_a_single_noise_of_an_earlier_version_becomes_that_of_each(self):
        many = GaussianLikelihood(1.0).copies(4)
        many.load_state_dict(GaussianLikelihood(0.3).state_dict())
        torch.testing.assert_close(many.log_noise.exp(), torch.full((4,), 0.3))


class TestTargets:
    @pytest.mark.parametrize("kind", [BernoulliLikelihood, PoissonLikelihood, GaussianLikelihood])
    def test_integers_become_floats_of_the_outputs_type(self, kind):
        outputs, targets = torch.randn(4, 1, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
        likelihood = kind()
        read = likelihood.cast(targets, outputs)
        assert read.dtype == torch.float64
        torch.testing.assert_close(likelihood(outputs).log_prob(read), likelihood(outputs).log_prob(targets.double()))

    def test_classes_stay_integers(self):
        assert CategoricalLikelihood().cast(torch.tensor([2]), torch.zeros(1, 3)).dtype == torch.int64

    def test_all_but_the_categorical_read_one_output(self):
        assert {name: kind.outputs for name, kind in LIKELIHOODS.items()} == {
            name: None if name is LikelihoodName.CATEGORICAL else 1 for name in LikelihoodName
        }


def test_classes_are_normalised_the_quick_way_where_they_lie_so_and_nothing_is_trained():
    """Training keeps its numbers to the last digit."""
    likelihood, by_class, by_item = CategoricalLikelihood(), torch.randn(3, 4, 7).mT, torch.randn(3, 7, 4)
    assert type(likelihood(by_class)) is type(likelihood(by_item)) is dist.Categorical
    with torch.no_grad():
        assert type(likelihood(by_class)) is ClassByClass
        assert type(likelihood(by_item)) is dist.Categorical
        torch.testing.assert_close(likelihood(by_class).probs, by_class.softmax(-1))
