"""Tasks whose support has several right answers: which of them do the draws of a posterior find?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Ambiguity(NamedTuple):
    """How draws of a posterior answer tasks that have several right answers; each ``[tasks]`` where nothing else is said.

    Every draw is a classifier. It is given to the answer under which the labels of that answer's queries are the most likely.
    A task of which a draw says no numbers has none itself.

    Attributes:
        accuracy: of each draw, on the queries of the answer that it is given to; mean over draws.
        coverage: how many of the answers are given a draw, 1 to ``answers``. It grows with the number of draws, which is to be
            said beside it, and a single classifier has 1. Draws that are all alike may be given to several answers by the
            noise of their likelihoods: read it beside ``reached``.
        reached: of each answer, the accuracy of the best of all draws on its queries; mean over answers. It is 1 only where
            every answer has a draw that is right.
        given: how many draws each answer is given, ``[tasks, answers]``: :func:`expected_coverage` tells from them how many
            answers fewer draws cover; 0 of a task without numbers.
        nll: −log of the mean over draws of Π_i p(y_i given x_i), each answer's queries taken together, nats per query; mean
            over answers. A mixture of right answers pays log(answers) once for all queries.
        marginal_nll: the same of each query by itself, which tells a mixture of sure classifiers from one that is as unsure
            by nothing.
    """

    accuracy: Tensor
    coverage: Tensor
    reached: Tensor
    given: Tensor
    nll: Tensor
    marginal_nll: Tensor


def ambiguity(logits: Tensor, labels: Tensor, *, answers: int = 3) -> Ambiguity:
    """Measure draws of classifiers on tasks whose queries are blocks, one for each right answer.

    Source: Finn, Xu and Levine 2018, "Probabilistic model-agnostic meta-learning", table 1: accuracy, coverage (of three) and
    average NLL.

    Args:
        logits: of each draw, ``[draws, tasks, answers · n, way]``.
        labels: by each block's own answer, ``[tasks, answers · n]``.
        answers: how many blocks the queries are.

    Raises:
        ValueError: the queries are no such blocks.
    """
    if labels.shape[-1] % answers:
        raise ValueError(f"{labels.shape[-1]} queries are not {answers} blocks of one size")
    index = labels[None, ..., None].expand(len(logits), -1, -1, 1)
    logs = logits.log_softmax(-1).gather(-1, index)[..., 0].unflatten(-1, (answers, -1))  # [draws, tasks, answers, n]
    right = (logits.argmax(-1) == labels).to(logs).unflatten(-1, (answers, -1)).mean(-1)  # [draws, tasks, answers]
    joint, own = logs.sum(-1), torch.nn.functional.one_hot(logs.sum(-1).argmax(-1), answers)
    draws = math.log(len(logits))
    known = ~joint.isnan().any(-1).any(0)  # the largest of what is no number would be an answer
    return Ambiguity(
        accuracy=(right * own).sum(-1).mean(0).where(known, torch.nan),
        coverage=own.amax(0).sum(-1).to(logs).where(known, torch.nan),
        reached=right.amax(0).mean(-1).where(known, torch.nan),
        given=own.sum(0) * known[:, None],
        nll=((draws - joint.logsumexp(0)) / logs.shape[-1]).mean(-1),
        marginal_nll=(draws - logs.logsumexp(0)).mean((-2, -1)),
    )


def expected_coverage(given: Tensor, draws: int) -> Tensor:
    """How many answers so many ``draws`` cover on average, where these are any of all draws, without replacement: ``[tasks]``.

    Σ_a 1 − C(N − c_a, n) / C(N, n), of N draws of which c_a are given to answer a (hypergeometric). From N independent draws it
    is an unbiased estimate of the coverage of n, and varies less than that of any n of them; draws that come in pairs on both
    sides of their mean are not independent, and every other one is.

    Args:
        given: c, ``[tasks, answers]``; of a task of which no draw is given to an answer there is no number.
        draws: n.

    Raises:
        ValueError: more draws than there are, or none.
    """
    total = given.sum(-1, keepdim=True)
    known = total > 0
    total = total.where(known, draws)
    if not 1 <= draws <= int(total.min()):
        raise ValueError(f"{draws} of {int(total.min())} draws: 1 to all of them can be taken")
    taken = torch.arange(draws, device=given.device)
    left = (total - given)[..., None] - taken  # draws given to other answers, after so many of them are taken
    missed = (left.clamp_min(0).double() / (total[..., None] - taken)).prod(-1)
    return (1 - missed).sum(-1).where(known[:, 0], torch.nan)
