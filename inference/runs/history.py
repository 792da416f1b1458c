"""Curves of a run's TensorBoard logs."""

from __future__ import annotations

from collections.abc import Sequence

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.runs.folder import RunFolder

History = dict[str, dict[str, tuple[list[float], list[float]]]]


def read_history(run: RunFolder, stages: Sequence[str]) -> History:
    """Scalars of the TensorBoard logs of these ``stages``: stage -> name -> (steps, values); a resumed stage continues its
    own curve."""
    history: History = {}
    for stage in stages:
        curves: dict[str, dict[int, float]] = {}
        for folder in sorted({file.parent for file in (run.path / "logs" / stage).glob("**/events.*")}):
            log = EventAccumulator(str(folder)).Reload()
            for name in log.Tags()["scalars"]:
                curves.setdefault(name, {}).update({event.step: event.value for event in log.Scalars(name)})
        history[stage] = {name: (sorted(c), [c[step] for step in sorted(c)]) for name, c in curves.items()}
    return history
