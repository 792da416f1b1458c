"""Other ways to transfer knowledge, one function each: losses ``[n]`` of a student's outputs or layers against a teacher's."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distillation.decoders import ResizeMaps, mean_network
from models.precision import full_precision

Loss = Callable[[Tensor, Tensor], Tensor]


class Transfer(StrEnum):
    """How a layer of the student learns from a layer of the teacher."""

    VID = "vid"
    """Variational information distillation: :class:`~models.distillation.decoders.GaussianDecoder`."""
    KD = "kd"
    """:func:`knowledge_distillation`."""
    LWF = "lwf"
    """:func:`learning_without_forgetting`."""
    FITNET = "fitnet"
    """:func:`hint`."""
    AT = "at"
    """:func:`attention_transfer`."""
    NST = "nst"
    """:func:`neuron_selectivity_transfer`."""


class LayerLoss(nn.Module):
    """loss(adapter(s), t), ``[n]``.

    Args:
        adapter: from the student's features to what the loss compares; trained with the student.
        loss: one of this module's functions.
    """

    def __init__(self, adapter: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.adapter, self.loss = adapter, loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features ``[n, *layer_shape]`` of both to ``[n]``, in float32 at least: in bfloat16 differences of attention maps
        vanish, and their gradients with them."""
        dtype = torch.promote_types(teacher.dtype, torch.float32)
        adapted = self.adapter(student)
        with full_precision(student.device):
            return self.loss(adapted.to(dtype), teacher.to(dtype))


def build_loss(
    transfer: Transfer, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], *, temperature: float | None = None
) -> LayerLoss:
    """The loss of a method for a pair of layers, with the adapter it needs.

    FitNet's regressor is the network μ of VID's decoder, and LwF keeps a linear head for the teacher's task.

    Args:
        student_shape, teacher_shape: of the features, without the batch.
        temperature: T of KD and LwF; each one's own when not given.

    Raises:
        ValueError: layers the method cannot compare.
    """
    if transfer is Transfer.KD and student_shape != teacher_shape:
        raise ValueError("kd compares the same classes, and the teacher has others: lwf keeps a head for the teacher's")
    if transfer in (Transfer.AT, Transfer.NST) and not len(student_shape) == len(teacher_shape) == 3:
        raise ValueError(f"{transfer} compares maps [channels, height, width], not {student_shape} with {teacher_shape}")
    adapted = transfer in (Transfer.FITNET, Transfer.LWF)
    adapter = mean_network(student_shape, teacher_shape) if adapted else nn.Identity()
    loss = LOSSES[transfer]
    if temperature is not None and transfer in (Transfer.KD, Transfer.LWF):
        loss = partial(loss, temperature=temperature)
    return LayerLoss(adapter, loss)


def knowledge_distillation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """KD: T² KL(softmax(t/T) ‖ softmax(s/T)), nats, for logits ``[n, classes]``.

    The factor T² keeps the gradient's size whatever the temperature. Source: Hinton, Vinyals and Dean 2015, section 2.
    """
    target = (teacher_logits / temperature).log_softmax(-1)
    predicted = (student_logits / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(predicted, target, reduction="none", log_target=True).sum(-1)


def learning_without_forgetting(old_head_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """LwF: cross-entropy of the softened answers of a head that the student keeps for the teacher's task, ``[n, classes]``;
    nats. Both logits are divided by the ``temperature`` T.

    Source: Li and Hoiem 2016, equations 2 and 3 (T = 2).
    """
    target = (teacher_logits / temperature).softmax(-1)
    return -(target * (old_head_logits / temperature).log_softmax(-1)).sum(-1)


def hint(regressed: Tensor, teacher: Tensor) -> Tensor:
    """FitNet: ½ ‖t − r(s)‖², summed over the layer, with ``regressed`` = r(s) of the teacher's shape ``[n, ...]``.

    It is −log q(t given s) of a Gaussian decoder with σ = 1, but for a constant. Source: Romero et al. 2015, equation 3.
    """
    return 0.5 * (teacher - regressed).square().flatten(1).sum(-1)


def attention_map(maps: Tensor) -> Tensor:
    """Where a layer is active: Σ_c A_c², flattened and of unit norm, ``[n, channels, h, w] -> [n, h w]``.

    Source: Zagoruyko and Komodakis 2017, section 3.1 (F²_sum).
    """
    return F.normalize(maps.square().sum(1).flatten(1), dim=-1)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """AT: ½ ‖Q_S − Q_T‖₂ of the two layers' attention maps; the student's maps are resized to the teacher's.

    Source: Zagoruyko and Komodakis 2017, equation 2.
    """
    student = ResizeMaps((teacher.shape[-2], teacher.shape[-1]))(student)
    difference = attention_map(student) - attention_map(teacher)
    squares = difference.square().sum(-1)
    return 0.5 * squares.clamp_min(torch.finfo(squares.dtype).eps).sqrt()  # the root of 0 has no gradient


def neuron_selectivity_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """NST: squared maximum mean discrepancy between the neurons' normalised maps, kernel ⟨a, b⟩².

        1/C_T² Σ k(t_i, t_j) + 1/C_S² Σ k(s_i, s_j) − 2/(C_T C_S) Σ k(t_i, s_j)

    for maps ``[n, channels, h, w]``; the numbers of channels may differ, the student's maps are resized to the teacher's.
    Source: Huang and Wang 2017, equations 4 and 6.
    """
    student = ResizeMaps((teacher.shape[-2], teacher.shape[-1]))(student)
    s, t = (F.normalize(maps.flatten(2), dim=-1) for maps in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT).square().mean((-2, -1))

    return kernel(t, t) + kernel(s, s) - 2 * kernel(t, s)


LOSSES: dict[Transfer, Callable[..., Tensor]] = {
    Transfer.KD: knowledge_distillation,
    Transfer.LWF: learning_without_forgetting,
    Transfer.FITNET: hint,
    Transfer.AT: attention_transfer,
    Transfer.NST: neuron_selectivity_transfer,
}
