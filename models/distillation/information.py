"""How much a student's layer says about a teacher's layer, in nats, from decoders and data in batches."""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from models.distillation.decoders import SMALLEST_VARIANCE, GaussianDecoder


class Entropy(StrEnum):
    """Of which Gaussian a layer's entropy is taken."""

    DIAGONAL = "diagonal"
    """Independent units, or channels: what VID's decoders assume. Copies of a unit count as often as there are copies."""
    FULL = "full"
    """Correlated units, or channels at one position: copies count once. Positions are taken as independent."""


class Moments:
    """Mean and covariance of units or channels, summed up batch by batch in float64; positions count as items.

    Args:
        full: whether covariances between units are wanted, or variances alone.
    """

    def __init__(self, *, full: bool = False) -> None:
        self.full, self.items, self.count = full, 0, 0
        self.mean = self.scatter = torch.zeros(())

    def add(self, layer: Tensor) -> None:
        """Take in ``[n, *layer_shape]``. Source: Chan, Golub and LeVeque 1983, equation 2.1."""
        values = layer.transpose(0, 1).flatten(1).to(torch.float64)
        mean = values.mean(-1)
        centred = values - mean[:, None]
        scatter = centred @ centred.mT if self.full else centred.square().sum(-1)
        if not self.count:
            self.mean, self.scatter = torch.zeros_like(mean), torch.zeros_like(scatter)
        shift, total = mean - self.mean, self.count + values.shape[1]
        between = torch.outer(shift, shift) if self.full else shift.square()
        self.scatter = self.scatter + scatter + between * (self.count * values.shape[1] / total)
        self.mean = self.mean + shift * (values.shape[1] / total)
        self.count, self.items = total, self.items + len(layer)

    def entropy(self, *, centred: bool = True) -> Tensor:
        """−E log p of the best Gaussian with these moments and variances of at least (full: with an added) 10⁻³, nats per item.

        Args:
            centred: about the mean; else about 0, for residuals of a model that has a mean of its own.

        Raises:
            ValueError: a full covariance from no more values than units.
        """
        positions = self.count // self.items
        second = self.scatter / self.count
        if not self.full:
            second = second if centred else second + self.mean.square()
            allowed = second.clamp_min(SMALLEST_VARIANCE)
            return (0.5 * ((2 * torch.pi * allowed).log() + second / allowed)).sum() * positions
        units = len(second)
        if self.count <= units:
            raise ValueError(f"a full covariance of {units} units needs more than {self.count} values: give more items")
        second = second if centred else second + torch.outer(self.mean, self.mean)
        allowed = second + SMALLEST_VARIANCE * torch.eye(units, dtype=second.dtype, device=second.device)
        fit = torch.linalg.solve(allowed, second).trace()
        return 0.5 * (units * math.log(2 * torch.pi) + torch.logdet(allowed) + fit) * positions


@torch.no_grad()
def marginal_entropy(teacher: Tensor, entropy: Entropy | str = Entropy.DIAGONAL) -> Tensor:
    """Ĥ(t): entropy of the Gaussian that has the mean and variances (``full``: the covariance) of a layer
    ``[n, *teacher_shape]``, nats per item; at least H(t).

    The diagonal one is what −E log q(t) comes to for the best decoder that ignores the student, of the form of
    :class:`~models.distillation.decoders.GaussianDecoder`.
    """
    moments = Moments(full=Entropy(entropy) is Entropy.FULL)
    moments.add(teacher)
    return moments.entropy()


class DecodingGain:
    """How much better a teacher's layer is known with the student than without, nats per item, summed up batch by batch.

        diagonal    Ĥ(t) + E log q(t given s)
        full        ½ log det Σ_t − ½ log det Σ_r, with Σ_t of the layer and Σ_r of its rest r = t − μ(s)

    It is the variational bound H(t) + E log q ≤ I(t; s) plus the constant Ĥ(t) − H(t) ≥ 0, for the entropy H(t) of a network's
    layer is not known. The constant is the same for every student of a teacher: figures of students compare, but none of them
    is a bound on I(t; s), unless t is Gaussian of the assumed form. It is large for ``diagonal`` where units are correlated
    (eight copies of a unit: eight times the unit's gain). ``full`` counts what copies share once: it takes Ĥ of the Gaussian
    with t's covariance, and the decoder's mean with the covariance of its rest, so that the constant is t's departure from a
    Gaussian alone (and, for maps, the correlation between positions). Source: Ahn et al. 2019, section 2.

    Args:
        decoder: q(t given s), in evaluation mode.
        entropy: see :class:`Entropy`.
    """

    def __init__(self, decoder: GaussianDecoder, entropy: Entropy | str = Entropy.DIAGONAL) -> None:
        self.decoder, self.full = decoder, Entropy(entropy) is Entropy.FULL
        self.taught, self.rest = Moments(full=self.full), Moments(full=self.full)
        self.log_density = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Take in layers ``[n, *layer_shape]``."""
        self.taught.add(teacher)
        q = self.decoder(student)
        if self.full:
            self.rest.add(teacher - q.mean)
        else:
            self.log_density = self.log_density + q.log_prob(teacher).to(torch.float64).sum().cpu()

    def value(self) -> float:
        """The gain so far.

        Raises:
            ValueError: ``full`` with no more values (items times positions) than units or channels.
        """
        known = self.rest.entropy(centred=False) if self.full else -self.log_density / self.taught.items
        return float(self.taught.entropy()) - float(known)


@torch.no_grad()
def surprise_map(decoder: GaussianDecoder, student: Tensor, teacher: Tensor) -> Tensor:
    """−log q(t given s) summed over channels, ``[n, height, width]`` in nats: where the student does not know its teacher."""
    return -decoder(student).log_prob_of_units(teacher).sum(1)
