"""What a student's training depends on, apart from its data and method."""

from __future__ import annotations

from dataclasses import dataclass

from inference.runs.updates import Schedule
from inference.vid.options import Size, VidOptions


@dataclass(frozen=True)
class StudentSettings:
    """How students train.

    Attributes:
        schedule: updates, batch and rates.
        augment: whether images are augmented.
        heteroscedastic: whether the decoders' σ depends on the student's features.
        temperature: T of KD and LwF; each one's own when ``None``.
        pairs: (teacher's layer, student's layer) of terms that look inside; found by themselves when ``None``.
    """

    schedule: Schedule
    augment: bool = True
    heteroscedastic: bool = False
    temperature: float | None = None
    pairs: tuple[tuple[str, str], ...] | None = None

    @classmethod
    def of(cls, options: VidOptions) -> StudentSettings:
        """The students' part of a run's options."""
        schedule = Schedule(options.updates, options.batch, options.learning_rate, options.weight_decay)
        pairs = None if options.layer_pairs is None else tuple(options.layer_pairs)
        return cls(schedule, options.augment, options.heteroscedastic, options.temperature, pairs)


def stage_name(method: str, size: Size) -> str:
    """Start of the names of a student's checkpoints and logs, of this ``method``; no file system minds it."""
    return f"{method.replace('*', 'x')}-{size.name}"
