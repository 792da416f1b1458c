"""What the checks say of one posterior: a row of the table, a line of verdict, an entry of the JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from data.seeding import seeded
from inference.diagnostics.calibration import Calibration, central_coverage
from inference.diagnostics.nuts import Moments
from inference.diagnostics.regret import Regret
from inference.evaluation.metrics import confidence_interval, predictive_scores
from inference.evaluation.tables import Column, format_table, number

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
        psis_k: ``[tasks]``.
        levels: predictive distribution functions at the true targets, any shape.
        moments: weights beside NUTS's.
        nll: −log predictive density of held-out targets, nats per item.
        probabilities, labels: of held-out items with classes, ``[n, classes]`` and ``[n]``.
        drawn: the probabilities of each posterior draw, ``[draws, n, classes]``, of which ``probabilities`` are the mean.
        r_hat: the largest of held-out predictions, of a sampler's chains.
    """

    name: str
    calibration: Calibration | None = None
    regret: Regret | None = None
    reference: str | None = None
    losses: Tensor | None = None
    best_losses: Tensor | None = None
    psis_k: Tensor | None = None
    levels: Tensor | None = None
    moments: Moments | None = None
    nll: float | None = None
    probabilities: Tensor | None = None
    labels: Tensor | None = None
    drawn: Tensor | None = None
    r_hat: float | None = None

    @property
    def gap(self) -> tuple[float, float] | None:
        """Amortization gap, nats per task, with the half-width of its 95 % interval: below 0 where the family is richer."""
        if self.losses is None or self.best_losses is None:
            return None
        difference = (self.losses - self.best_losses).double()
        return float(difference.mean()), confidence_interval(difference)

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
        if self.gap is not None:
            parts.append(gap_words(*self.gap))
        if self.bad_k is not None:
            parts.append(f"PSIS k above {GOOD_K} in {self.bad_k:.0%} of the tasks")
        if self.ece is not None:
            parts.append(
                calibration_words(self.ece, self.chance_ece or 0.0, len(self.labels if self.labels is not None else ()))
            )
        if self.coverage90 is not None:
            parts.append(f"90 % intervals hold {self.coverage90:.1%} of the targets")
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
            "sbc_spread": None if calibration is None else float(calibration.spread.mean()),
            "regret": None if self.regret is None else asdict(self.regret),
            "reference": self.reference,
            "loss": None if self.losses is None else float(self.losses.mean()),
            "gap": None if self.gap is None else self.gap[0],
            "gap_ci95": None if self.gap is None else self.gap[1],
            "psis_k_median": self.median_k,
            "psis_k_bad": self.bad_k,
            "coverage90": self.coverage90,
            "nll": self.nll,
            "ece": self.ece,
            "ece_by_chance": self.chance_ece,
            "items": None if self.labels is None else len(self.labels),
            "r_hat": self.r_hat,
            "moments": None if self.moments is None else asdict(self.moments),
            "verdict": self.verdict,
        }
        return {name: finite(value) for name, value in found.items()}


def finite(value: Any) -> Any:
    """The value, or what it holds by name, with ``None`` for a number that is not finite."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def regret_words(found: Regret, reference: str) -> str:
    """What a regret says."""
    noise = max(found.ci95, found.error)
    if abs(found.mean) <= noise:
        return f"predicts as well as {reference} (regret {found} nats per query)"
    verb = "costs" if found.mean > 0 else "gains"
    return f"{verb} {found} nats per query against {reference}"


def calibration_words(ece: float, by_chance: float, items: int) -> str:
    """What a calibration error says."""
    said = f"probabilities are off by {100 * ece:.1f} % on average over {items} items"
    if ece <= by_chance:
        return f"{said}, which right ones may be too (up to {100 * by_chance:.1f} %)"
    return f"{said}, where right ones are by {100 * by_chance:.1f} % at most"


def gap_words(gap: float, ci95: float) -> str:
    """What an amortization gap says."""
    if gap < -ci95:
        return f"{-gap:.2f} ± {ci95:.2f} nats per task better than the best diagonal Gaussian"
    return f"{gap:.2f} ± {ci95:.2f} nats per task above a diagonal Gaussian optimised on each task"


def sbc_cell(finding: Finding) -> str:
    """Pass or fail, with how many coordinates fail."""
    if finding.calibration is None:
        return "-"
    inside = finding.calibration.inside
    return "passes" if inside.all() else f"fails {int((~inside).sum())}/{len(inside)}"


COLUMNS = (
    Column("posterior", lambda f: f.name, left=True),
    Column("SBC", sbc_cell),
    Column("regret", lambda f: "-" if f.regret is None else f"{f.regret.mean:.3f} ± {f.regret.ci95:.3f}"),
    Column("loss", lambda f: "-" if f.losses is None else f"{float(f.losses.mean()):.2f}"),
    Column("gap", lambda f: "-" if f.gap is None else f"{f.gap[0]:.3f} ± {f.gap[1]:.3f}"),
    Column("PSIS k", lambda f: number(f.median_k, ".2f")),
    Column("k > 0.7 %", lambda f: number(f.bad_k, ".0f", factor=100)),
    Column("NLL", lambda f: number(f.nll)),
    Column("ECE %", lambda f: number(f.ece, ".1f", factor=100)),
    Column("r-hat", lambda f: number(f.r_hat)),
    Column("in 90 %", lambda f: number(f.coverage90, ".1f", factor=100)),
    Column("shift", lambda f: "-" if f.moments is None else f"{f.moments.shift:.2f}"),
    Column("scale", lambda f: "-" if f.moments is None else f"{f.moments.scale_ratio:.2f}"),
)


NOTES = {
    "SBC": "simulation-based calibration of weights, outputs and log likelihood, with the coordinates that fail",
    "regret": "nats per query, ± is a 95 % interval over tasks",
    "loss": "distortion of the support + rate, nats per task",
    "gap": "loss above that of a diagonal Gaussian optimised on each task, nats per task",
    "PSIS k": f"median over tasks; above {GOOD_K} the posterior is far from the exact one",
    "NLL": "nats per held-out item of the saved tasks or items",
    "r-hat": f"of held-out predictions; up to {GOOD_R_HAT} chains have mixed",
    "shift": "of the weights' means from NUTS's, in its standard deviations",
    "scale": "the weights' standard deviations over NUTS's",
}
"""What columns mean, where their title does not say it."""


def filled_columns(findings: Sequence[Finding]) -> list[Column]:
    """Columns that something was checked for."""
    return [c for c in COLUMNS if any(c.cell(finding) != "-" for finding in findings)]


def format_findings(findings: Sequence[Finding]) -> str:
    """The table, and below it what its columns mean; columns that nothing was checked for are left out."""
    columns = filled_columns(findings)
    meanings = [f"{c.header}: {NOTES[c.header]}" for c in columns if c.header in NOTES]
    return "\n".join([format_table(findings, columns), "", *meanings])
