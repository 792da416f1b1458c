"""The methods of a VID run by name: which layers they compare, by which loss, with which λ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from data.errors import UserError, choose
from models.distillation.losses import Transfer
from models.distillation.model import Pair
from models.networks.layers import layer_outputs
from models.networks.stages import intermediate_layers, logits_layer, match_layers, penultimate_layer


class Kind(NamedTuple):
    """What a term of a method stands for.

    Attributes:
        transfer: its loss.
        teacher, student: the layers: inside, logits, or penultimate.
        weight: λ at strength 1: for a whole layer, or for each of its numbers.
        per_element: whether λ is for each number of the teacher's layer, so that the loss is a mean over them.
    """

    transfer: Transfer
    teacher: str
    student: str
    weight: float
    per_element: bool


KINDS = {
    "kd": Kind(Transfer.KD, "logits", "logits", 3.0, False),
    "lwf": Kind(Transfer.LWF, "logits", "penultimate", 1.0, False),
    "fitnet": Kind(Transfer.FITNET, "inside", "inside", 10.0, True),
    "at": Kind(Transfer.AT, "inside", "inside", 5.0, False),
    "nst": Kind(Transfer.NST, "inside", "inside", 5.0, False),
    "vid": Kind(Transfer.VID, "inside", "inside", 30.0, True),
    "vid-logits": Kind(Transfer.VID, "logits", "penultimate", 10.0, True),
}
"""Terms by name. ``vid`` is the paper's MI-I, ``vid-logits`` its MI-L."""

PLAIN = ("student", "finetuned", "fitnet-stages")
"""``student`` learns from labels alone; ``finetuned`` starts from weights trained on the teacher's data; ``fitnet-stages``
trains its lower half by one hint, then the whole by KD (Romero et al. 2015, algorithm 1)."""


@dataclass(frozen=True)
class Method:
    """A sum of terms, each with a coefficient, and where the student starts.

    Attributes:
        terms: (coefficient, name in :data:`KINDS`).
        finetuned: start from weights trained on the teacher's data.
        stages: a hint stage comes first.
    """

    terms: tuple[tuple[float, str], ...] = ()
    finetuned: bool = False
    stages: bool = False

    @classmethod
    def parse(cls, text: str) -> Method:
        """From ``text``: ``"kd+vid"`` or ``"0.5*kd+2*vid"``.

        Raises:
            UserError: an unknown term or a coefficient that is no positive number.
        """
        terms: list[tuple[float, str]] = []
        flags = set()
        for part in text.split("+"):
            coefficient, times, name = part.strip().rpartition("*")
            if name in PLAIN and not times:
                flags.add(name)
            elif name in KINDS:
                terms.append((read_coefficient(coefficient) if times else 1.0, name))
            else:
                known = (*PLAIN, *KINDS, "or sums such as kd+vid")
                raise UserError(f"unknown method {part.strip()!r}: {choose(name, known)}")
        if "fitnet-stages" in flags:
            terms.insert(0, (1.0, "kd"))
        return cls(tuple(terms), "finetuned" in flags, "fitnet-stages" in flags)

    def pairs(
        self, teacher: nn.Module, student: nn.Module, example: Tensor, strength: float, inside: Layers | None = None
    ) -> list[Pair]:
        """The pairs of layers that its terms compare, with λ = strength · coefficient · weight of the kind.

        Args:
            inside: (teacher's, student's) layers of the terms that look inside; found by themselves when not given.

        Raises:
            ValueError: layers that do not exist or cannot be found.
        """
        return [
            pair
            for coefficient, name in self.terms
            for pair in make_pairs(KINDS[name], teacher, student, example, strength * coefficient, inside)
        ]

    def hint_pairs(
        self, teacher: nn.Module, student: nn.Module, example: Tensor, strength: float, inside: Layers | None = None
    ) -> list[Pair]:
        """The one pair of the hint stage, with λ times ``strength``, in the middle of both networks."""
        pairs = make_pairs(KINDS["fitnet"], teacher, student, example, strength, inside)
        return [pairs[(len(pairs) - 1) // 2]]


Layers = Sequence[tuple[str, str]]


def make_pairs(
    kind: Kind, teacher: nn.Module, student: nn.Module, example: Tensor, strength: float, inside: Layers | None
) -> list[Pair]:
    """The pairs of one term, with λ times ``strength``."""
    if kind.teacher == "inside":
        found = inside or find_layers(teacher, student, example)
    else:
        pick = penultimate_layer if kind.student == "penultimate" else logits_layer
        found = [(logits_layer(teacher, example), pick(student, example))]
    weight = strength * kind.weight
    if not kind.per_element:
        return [Pair(t, s, weight, kind.transfer) for t, s in found]
    taught = layer_outputs("teacher", teacher, example[:1], [t for t, _ in found])
    return [Pair(t, s, weight / taught[t].numel(), kind.transfer) for t, s in found]


def find_layers(teacher: nn.Module, student: nn.Module, example: Tensor) -> Layers:
    """Pairs of layers inside that stand for both networks; see :mod:`models.networks.stages`."""
    return match_layers(intermediate_layers(teacher, example), intermediate_layers(student, example))


def few_layers(method: Method, teacher: nn.Module, student: nn.Module, example: Tensor) -> str | None:
    """One line for the user where a term that looks inside finds a single pair of maps by itself; else ``None``.

    Raises:
        ValueError: see :func:`find_layers`.
    """
    if not method.stages and not any(KINDS[name].teacher == "inside" for _, name in method.terms):
        return None
    pairs = find_layers(teacher, student, example)
    maps = any(layer.size for network in (teacher, student) for layer in intermediate_layers(network, example))
    if len(pairs) > 1 or not maps:
        return None
    ((taught, learned),) = pairs
    return f"only one pair of layers was found, {taught} of the teacher and {learned} of the student: name more with `pairs`"


def read_coefficient(text: str) -> float:
    """A positive number, from ``text``.

    Raises:
        UserError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"coefficient {text!r} of a method must be a positive number")
    return value
