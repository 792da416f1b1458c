"""Categorical distributions of logits that lie in memory class by class: Pyro's own, number by number."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from models.distributions.by_class import ClassByClass


def both(*shape):
    """Ours and Pyro's of the same logits, the largest of which are certain to a hundred digits."""
    logits = (100 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).mT
    return ClassByClass(logits), dist.Categorical(logits=logits)


def test_it_is_pyros_categorical():
    ours, pyros = both(2, 3, 4, 6)  # six queries of four classes
    torch.testing.assert_close(ours.logits, pyros.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.probs, pyros.probs, rtol=1e-12, atol=0)
    labels = torch.randint(4, (3, 6))
    torch.testing.assert_close(ours.log_prob(labels), pyros.log_prob(labels), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.entropy(), pyros.entropy())
    torch.testing.assert_close(kl_divergence(ours, pyros), torch.zeros(2, 3, 6, dtype=torch.float64), rtol=0, atol=1e-10)
    assert (ours.batch_shape, ours.event_shape) == (pyros.batch_shape, pyros.event_shape) == ((2, 3, 6), ())
    assert torch.equal(ours.enumerate_support(), pyros.enumerate_support())


def test_it_can_be_repeated_and_drawn_from():
    ours, pyros = (one.expand((5, 3, 6)) for one in both(3, 4, 6))
    assert type(ours) is ClassByClass
    torch.testing.assert_close(ours.probs, pyros.probs, rtol=1e-12, atol=0)
    torch.manual_seed(1)
    drawn = ours.sample((2,))
    torch.manual_seed(1)
    assert torch.equal(drawn, pyros.sample((2,)))


def test_it_checks_what_pyros_does():
    with pytest.raises(ValueError, match="logits"):
        ClassByClass(torch.full((4, 3), torch.nan), validate_args=True)
    ours, _ = both(4, 3)
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(torch.tensor([0, 1, 4]))
