"""Answering only where it is sure enough: what is gained, and a bound on the errors that holds.

A classifier is sure of a text by the ratio of its likeliest label's probability to the next one's. One temperature
raises all ratios to the same power, so that which rows are answered does not depend on its fit, and a bound that was
certified for ratios holds for calibrated probabilities too.

Axes: N rows, C labels, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.errors import SettingError

DELTA = 0.05
"""The chance that a certified bound does not hold."""
_POINTS = 100
_STEP = 0.025
_SPARE = 1.25


def surety(probs: np.ndarray) -> np.ndarray:
    """How sure answers are `(N,)`: the log of the ratio of the two likeliest labels of `probs (N, C)`."""
    if probs.shape[1] < 2:
        return np.full(len(probs), np.inf)
    second, first = np.partition(probs, -2, axis=1)[:, -2:].T
    with np.errstate(divide="ignore"):
        return np.log(first) - np.log(second)


# --- what abstaining would gain


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """The error among the surest rows, for every share of them: at most 100 points, and the area below all of them.

    `risk_coverage` has pairs of coverage and error. Rows with equal `confidence (N,)` are answered together. The area
    is the mean error over all coverages (AURC; Geifman, Uziel and El-Yaniv 2019): the smaller the better.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered, wrong = confidence[order], np.cumsum(~right[order])
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    coverage, error = (ends + 1) / len(order), wrong[ends] / (ends + 1)
    area = float((error * np.diff(np.append(0.0, coverage))).sum())
    chosen = np.unique(np.linspace(0, len(ends) - 1, min(_POINTS, len(ends))).round().astype(int))
    points = [[float(coverage[i]), float(error[i])] for i in chosen]
    return {"risk_coverage": points, "area": area}


# --- a bound that holds


@dataclass(frozen=True)
class Certificate:
    """From which surety on rows are answered, and what is known of them with a confidence of 95 %.

    `coverage` is the share of calibration rows that are answered, one row a group; of `answered` rows `wrong` were
    wrong, and `bound` is what the error of such answers does not exceed. `requested` is what was asked for.
    """

    surety: float
    requested: dict[str, float]
    coverage: float
    rows: int
    answered: int
    wrong: int
    bound: float
    exact: bool = True

    @property
    def guarantee(self) -> str:
        """What holds, in a sentence."""
        if not self.exact:
            return (
                f"Approximate, no finite-sample guarantee: of {self.answered} validation rows that were answered "
                f"{self.wrong} were wrong, and these rows chose the model's step too."
            )
        return (
            f"With a confidence of {100 * (1 - DELTA):.0f} %, at most {100 * self.bound:.2g} % of the answers are "
            f"wrong, for rows of the same source in the same proportions ({self.wrong} of {self.answered} answered "
            "calibration rows were; one row of each group of near duplicates counts)."
        )

    def as_dict(self) -> dict[str, Any]:
        """What report.json says of it."""
        return {
            "requested": self.requested,
            "ratio": math.exp(min(self.surety, 700.0)),
            "guarantee": self.guarantee,
            "delta": DELTA,
            "calibration": {
                "rows": self.rows,
                "answered": self.answered,
                "wrong": self.wrong,
                "coverage": self.coverage,
                "bound": self.bound,
            },
        }


def rows_needed(max_error: float, *, delta: float = DELTA) -> int:
    """How many answered rows without an error prove that at most `max_error` of them are wrong."""
    return math.ceil(math.log(delta) / math.log1p(-max_error))


def first_rows(groups: np.ndarray) -> np.ndarray:
    """The place of the first row of each group: rows that are independent."""
    return np.sort(np.unique(groups, return_index=True)[1])


def certify_error(
    sure: np.ndarray, right: np.ndarray, *, max_error: float, beforehand: np.ndarray, exact: bool = True
) -> Certificate:
    """The most answers with an error of at most `max_error`, proven on calibration rows that are independent.

    Fixed-sequence testing (Angelopoulos et al. 2021, Learn then Test, section 3): thresholds on the surety come from
    `beforehand`, sureties of other rows, from the strictest on; each is tested by the binomial chance of so few errors
    among the calibration rows that it answers, and the first that is not proven ends the sequence, so that all of them
    together are wrong with a chance of 5 % at most. SettingError where the rows cannot prove it.
    """
    needed = rows_needed(max_error)
    start = _SPARE * needed / max(len(sure), 1)
    levels = np.unique(np.append(np.arange(min(start, 1.0), 1.0, _STEP), 1.0))
    thresholds = [
        0.0 if coverage == 1.0 else float(np.quantile(beforehand, 1 - coverage, method="lower")) for coverage in levels
    ]
    proven = first_proven(sure, right, thresholds, error=max_error, delta=DELTA)
    if proven is None:
        raise SettingError(_unproven(sure, right, max_error, needed))
    return Certificate(
        proven.threshold,
        {"max_error": max_error},
        proven.rows / len(sure),
        len(sure),
        proven.rows,
        proven.wrong,
        max_error,
        exact=exact,
    )


@dataclass(frozen=True)
class Proven:
    """The last threshold of a sequence that was proven, and the rows that it answers."""

    threshold: float
    rows: int
    wrong: int


def first_proven(
    scores: np.ndarray, right: np.ndarray, thresholds: Sequence[float], *, error: float, delta: float
) -> Proven | None:
    """The loosest of `thresholds`, in falling order, down to which all are proven to err at most by `error`.

    Fixed-sequence testing: no more than one in 1 / `delta` such sequences proves too much. None where not even the
    first is proven.
    """
    from scipy.stats import binom

    proven = None
    for threshold in thresholds:
        kept = scores >= threshold
        rows, wrong = int(kept.sum()), int((~right[kept]).sum())
        if float(binom.cdf(wrong, rows, error)) > delta:
            return proven
        proven = Proven(threshold, rows, wrong)
    return proven


def _unproven(sure: np.ndarray, right: np.ndarray, max_error: float, needed: int) -> str:
    asked = f"evaluation.max_error is {max_error:g}, which the calibration rows cannot prove: it needs {needed}"
    if len(sure) < needed:
        return (
            f"{asked} answered rows without an error, and there are {len(sure)} (one of each group of near "
            "duplicates). Give more rows, a larger data.validation_share, or a larger evaluation.max_error."
        )
    surest = np.argsort(-sure, kind="stable")[: math.ceil(_SPARE * needed)]
    wrong = int((~right[surest]).sum())
    return (
        f"{asked} answered rows without an error, or more with a few, and of the surest {len(surest)} of {len(sure)} "
        f"{wrong} are wrong. Ask for a larger evaluation.max_error, or for evaluation.coverage."
    )


def certify_coverage(sure: np.ndarray, right: np.ndarray, *, coverage: float, exact: bool = True) -> Certificate:
    """The surest `coverage` of the calibration rows, and the error that their answers do not exceed.

    The threshold is a quantile of the sureties alone; given it, errors among the answered are binomial, and the bound
    is that of Clopper and Pearson, one-sided.
    """
    from scipy.stats import beta

    threshold = float(np.quantile(sure, 1 - coverage, method="lower")) if coverage < 1 else 0.0
    answered = sure >= threshold
    rows, wrong = int(answered.sum()), int((~right[answered]).sum())
    bound = 1.0 if wrong >= rows else float(beta.ppf(1 - DELTA, wrong + 1, rows - wrong))
    return Certificate(threshold, {"coverage": coverage}, rows / len(sure), len(sure), rows, wrong, bound, exact=exact)


def answered(probs: np.ndarray, sureties: np.ndarray) -> np.ndarray:
    """Which rows `(N,)` are answered, where each label `(C,)` asks for a surety of its own."""
    asked = sureties[probs.argmax(axis=1)]
    return (surety(probs) >= asked) & (asked < np.inf)
