"""A Gaussian of diagonal precision and a few items' curvature: everything against dense Gaussians."""

import pyro.distributions as dist
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import MultivariateNormal, kl_divergence

from models.distributions.support_gaussian import SupportGaussian, WhitePrecision

ROWS, FEATURES = 2, 3


def gaussian(items=4, batch=(), *, by_rows=False, precision=(ROWS, FEATURES)):
    factor = torch.randn(*batch, items, FEATURES if by_rows else ROWS * FEATURES)
    loc = torch.randn(*batch, ROWS, FEATURES)
    return SupportGaussian(loc, torch.rand(*batch, *precision) + 0.5, factor, by_rows=by_rows), factor


def dense(q, factor):
    """The same by its precision matrix over the flattened weights."""
    diagonal = q.precision.expand(*q.batch_shape, *q.event_shape).flatten(-2)
    if q.by_rows:
        blocks = factor.mT @ factor
        low_rank = torch.zeros(*blocks.shape[:-2], ROWS * FEATURES, ROWS * FEATURES)
        for row in range(ROWS):
            part = slice(row * FEATURES, (row + 1) * FEATURES)
            low_rank[..., part, part] = blocks
    else:
        low_rank = factor.mT @ factor
    return MultivariateNormal(q.mean.flatten(-2), precision_matrix=torch.diag_embed(diagonal) + low_rank)


CASES = [
    {"items": 4},
    {"items": 4, "batch": (3, 1)},
    {"items": 9},  # more than weights
    {"items": 0, "batch": (2,)},  # nothing told
    {"items": 4, "precision": (1, FEATURES)},
    {"items": 4, "precision": (1, 1)},
    {"items": 2, "batch": (3, 1), "by_rows": True},
    {"items": 5, "batch": (2, 3, 1), "by_rows": True},  # more than the weights of a row
    {"items": 2, "batch": (3, 1), "by_rows": True, "precision": (1, FEATURES)},  # one matrix for all rows
    {"items": 5, "by_rows": True, "precision": (1, 1)},
]


@pytest.fixture(params=CASES, ids=str)
def pair(request, float64):
    q, factor = gaussian(**request.param)
    return q, dense(q, factor)


class TestAgainstADenseGaussian:
    def test_density(self, pair):
        q, expected = pair
        for leading in ((), (4,), (4, 2)):
            value = torch.randn(*leading, *q.shape())
            torch.testing.assert_close(q.log_prob(value), expected.log_prob(value.flatten(-2)))
        torch.testing.assert_close(q.log_prob(torch.zeros(q.event_shape)), expected.log_prob(torch.zeros(6)))

    def test_moments(self, pair):
        q, expected = pair
        torch.testing.assert_close(q.mean.flatten(-2), expected.mean)
        torch.testing.assert_close(q.variance.flatten(-2), expected.variance)
        torch.testing.assert_close(q.entropy(), expected.entropy())
        torch.testing.assert_close(q.log_det_precision(), torch.logdet(expected.precision_matrix))

    @pytest.mark.parametrize("prior_shape", [(ROWS, FEATURES), (1, FEATURES), ()])
    def test_divergence(self, pair, prior_shape):
        q, expected = pair
        loc, scale = torch.randn(ROWS, FEATURES), (torch.rand(prior_shape) + 0.5).expand(ROWS, FEATURES)
        found = kl_divergence(q, dist.Normal(loc, scale).to_event(2))
        prior = MultivariateNormal(loc.flatten(), torch.diag(scale.flatten() ** 2))
        torch.testing.assert_close(found, kl_divergence(expected, prior))
        assert found.shape == q.batch_shape

    def test_draws_have_its_covariance(self, pair):
        """What noise is multiplied by, times its transpose; read off from unit vectors."""
        q, expected = pair
        units = torch.eye(6).view(6, *[1] * len(q.batch_shape), ROWS, FEATURES).expand(6, *q.shape())
        root = (q.from_noise(units) - q.mean).flatten(-2).movedim(0, -1)
        torch.testing.assert_close(root @ root.mT, expected.covariance_matrix)
        torch.testing.assert_close(q.from_noise(torch.zeros(q.shape())), q.mean)

    def test_draws_are_their_noise(self, pair):
        q, _ = pair
        torch.manual_seed(1)
        drawn = q.rsample((5, 2))
        torch.manual_seed(1)
        torch.testing.assert_close(drawn, q.from_noise(torch.randn(5, 2, *q.shape())))

    def test_expanded(self, pair):
        q, expected = pair
        wide = q.expand((4, *q.batch_shape))
        assert wide.shape() == (4, *q.shape()) == wide.mean.shape == wide.variance.shape == wide.rsample().shape
        assert wide.rsample((2,)).shape == (2, *wide.shape())
        assert not torch.equal(*wide.rsample()[:2])
        value = torch.randn(4, *q.shape())
        torch.testing.assert_close(wide.log_prob(value), expected.log_prob(value.flatten(-2)))
        prior = dist.Normal(torch.zeros(q.event_shape), 2.0).to_event(2)
        torch.testing.assert_close(kl_divergence(wide, prior), kl_divergence(q, prior).expand(4, *q.batch_shape))
        assert wide.white is q.white


def test_moments_of_draws(float64):
    q, factor = gaussian(4, (2, 1))
    draws = q.sample((60_000,)).flatten(-2).squeeze(-2)
    covariance = torch.stack([torch.cov(one.mT) for one in draws.unbind(1)])
    torch.testing.assert_close(draws.mean(0), q.mean.flatten(-2).squeeze(-2), atol=0.02, rtol=0)
    torch.testing.assert_close(covariance, dense(q, factor).covariance_matrix.squeeze(-3), atol=0.03, rtol=0)


def test_each_draw_has_its_own_factor_where_it_has_more_dimensions(float64):
    """A mean without batch dimensions, a factor with them."""
    loc, precision, factor = torch.randn(ROWS, FEATURES), torch.rand(1, FEATURES) + 0.5, torch.randn(4, 2, FEATURES)
    together = SupportGaussian(loc, precision, factor, by_rows=True)
    value = torch.randn(ROWS, FEATURES)
    alone = [SupportGaussian(loc, precision, one, by_rows=True).log_prob(value) for one in factor]
    torch.testing.assert_close(together.log_prob(value), torch.stack(alone))
    assert together.rsample().shape == (4, ROWS, FEATURES)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("items", [2, 7])
@pytest.mark.parametrize("what", ["log_prob", "kl", "draw", "variance"])
def test_gradients(by_rows, items, what, float64):
    def compute(loc, precision, factor, other):
        q = SupportGaussian(loc, precision, factor, by_rows=by_rows)
        if what == "kl":
            return kl_divergence(q, dist.Normal(other, other.square() + 1).to_event(2))
        if what == "variance":
            return q.variance
        return q.log_prob(other) if what == "log_prob" else q.from_noise(other)

    factor = torch.randn(items, FEATURES if by_rows else ROWS * FEATURES)
    inputs = (torch.randn(ROWS, FEATURES), torch.rand(ROWS, FEATURES) + 0.5, factor, torch.randn(ROWS, FEATURES))
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(compute, inputs)


@pytest.mark.parametrize("items", [3, 8])
def test_both_sides_of_woodbury_are_one(items, float64):
    factor, targets = torch.randn(4, 1, items, 5), torch.randn(4, 1, items, 2)
    primal, dual = (WhitePrecision(factor, dual=dual) for dual in (False, True))
    tight = {"atol": 1e-12, "rtol": 1e-12}
    for name in ("half_log_det", "leverage"):
        torch.testing.assert_close(getattr(primal, name)(), getattr(dual, name)(), **tight)
    torch.testing.assert_close(primal.shrink(targets), dual.shrink(targets), **tight)
    precision = torch.eye(5) + factor.mT @ factor
    torch.testing.assert_close(dual.shrink(targets), torch.linalg.solve(precision, factor.mT @ targets))
    assert WhitePrecision(factor).dual == (items < 5)


def test_rate_of_many_weights_of_which_items_tell_little(float64):
    """½ [log |G| − tr(I − G⁻¹)] + ½ τ ‖μ − m‖², G = I + F Fᵀ / τ: in single precision too, where sums over weights cancel."""
    tau, factor = 4.0, torch.randn(3, 200_000) / 400
    gram = torch.eye(3) + factor @ factor.mT / tau
    loc = torch.randn(1, 200_000) / 1000
    expected = 0.5 * (torch.logdet(gram) - (torch.eye(3) - torch.linalg.inv(gram)).trace() + tau * loc.square().sum())
    for dtype, error in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        q = SupportGaussian(loc.to(dtype), torch.full((1, 1), tau, dtype=dtype), factor.to(dtype))
        prior = dist.Normal(torch.zeros(1, 200_000, dtype=dtype), tau**-0.5).to_event(2)
        assert float(kl_divergence(q, prior)) == pytest.approx(float(expected), rel=error)


def test_refuses_what_it_has_no_divergence_to_and_other_widths(float64):
    with pytest.raises(NotImplementedError, match=r"only Normal\(\.\.\.\)\.to_event\(2\)"):
        kl_divergence(gaussian()[0], dist.Laplace(torch.zeros(2, 3), 1.0).to_event(2))
    with pytest.raises(NotImplementedError, match=r"only Normal\(\.\.\.\)\.to_event\(2\)"):
        kl_divergence(gaussian()[0], dist.Normal(torch.zeros(2, 3), 1.0).to_event(1))
    with pytest.raises(ValueError, match="3 columns, but there are 6 weights"):
        SupportGaussian(torch.zeros(2, 3), torch.ones(1, 1), torch.zeros(4, 3))


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("items", [2, 7])
def test_on_another_device_nothing_is_read_back(by_rows, items):
    with FakeTensorMode(), torch.device("cuda"):
        q, _ = gaussian(items, (3, 1), by_rows=by_rows)
        p = dist.Normal(torch.zeros(q.shape()), torch.ones(q.shape()), validate_args=False).to_event(2)
        found = q.rsample((2,)), q.log_prob(q.mean), q.variance, q.entropy(), kl_divergence(q, p)
    assert {t.device.type for t in found} == {"cuda"}


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_what_regression_makes_of_a_prior(pair, noise, float64):
    """Its own factor as slopes over the noise, with the prior's mean where it stands: Bishop 2006, equation 3.50."""
    q, expected = pair
    diagonal = q.precision.expand(*q.shape())
    if q.by_rows:
        slopes = q.white.factor / q.scales.unsqueeze(-2) * noise
        targets = torch.randn(*q.batch_shape, slopes.shape[-2], ROWS)
        residuals = targets - (slopes @ q.mean.unsqueeze(-1)).squeeze(-1).mT
        pull = (slopes.mT @ targets.mT.unsqueeze(-1)).squeeze(-1)
    else:
        slopes = (q.white.factor / q.scales.unsqueeze(-2)).squeeze(-3) * noise
        targets = torch.randn(*q.batch_shape, slopes.shape[-2], 1)
        residuals = targets - slopes @ q.mean.flatten(-2).unsqueeze(-1)
        pull = (slopes.mT @ targets).squeeze(-1).unflatten(-1, q.event_shape)
    found = q.told(residuals / noise)
    shift = (diagonal * q.mean + pull / noise**2).flatten(-2)
    torch.testing.assert_close(found.mean.flatten(-2), (expected.covariance_matrix @ shift.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(found.variance, q.variance)
    assert found.batch_shape == q.batch_shape
