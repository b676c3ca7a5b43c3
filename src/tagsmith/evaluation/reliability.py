"""Whether rows that are claimed with some probability come true that often: the bins of a reliability diagram.

Axes: N claims, U units.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tagsmith.evaluation.calibration_error import BINS, equal_mass_bins
from tagsmith.evaluation.proportions import design_effect

_TAILS = (0.025, 0.975)


def reliability(confidence: np.ndarray, hits: np.ndarray, groups: np.ndarray) -> list[dict[str, Any]]:
    """Up to 15 bins of equal mass over claims: `confidence (N,)` that each holds, and whether it does `hits (N,)`.

    Each has the ends `low` and `high` of its confidences, their mean `confidence`, the share `accuracy` that held, the
    `count`, and the `band` that the accuracy of a calibrated model would lie in, 95 times of 100, bin by bin; claims of
    one group hold or fail together.
    """
    bins, inflation = equal_mass_bins(confidence), design_effect(hits.astype(np.float64), groups)
    found = []
    for number in range(BINS):
        own = bins == number
        if not own.any():
            continue
        mean, count = float(confidence[own].mean()), int(own.sum())
        found.append(
            {
                "low": float(confidence[own].min()),
                "high": float(confidence[own].max()),
                "confidence": mean,
                "accuracy": float(hits[own].mean()),
                "count": count,
                "band": _band(mean, count / inflation),
            }
        )
    return found


def _band(confidence: float, rows: float) -> list[float]:
    from scipy.stats import binom

    whole = max(1, round(rows))
    low, high = (float(binom.ppf(tail, whole, confidence)) / whole for tail in _TAILS)
    return [low, high]
