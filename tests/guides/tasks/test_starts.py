"""Where descent starts: exact posteriors of Gaussian means, whatever the number of support items."""

import pytest
import torch

from guides.tasks.starts import SupportMeans

COUNTS = (1, 3, 5, 0)


def start_of(within: float, between: float) -> SupportMeans:
    """That of classes w ~ N(0, between), x given w ~ N(w, within), in every dimension."""
    start = SupportMeans(2, (within / (1 + within / between)) ** 0.5)
    start.log_ratio.data.fill_(within / between).log_()
    start.coefficient.data.fill_(1 / (1 + within / between))
    return start.double()


@pytest.mark.parametrize(("within", "between"), [(0.5, 2.0), (3.0, 0.4)])
def test_it_can_be_the_exact_posterior_of_class_means_whatever_their_numbers(within, between):
    """By the sum of precisions; a class without items is at the prior."""
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))[None]
    x = torch.randn(1, len(labels[0]), 2, dtype=torch.float64)
    loc, log_scale = start_of(within, between)(x, labels, x, len(COUNTS))
    for c, n in enumerate(COUNTS):
        precision = 1 / between + n / within
        torch.testing.assert_close(loc[0, c], x[0, labels[0] == c].sum(0) / within / precision)
        torch.testing.assert_close(log_scale[0, c].exp(), torch.full((2,), precision**-0.5, dtype=torch.float64))


def test_guides_of_before_do_not_count():
    start = SupportMeans(2, 0.3, counted=False)
    x, labels = torch.randn(1, 4, 2), torch.tensor([[0, 0, 0, 1]])
    loc, log_scale = start(x, labels, x, 2)
    torch.testing.assert_close(loc[0, 0], x[0, :3].mean(0))
    torch.testing.assert_close(log_scale.exp(), torch.full((1, 2, 2), 0.3))
    assert "log_ratio" not in dict(start.named_parameters())
