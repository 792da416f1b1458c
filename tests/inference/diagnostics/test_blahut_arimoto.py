"""Rate–distortion functions, capacities and bottlenecks against closed forms and enumeration."""

import math

import pytest
import torch

from inference.diagnostics.blahut_arimoto import capacity, information_bottleneck, mutual_information, rate_distortion


@pytest.fixture(autouse=True)
def double(float64):
    pass


def entropy(p):
    """Binary entropy, nats."""
    return 0.0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log(1 - p)


class TestBlahutArimoto:
    @pytest.mark.parametrize("p", [0.5, 0.3, 0.11])
    @pytest.mark.parametrize("beta", [0.25, 0.5, 0.9])
    def test_binary_source_with_hamming_distortion(self, p, beta):
        """R(D) = h(p) − h(D), and the slope −1/β there means D = 1/(1 + e^(1/β)), if below min(p, 1 − p)."""
        result = rate_distortion(torch.tensor([p, 1 - p]), 1 - torch.eye(2), beta)
        expected = min(1 / (1 + math.exp(1 / beta)), p)
        if abs(expected - p) < 1e-9:  # beyond the critical β the best code is a constant
            assert result.rate == pytest.approx(0, abs=1e-8)
        assert result.distortion == pytest.approx(expected, abs=1e-8)
        assert result.rate == pytest.approx(entropy(p) - entropy(result.distortion), abs=1e-8)
        assert result.gap < 1e-12

    def test_gap_bounds_the_distance_to_the_minimum(self):
        source, distortion = torch.rand(6), torch.rand(6, 5)
        source /= source.sum()
        exact = rate_distortion(source, distortion, 0.1)
        early = rate_distortion(source, distortion, 0.1, tolerance=1e-3)
        excess = early.distortion + 0.1 * early.rate - exact.distortion - 0.1 * exact.rate
        assert 0 <= excess <= early.gap + 1e-12
        assert early.iterations < exact.iterations

    @pytest.mark.parametrize("flip", [0.0, 0.1, 0.5])
    def test_capacity_of_the_binary_symmetric_channel(self, flip):
        value, source = capacity(torch.tensor([[1 - flip, flip], [flip, 1 - flip]]))
        assert value == pytest.approx(math.log(2) - entropy(flip), abs=1e-8)
        torch.testing.assert_close(source, torch.full((2,), 0.5))

    def test_capacity_of_the_erasure_and_z_channels(self):
        value, _ = capacity(torch.tensor([[0.7, 0.0, 0.3], [0.0, 0.7, 0.3]]))
        assert value == pytest.approx(0.7 * math.log(2), abs=1e-8)
        value, _ = capacity(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        assert value == pytest.approx(math.log(1 + 0.5 * 0.5 ** (0.5 / 0.5)), abs=1e-8)

    @pytest.mark.parametrize("beta", [0.05, 0.2, 0.5, 0.8])
    def test_bottleneck_of_a_symmetric_channel(self, beta):
        """Mrs Gerber's lemma: the best code of a uniform bit seen through flips ε is itself a symmetric channel α, so
        I(x; t) = log 2 − h(α), I(t; y) = log 2 − h(α(1 − ε) + (1 − α)ε); α by a fine grid."""
        flip = 0.1
        joint = 0.5 * torch.tensor([[1 - flip, flip], [flip, 1 - flip]])
        result = information_bottleneck(joint, beta)
        total = math.log(2) - entropy(flip)
        alphas = [i / 20_000 for i in range(10_001)]
        losses = [
            total - (math.log(2) - entropy(a * (1 - flip) + (1 - a) * flip)) + beta * (math.log(2) - entropy(a)) for a in alphas
        ]
        assert result.distortion + beta * result.rate == pytest.approx(min(losses), abs=1e-7)

    def test_bottleneck_keeps_all_or_nothing_at_the_ends(self):
        joint = torch.rand(5, 4)
        joint /= joint.sum()
        everything, nothing = information_bottleneck(joint, 1e-3), information_bottleneck(joint, 1.5)
        assert everything.distortion == pytest.approx(0, abs=1e-6)
        assert nothing.rate == pytest.approx(0, abs=1e-6)
        source = joint.sum(1)
        assert nothing.distortion == pytest.approx(mutual_information(source, joint / source[:, None]), abs=1e-6)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: rate_distortion(torch.tensor([0.5, 0.6]), torch.eye(2), 1.0), "sums to"),
            (lambda: rate_distortion(torch.tensor([0.5, 0.5]), torch.eye(2), 0.0), "beta"),
            (lambda: rate_distortion(torch.tensor([1.0, 0.0]), torch.eye(2), 1.0), "positive"),
            (lambda: capacity(torch.tensor([[0.5, 0.4]])), "sums to"),
        ],
    )
    def test_bad_input_is_named(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
