"""Are new rows like those that a model was tested on? Whether a shift was detected, how large, what would be missed.

Rows are counted by bins: of their length, of the probabilities that they get, of their labels (Lipton, Wang and Smola
2018, Detecting and Correcting for Label Shift with Black Box Predictors, section 4; Rabanser et al. 2019). Each feature
is tested by dealing the rows of both sides out anew; all of them together after Holm. That nothing was detected never
means that the rows come from the same source: `smallest` says what these rows could have shown.

Axes: K bins, D deals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from tagsmith.evaluation.comparison import holm
from tagsmith.evaluation.permutation import chance_of

ALPHA, POWER = 0.05, 0.8
_DEALS = 4999
_BINS = 10
MOST_LABELS = 20
"""With more labels the probability of each is not tested by itself."""


@dataclass(frozen=True)
class Counted:
    """One feature: counts `(K,)` of the rows tested on, and of the new ones; `ordered` where its bins are numbers."""

    name: str
    reference: np.ndarray
    live: np.ndarray
    ordered: bool = True


def detect_shift(features: Sequence[Counted], *, seed: int, independent: float = 1.0) -> dict[str, Any]:
    """The key `shift` of report.json.

    `independent` is the share of the reference rows that count: near twins count once. New rows should be one of each
    group. The distance of a feature is the largest share of rows that lies differently at any one point, or of any one
    label.
    """
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for each in features:
        reference = np.floor(each.reference * independent + 0.5).astype(np.int64)
        apart = _cumulated if each.ordered else _one_share
        p_value = chance_of(reference, each.live, random=rng, statistic=apart, deals=_DEALS)
        found.append({"name": each.name, "distance": float(apart(reference, each.live)), "p": p_value})
    for each, p_value in zip(found, holm([each.pop("p") for each in found]), strict=True):
        each |= {"p_holm": p_value, "detected": p_value <= ALPHA}
    rows, tested = int(features[0].live.sum()), int(features[0].reference.sum())
    smallest = smallest_shift(max(1, round(tested * independent)), rows, tests=len(features))
    found.sort(key=lambda each: (each["p_holm"], -each["distance"]))
    return {
        "detected": any(each["detected"] for each in found),
        "alpha": ALPHA,
        "power": POWER,
        "rows": rows,
        "reference_rows": tested,
        "smallest": smallest,
        "features": found,
        "text": _told(found, rows, tested, smallest),
    }


def _told(found: Sequence[Mapping[str, Any]], rows: int, tested: int, smallest: float) -> str:
    limit = f"One that moves {smallest:.0%} of the rows past some point would be seen with {POWER:.0%} power."
    shifted = [each for each in found if each["detected"]]
    if not shifted:
        return f"No shift was detected between these {rows:,} rows and the {tested:,} tested on. {limit}"
    names = ", ".join(f"{each['name']} ({each['distance']:.0%} of the rows)" for each in shifted[:4])
    more = f" and {len(shifted) - 4} more" if len(shifted) > 4 else ""
    return f"A shift was detected against the {tested:,} rows tested on: {names}{more}. {limit}"


def smallest_shift(reference: int, live: int, *, tests: int) -> float:
    """The share of rows that must move for it to be detected with 80 % power, by this many rows on both sides.

    The difference of two shares near one half, the hardest to see, at a level divided by the number of tests.
    """
    normal = NormalDist()
    error = 0.5 * np.sqrt(1 / max(reference, 1) + 1 / max(live, 1))
    return float(min(1.0, (normal.inv_cdf(1 - ALPHA / tests / 2) + normal.inv_cdf(POWER)) * error))


def counted_numbers(name: str, reference: np.ndarray, live: np.ndarray) -> Counted:
    """Numbers of both sides in bins with equally many of the reference each, fewer where many are equal."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1], method="lower"))
    before, after = (
        np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (reference, live)
    )
    return Counted(name, before, after)


# --- distances


def _cumulated(reference: np.ndarray, live: np.ndarray) -> np.ndarray:
    """The largest difference of the cumulated shares (Kolmogorov and Smirnov)."""
    return np.abs(np.cumsum(_shares(reference) - _shares(live), axis=-1)).max(axis=-1)


def _one_share(reference: np.ndarray, live: np.ndarray) -> np.ndarray:
    """The largest difference of the shares of any one label."""
    return np.abs(_shares(reference) - _shares(live)).max(axis=-1)


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
