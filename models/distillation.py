"""Variational information distillation as a Pyro model: labels and teacher layers are observed, the student explains both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.bayesian_network import data_plate
from models.decoders import build_decoder
from models.likelihoods import CategoricalLikelihood, Likelihood


class Pair(NamedTuple):
    """Which layer of the teacher a layer of the student is to explain, by module names.

    Attributes:
        teacher, student: as in ``named_modules()``.
        weight: λ ≥ 0; 0 leaves the pair out.
    """

    teacher: str
    student: str
    weight: float = 1.0


@contextmanager
def capture(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of named layers while the block runs; the hooks are gone after it, whatever happens.

    Raises:
        ValueError: an unknown layer; the message lists those there are.
    """
    modules = dict(network.named_modules())
    if unknown := [name for name in names if name not in modules]:
        known = ", ".join(name for name in modules if name)
        raise ValueError(f"no layer {', '.join(map(repr, unknown))}: choose from {known}")
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            found[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in dict.fromkeys(names)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def features(network: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of named layers in evaluation mode, without gradients: parameters, statistics and mode stay as they were."""
    was_training = [module.training for module in network.modules()]
    network.eval()
    try:
        with capture(network, names) as found:
            network(x)
    finally:
        for module, training in zip(network.modules(), was_training, strict=True):
            module.training = training
    return found


class DistillationModel(PyroModule):
    """y ~ p(y given student(x)) and, for each pair of layers, t ~ q(t given s) with weight λ.

    Sites, in the plate ``data``: ``labels``, and ``teacher.<layer>`` for each teacher layer, its log-density times λ. As
    nothing is latent, the negative ELBO of the model with an empty guide is L_S − Σ_k λ_k log q(t_k given s_k), summed over
    the data. Without ``y`` the labels are not observed and unlabelled images train the student through its layers alone.

    Source: Ahn et al. 2019, equation 2.

    Args:
        student: trained.
        teacher: read once for its layers' shapes, and never kept: give its :func:`features` to :meth:`forward`.
        pairs: layers; those of weight 0 are left out altogether, so that the student trains as if they were not there.
        example: inputs ``[n, *item]`` both networks can take.
        likelihood: categorical when not given.
        num_data: n of the data set that minibatches come from; ``None``: the batch is the data set.
        heteroscedastic: decoders whose σ depends on s.

    Raises:
        ValueError: unknown layers, a negative weight, or inputs that one of the networks cannot take.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Sequence[Pair],
        example: Tensor,
        *,
        likelihood: Likelihood | None = None,
        num_data: int | None = None,
        heteroscedastic: bool = False,
    ) -> None:
        super().__init__()
        if negative := [pair.weight for pair in pairs if not pair.weight >= 0]:
            raise ValueError(f"λ = {negative[0]} must not be negative")
        self.student, self.num_data = student, num_data
        self.likelihood = likelihood if likelihood is not None else CategoricalLikelihood()
        self.pairs = [pair for pair in pairs if pair.weight > 0]
        taught = layer_shapes("teacher", teacher, example, [pair.teacher for pair in self.pairs])
        learned = layer_shapes("student", student, example, [pair.student for pair in self.pairs])
        state = torch.random.get_rng_state()  # decoders draw their start from a stream of their own
        self.decoders = nn.ModuleList(
            build_decoder(learned[pair.student], taught[pair.teacher], heteroscedastic=heteroscedastic) for pair in self.pairs
        )
        torch.random.set_rng_state(state)

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
            if y is not None:
                pyro.sample("labels", self.likelihood(outputs), obs=y)
            if teacher_features is not None:
                for pair, decoder in zip(self.pairs, self.decoders, strict=True):
                    with poutine.scale(scale=pair.weight):
                        pyro.sample(f"teacher.{pair.teacher}", decoder(found[pair.student]), obs=teacher_features[pair.teacher])
        return outputs


def layer_shapes(owner: str, network: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Layer name -> shape of one item's features.

    Raises:
        ValueError: an unknown layer, or inputs the network cannot take.
    """
    try:
        found = features(network, example, names)
    except RuntimeError as error:
        shape = "×".join(map(str, example.shape[1:]))
        raise ValueError(f"the {owner} cannot take inputs of shape {shape}: {str(error).splitlines()[0]}") from error
    return {name: tuple(tensor.shape[1:]) for name, tensor in found.items()}
