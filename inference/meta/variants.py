"""What tells one model and guide of a run from the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One model and guide of a run.

    Attributes:
        method: a name of :data:`inference.meta.methods.METHODS`.
        predictor: a name of :data:`models.tasks.predictors.PREDICTORS`, or ``module.Class`` of one's own.
        posterior: family of the posterior over a task's weights; ``None`` where nothing is latent.
        beta: β; ``None`` where there is no rate to weigh.
        steps: K.
        reference: whether it stands beside another for comparison and is never chosen, as K = 0 beside K = 3.
        given: options of the method itself that are not as usual, as they stand behind its name: ``size=0.1:first_order``.
    """

    method: str
    predictor: str
    posterior: str | None
    beta: float | None
    steps: int
    reference: bool = False
    given: str = ""

    @property
    def name(self) -> str:
        """Used for files and logs: ``distance-beta0.1-k3``; other methods than SIB, and SIB with options, have their name and
        options in front."""
        parts = [self.method, *self.given.split(":")] if self.given else [] if self.method == "sib" else [self.method]
        rate = self.posterior if self.beta is None else f"beta{short(self.beta)}"
        return "-".join([*parts, self.predictor, *([rate] if rate else []), f"k{self.steps}"])

    @property
    def title(self) -> str:
        """In words, as pictures have it: ``distance, β = 0.1, K = 3``."""
        return titled(self.method, self.predictor, self.posterior, self.beta, self.steps)


def titled(method: str, predictor: str, posterior: str | None, beta: float | None, steps: int) -> str:
    """:attr:`Variant.title` of its attributes ``method``, ``predictor``, ``posterior``, ``beta`` and ``steps``."""
    rate = posterior if beta is None else f"β = {short(beta)}"
    return ", ".join([*([] if method == "sib" else [method]), predictor, *([rate] if rate else []), f"K = {steps}"])


def short(value: float) -> str:
    """A number's text, six digits where they are enough to tell it from all others."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)
