"""Variational information distillation as a Pyro model: labels and teacher layers are observed, the student explains both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.distillation.decoders import GaussianDecoder, build_decoder
from models.distillation.losses import LayerLoss, Transfer, build_loss
from models.likelihoods import CategoricalLikelihood, Likelihood
from models.networks.layers import capture, layer_outputs
from models.plates import data_plate


class Pair(NamedTuple):
    """Which layer of the teacher a layer of the student is to learn from, and how.

    Attributes:
        teacher, student: as in ``named_modules()``, or a layer's input (see :func:`~models.networks.layers.capture`).
        weight: λ ≥ 0; 0 leaves the pair out.
        transfer: VID, or one of the methods it is compared with.
    """

    teacher: str
    student: str
    weight: float = 1.0
    transfer: Transfer = Transfer.VID

    @property
    def site(self) -> str:
        """Name of its sample site: ``teacher.<layer>`` for VID, else ``<method>.<layer>``."""
        return f"{'teacher' if self.transfer is Transfer.VID else self.transfer}.{self.teacher}"


class DistillationModel(PyroModule):
    """y ~ p(y given student(x)) and, for each pair of layers, t ~ q(t given s) with weight λ.

    Sites, in the plate ``data``: ``labels``, and one for each pair. VID's are observed teacher layers ``teacher.<layer>``, with
    λ times their log-density; those of other methods are factors exp(−λ · loss). As nothing is latent, the negative ELBO of the
    model with an empty guide is L_S − Σ_k λ_k log q(t_k given s_k), summed over the data. Without ``y`` unlabelled images train
    the student through its layers alone; with ``x`` alone the program samples labels.

    Source: Ahn et al. 2019, equation 2.

    Args:
        student: trained.
        teacher: read once for its layers' shapes, and never kept: give its :func:`~models.networks.layers.features` to
            :meth:`forward`. Its layers on the ``example``, name -> ``[n, *layer_shape]``, do as well.
        pairs: layers; those of weight 0 are left out altogether, so that the student trains as if they were not there.
        example: inputs ``[n, *item]`` both networks can take, a few hundred: where VID's decoders start.
        likelihood: categorical when not given.
        num_data: n of the data set that minibatches come from; ``None``: the batch is the data set.
        heteroscedastic: decoders whose σ depends on s.
        temperature: T of KD and LwF; each one's own (4 and 2) when not given.

    Raises:
        ValueError: unknown layers, a negative weight, a pair given twice, layers a method cannot compare, or inputs that one of
            the networks cannot take.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Mapping[str, Tensor],
        pairs: Sequence[Pair],
        example: Tensor,
        *,
        likelihood: Likelihood | None = None,
        num_data: int | None = None,
        heteroscedastic: bool = False,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        if negative := [pair.weight for pair in pairs if not pair.weight >= 0]:
            raise ValueError(f"λ = {negative[0]} must not be negative")
        self.student, self.num_data = student, num_data
        self.likelihood = likelihood if likelihood is not None else CategoricalLikelihood()
        self.pairs = [pair for pair in pairs if pair.weight > 0]
        sites = [pair.site for pair in self.pairs]
        if twice := [site for site in sites if sites.count(site) > 1]:
            raise ValueError(f"{twice[0]} is given twice: a teacher's layer has one pair in each method")
        self.heteroscedastic, self.temperature = heteroscedastic, temperature
        names = [pair.teacher for pair in self.pairs]
        taught = layer_outputs("teacher", teacher, example, names) if isinstance(teacher, nn.Module) else teacher
        self.taught_shapes = {pair.teacher: tuple(taught[pair.teacher].shape[1:]) for pair in self.pairs}
        learned = layer_outputs("student", student, example, [pair.student for pair in self.pairs])
        state = torch.random.get_rng_state()  # decoders draw their start from a stream of their own
        self.transfers = nn.ModuleList()
        for pair in self.pairs:
            shapes = tuple(learned[pair.student].shape[1:]), self.taught_shapes[pair.teacher]
            if pair.transfer is Transfer.VID:
                decoder = build_decoder(*shapes, heteroscedastic=heteroscedastic)
                decoder.ignore_student(taught[pair.teacher])
                self.transfers.append(decoder)
            else:
                self.transfers.append(build_loss(pair.transfer, *shapes, temperature=temperature))
        torch.random.set_rng_state(state)

    @property
    def teacher_layers(self) -> list[str]:
        """The teacher's layers that :meth:`forward` wants."""
        return list(dict.fromkeys(pair.teacher for pair in self.pairs))

    @property
    def decoders(self) -> dict[str, GaussianDecoder]:
        """VID's decoders by their teacher layer."""
        modules = zip(self.pairs, self.transfers, strict=True)
        return {pair.teacher: module for pair, module in modules if isinstance(module, GaussianDecoder)}

    def forward(self, x: Tensor, y: Tensor | None = None, teacher_features: dict[str, Tensor] | None = None) -> Tensor:
        """Run the program; returns the student's outputs ``[n, outputs]``.

        Args:
            x: ``[n, *item]``.
            y: ``[n]``, or ``None``.
            teacher_features: the teacher's layer name -> ``[n, *layer_shape]``; ``None`` leaves the layers out.
        """
        with capture(self.student, [pair.student for pair in self.pairs]) as found:
            outputs = self.student(x)
        with data_plate(self.num_data, len(x), x.device):
            if y is not None or teacher_features is None:
                pyro.sample("labels", self.likelihood(outputs), obs=y)
            if teacher_features is not None:
                for pair, module in zip(self.pairs, self.transfers, strict=True):
                    observe(pair, module, found[pair.student], teacher_features[pair.teacher])
        return outputs


def observe(pair: Pair, module: nn.Module, student: Tensor, teacher: Tensor) -> None:
    """The pair's sample site, from features ``[n, *layer_shape]`` s = ``student`` and t = ``teacher``: λ log q(t given s), or
    −λ · loss."""
    with poutine.scale(scale=pair.weight):
        if isinstance(module, LayerLoss):
            pyro.factor(pair.site, -module(student, teacher))
        else:
            pyro.sample(pair.site, module(student), obs=teacher)
