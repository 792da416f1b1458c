"""What the checks say of one posterior: a row of the table, a line of verdict, an entry of the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.seeding import seeded
from inference.diagnostics.calibration import Calibration, central_coverage
from inference.diagnostics.nuts import Moments
from inference.diagnostics.regret import Regret
from inference.evaluation.metrics import confidence_interval, predictive_scores
from inference.evaluation.tables import Column, format_table, number
from inference.runs.files import finite

GOOD_K = 0.7
"""Pareto k above which importance weights have no usable variance (Vehtari et al. 2024)."""

GOOD_R_HAT = 1.05
"""r-hat above which chains of a network's outputs have not mixed."""

REPLICATES = 200
"""Sets of labels that tell what calibration error right probabilities have."""


@dataclass(frozen=True)
class Finding:
    """One posterior under all checks; what was not checked is ``None``.

    Attributes:
        name: of the posterior.
        calibration: simulation-based calibration.
        regret: against ``reference``.
        reference: in words.
        losses: −E_q log p(labels given w) + β KL(q ‖ p), nats: ``[tasks]``.
        best_losses: the same of a diagonal Gaussian optimised on each task.
        informed_losses, refined_losses: the same of diagonal Gaussians optimised on each task with the queries' labels known,
            and on the posterior's own predictions of them: see :mod:`inference.diagnostics.gap_bounds`.
        guess: what a posterior that is the prior costs with equal probabilities, nats per task.
        psis_k: ``[tasks]``.
        levels: predictive distribution functions at the true targets, any shape.
        moments: weights beside NUTS's.
        nll: −log predictive density of held-out targets, nats per item.
        probabilities, labels: of held-out items with classes, ``[n, classes]`` and ``[n]``.
        drawn: the probabilities of each posterior draw, ``[draws, n, classes]``, of which ``probabilities`` are the mean.
        r_hat: the largest of held-out predictions, of a sampler's chains.
        kl_inside, kl_outside: predictive KL(NUTS ‖ posterior) between the outermost training inputs, or of held-out items where
            inputs are not one number each, and outside, nats per item.
        width: standard deviation of the predictive over NUTS's, far outside the data.
    """

    name: str
    calibration: Calibration | None = None
    regret: Regret | None = None
    reference: str | None = None
    losses: Tensor | None = None
    best_losses: Tensor | None = None
    informed_losses: Tensor | None = None
    refined_losses: Tensor | None = None
    guess: float | None = None
    psis_k: Tensor | None = None
    levels: Tensor | None = None
    moments: Moments | None = None
    nll: float | None = None
    probabilities: Tensor | None = None
    labels: Tensor | None = None
    drawn: Tensor | None = None
    r_hat: float | None = None
    kl_inside: float | None = None
    kl_outside: float | None = None
    width: float | None = None

    @property
    def gap(self) -> tuple[float, float] | None:
        """Amortization gap, nats per task, with the half-width of its 95 % interval: below 0 where the family is richer."""
        return excess(self.losses, self.best_losses)

    @property
    def largest_gap(self) -> tuple[float, float] | None:
        """Bound on the amortization gap from above, nats per task, with the half-width of its 95 % interval."""
        return excess(self.losses, self.informed_losses)

    @property
    def least_gap(self) -> tuple[float, float] | None:
        """Bound on the amortization gap from below, likewise; below 0 it says nothing."""
        return excess(self.losses, self.refined_losses)

    @property
    def coverage90(self) -> float | None:
        """Share of targets in the central 90 % predictive interval."""
        return None if self.levels is None else central_coverage(self.levels)[0.9]

    @property
    def median_k(self) -> float | None:
        """Median Pareto k over tasks."""
        return None if self.psis_k is None else float(self.psis_k.median())

    @property
    def bad_k(self) -> float | None:
        """Share of tasks with a Pareto k above :data:`GOOD_K`."""
        return None if self.psis_k is None else float((self.psis_k > GOOD_K).double().mean())

    @property
    def ece(self) -> float | None:
        """Expected calibration error of the class probabilities, fraction."""
        if self.probabilities is None or self.labels is None:
            return None
        return predictive_scores(self.probabilities, self.labels)["ece"]

    @property
    def chance_ece(self) -> float | None:
        """What calibration error right probabilities exceed in 5 % of the cases, for it is never 0 on finitely many items.

        By labels drawn from the probabilities, all items' of one posterior draw where these are known: items share its
        weights, so that their errors go together. Seeded.
        """
        if self.probabilities is None:
            return None
        each = self.probabilities[None] if self.drawn is None else self.drawn
        with seeded(0, device=each.device):
            chosen = torch.randint(len(each), (REPLICATES,), device=each.device)
            drawn = torch.stack([torch.distributions.Categorical(each[i]).sample() for i in chosen])
        errors = torch.tensor([predictive_scores(self.probabilities, labels)["ece"] for labels in drawn])
        return float(errors.quantile(0.95))

    @property
    def verdict(self) -> str:
        """One line."""
        parts = []
        if self.calibration is not None:
            parts.append(f"SBC {self.calibration.verdict}")
        if self.regret is not None:
            parts.append(regret_words(self.regret, self.reference or "the reference"))
        if self.losses is not None and self.best_losses is None:
            parts.append(loss_words(float(self.losses.mean()), self.guess))
        if self.gap is not None:
            parts.append(gap_words(*self.gap))
        if self.least_gap is not None and self.largest_gap is not None:
            parts.append(bounds_words(self.least_gap, self.largest_gap))
        if self.bad_k is not None:
            parts.append(f"PSIS k above {GOOD_K} in {self.bad_k:.0%} of the tasks")
        if self.ece is not None:
            parts.append(
                calibration_words(self.ece, self.chance_ece or 0.0, len(self.labels if self.labels is not None else ()))
            )
        if self.coverage90 is not None:
            parts.append(f"90 % intervals hold {self.coverage90:.1%} of the targets")
        if self.kl_inside is not None:
            parts.append(kl_words(self.kl_inside, self.kl_outside, self.width))
        if self.r_hat is not None:
            parts.append(f"chains have {'mixed' if self.r_hat < GOOD_R_HAT else 'not mixed'}, r-hat up to {self.r_hat:.3f}")
        return f"{self.name}: " + "; ".join(parts)

    def row(self) -> dict[str, Any]:
        """For JSON; what is not finite is ``None``."""
        calibration = self.calibration
        found = {
            "name": self.name,
            "sbc_passed": None if calibration is None else calibration.passed,
            "sbc_outside": None if calibration is None else int((~calibration.inside).sum()),
            "sbc_coordinates": None if calibration is None else len(calibration.names),
            "sbc_simulations": None if calibration is None else len(calibration.ranks),
            "sbc_spread": None if calibration is None else calibration.mean_spread,
            "regret": None if self.regret is None else asdict(self.regret),
            "reference": self.reference,
            "loss": None if self.losses is None else float(self.losses.mean()),
            "gap": None if self.gap is None else self.gap[0],
            "gap_ci95": None if self.gap is None else self.gap[1],
            "gap_at_least": None if self.least_gap is None else self.least_gap[0],
            "gap_at_least_ci95": None if self.least_gap is None else self.least_gap[1],
            "gap_at_most": None if self.largest_gap is None else self.largest_gap[0],
            "gap_at_most_ci95": None if self.largest_gap is None else self.largest_gap[1],
            "guess": self.guess,
            "psis_k_median": self.median_k,
            "psis_k_bad": self.bad_k,
            "coverage90": self.coverage90,
            "nll": self.nll,
            "ece": self.ece,
            "ece_by_chance": self.chance_ece,
            "items": None if self.labels is None else len(self.labels),
            "r_hat": self.r_hat,
            "kl_inside": self.kl_inside,
            "kl_outside": self.kl_outside,
            "width": self.width,
            "moments": None if self.moments is None else asdict(self.moments),
            "verdict": self.verdict,
        }
        return finite(found)


def excess(losses: Tensor | None, others: Tensor | None) -> tuple[float, float] | None:
    """By how much ``losses`` are above ``others`` on average over the same tasks, and the half-width of the 95 % interval."""
    if losses is None or others is None:
        return None
    difference = losses.double() - others.double()
    return float(difference.mean()), confidence_interval(difference)


def regret_words(found: Regret, reference: str) -> str:
    """What a regret against ``reference``, in words, says."""
    noise = max(found.ci95, found.error)
    if abs(found.mean) <= noise:
        return f"predicts as well as {reference} (regret {found} nats per query)"
    verb = "costs" if found.mean > 0 else "gains"
    return f"{verb} {found} nats per query against {reference}"


def calibration_words(ece: float, by_chance: float, items: int) -> str:
    """What a calibration error ``ece`` (a fraction) of so many ``items`` says, where right probabilities have up to
    ``by_chance``."""
    said = f"probabilities are off by {100 * ece:.1f} % on average over {items} items"
    if ece <= by_chance:
        return f"{said}, which right ones may be too (up to {100 * by_chance:.1f} %)"
    return f"{said}, where right ones are by {100 * by_chance:.1f} % at most"


def kl_words(inside: float, outside: float | None, width: float | None) -> str:
    """What distances from NUTS say: KL ``inside`` and ``outside`` the data, nats per point, and the ratio of widths."""
    said = f"{inside:.3f} nats per item from NUTS"
    if outside is None or width is None:
        return said
    return f"{said} inside the data, {outside:.2f} outside, with {width:.2f} of its width"


def gap_words(gap: float, ci95: float) -> str:
    """What an amortization gap ± ``ci95``, nats per task, says."""
    if gap < -ci95:
        return f"{-gap:.2f} ± {ci95:.2f} nats per task better than the best diagonal Gaussian"
    return f"{gap:.2f} ± {ci95:.2f} nats per task above a diagonal Gaussian optimised on each task"


def loss_words(loss: float, guess: float | None) -> str:
    """What an objective, ``loss``, says, beside what a ``guess`` costs where that is known; nats."""
    if guess is None:
        return f"costs {loss:.1f} nats per task"
    side = "more" if loss > guess else "less"
    return f"costs {loss:.1f} nats per task, {abs(loss - guess):.1f} {side} than guessing"


def bounds_words(least: tuple[float, float], largest: tuple[float, float]) -> str:
    """What two bounds (``least`` and ``largest``: value and half-width of the interval, nats) say of an amortization gap."""
    above = f"at most {largest[0]:.1f} ± {largest[1]:.1f} (what the queries' labels are worth included)"
    if least[0] - least[1] <= 0:
        return f"amortization gap {above}, and none is seen: optimised on its own predictions {-least[0]:+.1f} ± {least[1]:.1f}"
    return f"amortization gap at least {least[0]:.1f} ± {least[1]:.1f} nats per task, {above}"


def sbc_cell(finding: Finding) -> str:
    """Pass or fail, with how many coordinates fail."""
    if finding.calibration is None:
        return "-"
    inside = finding.calibration.inside
    return "passes" if inside.all() else f"fails {int((~inside).sum())}/{len(inside)}"


def interval_cell(value: tuple[float, float] | None, digits: int) -> str:
    """A mean with the half-width of its interval, to so many ``digits``."""
    return "-" if value is None else f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


COLUMNS = (
    Column("posterior", lambda f: f.name, left=True),
    Column("SBC", sbc_cell),
    Column("regret", lambda f: "-" if f.regret is None else f"{f.regret.mean:.3f} ± {f.regret.ci95:.3f}"),
    Column("loss", lambda f: "-" if f.losses is None else f"{float(f.losses.mean()):.2f}"),
    Column("gap", lambda f: interval_cell(f.gap, 3)),
    Column("gap ≥", lambda f: interval_cell(f.least_gap, 1)),
    Column("gap ≤", lambda f: interval_cell(f.largest_gap, 1)),
    Column("PSIS k", lambda f: number(f.median_k, ".2f")),
    Column("k > 0.7 %", lambda f: number(f.bad_k, ".0f", factor=100)),
    Column("NLL", lambda f: number(f.nll)),
    Column("ECE %", lambda f: number(f.ece, ".1f", factor=100)),
    Column("r-hat", lambda f: number(f.r_hat)),
    Column("KL inside", lambda f: number(f.kl_inside)),
    Column("KL outside", lambda f: number(f.kl_outside, ".2f")),
    Column("width", lambda f: number(f.width, ".2f")),
    Column("in 90 %", lambda f: number(f.coverage90, ".1f", factor=100)),
    Column("shift", lambda f: "-" if f.moments is None else f"{f.moments.shift:.2f}"),
    Column("scale", lambda f: "-" if f.moments is None else f"{f.moments.scale_ratio:.2f}"),
)


NOTES = {
    "SBC": "simulation-based calibration of outputs, log likelihood and, in regression tasks, weights; how many of these fail",
    "regret": "nats per query, ± is a 95 % interval over tasks",
    "loss": "distortion + β · rate, nats per task; distortion of the support in regression, else of the queries",
    "gap": "loss above that of a diagonal Gaussian optimised on each task, nats per task",
    "gap ≥": "bound on the amortization gap, nats per task: loss above that of a Gaussian optimised on its own predictions",
    "gap ≤": "bound on the amortization gap, nats per task: loss above that of a Gaussian that was given the queries' labels",
    "PSIS k": f"median over tasks; above {GOOD_K} the posterior is far from the exact one",
    "NLL": "nats per held-out item, of the saved ones where a run is not sampled anew",
    "r-hat": f"of held-out predictions; up to {GOOD_R_HAT} chains have mixed",
    "KL inside": "predictive KL(NUTS ‖ this), nats per item, between the outermost training inputs (of images: held-out ones)",
    "KL outside": "the same up to two widths of the data beside them",
    "width": "standard deviation of the predictive over NUTS's, two widths of the data outside, the worse side",
    "shift": "of the weights' means from NUTS's, in its standard deviations",
    "scale": "the weights' standard deviations over NUTS's",
}
"""What columns mean, where their title does not say it."""


class Diagnosis(NamedTuple):
    """What was found, and in one line each what was not looked at, why, and which option does it.

    Attributes:
        findings: one per posterior.
        remarks: lines.
    """

    findings: list[Finding]
    remarks: list[str]


def filled_columns(findings: Sequence[Finding]) -> list[Column]:
    """Columns that something was checked for."""
    return [c for c in COLUMNS if any(c.cell(finding) != "-" for finding in findings)]


def format_findings(findings: Sequence[Finding]) -> str:
    """The table, and below it what its columns mean; columns that nothing was checked for are left out."""
    columns = filled_columns(findings)
    meanings = [f"{c.header}: {NOTES[c.header]}" for c in columns if c.header in NOTES]
    return "\n".join([format_table(findings, columns), "", *meanings])
