"""Other ways to transfer knowledge, one function each: losses ``[n]`` of a student's outputs or layers against a teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoders import ResizeMaps


def knowledge_distillation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """KD: T² KL(softmax(t/T) ‖ softmax(s/T)), nats, for logits ``[n, classes]``.

    The factor T² keeps the gradient's size whatever the temperature. Source: Hinton, Vinyals and Dean 2015, section 2.
    """
    target = (teacher_logits / temperature).log_softmax(-1)
    predicted = (student_logits / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(predicted, target, reduction="none", log_target=True).sum(-1)


def learning_without_forgetting(old_head_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """LwF: cross-entropy of the softened answers of a head that the student keeps for the teacher's task, ``[n, classes]``.

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
