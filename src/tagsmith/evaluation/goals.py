"""Thresholds that keep a promise: the precision or the recall of each label.

Axes: N rows, C labels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tagsmith.errors import SettingError
from tagsmith.evaluation.abstention import DELTA, first_proven, rows_needed, surety
from tagsmith.labels import Labels

_SPARE = 1.25
_FACTOR = 1.15
_FINE = 0.005


@dataclass(frozen=True)
class Goal:
    """What each label's threshold should reach, such as a precision of at least 0.95."""

    measure: Literal["precision", "recall"]
    least: float

    @classmethod
    def parse(cls, text: str) -> Goal:
        """From `precision>=0.95` or `recall>=0.9`."""
        found = re.fullmatch(r"\s*(precision|recall)\s*>=\s*(\d*\.?\d+)\s*", text)
        if found is None or not 0 < float(found[2]) < 1:
            raise SettingError(
                f"evaluation.threshold_goal is '{text}'. Expected precision>=X or recall>=X with X between 0 and 1, "
                "as in precision>=0.95."
            )
        return cls("precision" if found[1] == "precision" else "recall", float(found[2]))

    def __str__(self) -> str:
        return f"{self.measure}>={self.least:g}"


@dataclass(frozen=True)
class Reached:
    """Thresholds `(C,)` on scores, and for which labels the goal is proven `(C,)`; the rest keep what they had.

    `rows (C,)` are the answers, or for a recall the rows of the label, that it rests on.
    """

    goal: Goal
    values: np.ndarray
    proven: np.ndarray
    rows: np.ndarray
    exact: bool = True

    def as_dict(self, labels: Labels) -> dict[str, Any]:
        """What `calibration.goal` of report.json says of it."""
        unproven = [name for name, proven in zip(labels.names, self.proven, strict=True) if not proven]
        return {
            "goal": str(self.goal),
            "proven": [name for name, proven in zip(labels.names, self.proven, strict=True) if proven],
            "unproven": unproven,
            "rows_needed": rows_needed(1 - self.goal.least, delta=DELTA / len(labels)),
            "guarantee": self._guarantee(),
        }

    def _guarantee(self) -> str:
        count = f"{int(self.proven.sum())} of {len(self.proven)} labels"
        if not self.exact:
            return f"Approximate, no finite-sample guarantee: {self.goal} for {count}, on rows that chose the step too."
        return (
            f"With a confidence of {100 * (1 - DELTA):.0f} % for all of them together, {self.goal} holds for {count}, "
            "for rows of the same source in the same proportions."
        )


def reach_in_sets(
    goal: Goal,
    probs: np.ndarray,
    truth: np.ndarray,
    *,
    beforehand: np.ndarray,
    otherwise: np.ndarray,
    exact: bool = True,
) -> Reached:
    """Thresholds on `probs (N, C)` for which each label has the precision or recall asked for, `truth (N, C)` bool.

    Rows are independent calibration rows; candidates come from `beforehand (M, C)`, probabilities of other rows. The
    labels share the chance of error (Bonferroni). A label for which it cannot be proven keeps `otherwise (C,)`.
    """
    values, rows = otherwise.astype(np.float64).copy(), np.zeros(len(otherwise), dtype=np.int64)
    proven = np.zeros(len(otherwise), dtype=bool)
    for i in range(len(otherwise)):
        find = _precise if goal.measure == "precision" else _complete
        found = find(probs[:, i], truth[:, i], beforehand[:, i], goal.least, delta=DELTA / len(otherwise))
        if found is not None:
            (values[i], rows[i]), proven[i] = found, True
    return Reached(goal, values, proven, rows, exact)


def reach_by_abstaining(
    goal: Goal, probs: np.ndarray, truth: np.ndarray, *, beforehand: np.ndarray, exact: bool = True
) -> Reached:
    """Sureties from which each label is answered, where texts have one: `truth (N,)`, `probs (N, C)`.

    As `reach_in_sets`, for precision alone; a label for which it cannot be proven is never answered.
    """
    if goal.measure == "recall":
        raise SettingError(
            f"evaluation.threshold_goal is '{goal}', and a text has one label here: abstaining can raise the precision "
            "of labels, and not their recall. Expected precision>=X."
        )
    classes, guess, before = probs.shape[1], probs.argmax(axis=1), beforehand.argmax(axis=1)
    values, rows = np.full(classes, math.inf), np.zeros(classes, dtype=np.int64)
    sure, sure_before = surety(probs), surety(beforehand)
    for i in range(classes):
        own = guess == i
        found = _precise(sure[own], truth[own] == i, sure_before[before == i], goal.least, delta=DELTA / classes)
        if found is not None:
            values[i], rows[i] = found
    return Reached(goal, values, np.isfinite(values) | (values == -math.inf), rows, exact)


def _precise(
    scores: np.ndarray, right: np.ndarray, beforehand: np.ndarray, least: float, *, delta: float
) -> tuple[float, int] | None:
    """The smallest threshold with so much precision that is proven, and the rows that it answers."""
    needed = rows_needed(1 - least, delta=delta)
    if len(scores) < needed or not len(beforehand):
        return None
    shares, share = [], min(1.0, _SPARE * needed / len(scores))
    while share < 1:
        shares.append(share)
        share *= _FACTOR
    ordered = np.sort(beforehand)[::-1]
    places = [min(len(ordered) - 1, math.ceil(each * len(ordered)) - 1) for each in (*shares, 1.0)]
    found = first_proven(scores, right, ordered[places].tolist(), error=1 - least, delta=delta)
    return None if found is None else (found.threshold, found.rows)


def _complete(
    scores: np.ndarray, is_true: np.ndarray, beforehand: np.ndarray, least: float, *, delta: float
) -> tuple[float, int] | None:
    """The largest threshold with so much recall that is proven, and the rows of the label."""
    from scipy.stats import binom

    own, best = scores[is_true], None
    if len(own) < rows_needed(1 - least, delta=delta):
        return None
    for candidate in [0.0, *np.quantile(beforehand, np.arange(0, 1, _FINE)).tolist()]:
        missed = int((own < candidate).sum())
        if float(binom.cdf(missed, len(own), 1 - least)) > delta:
            break
        best = candidate
    return None if best is None else (best, len(own))
