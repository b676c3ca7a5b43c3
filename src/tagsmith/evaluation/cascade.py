"""A cascade: the cheap baseline answers where it is sure, the LLM the rest.

Axes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.evaluation.comparison import compare_hits
from tagsmith.evaluation.proportions import proportion

_STEP = 0.05


@dataclass(frozen=True)
class Sides:
    """Of each row `(N,)`: how sure the baseline is, and whether the baseline and the LLM answer it rightly."""

    sure: np.ndarray
    right_baseline: np.ndarray
    right_model: np.ndarray

    def right(self, threshold: float) -> np.ndarray:
        """Which rows the cascade answers rightly, the baseline from this surety on."""
        return np.where(self.sure >= threshold, self.right_baseline, self.right_model)


def cascade_of(
    held_out: Sides, test: Sides, groups: np.ndarray, *, held_out_name: str, margin: float
) -> dict[str, Any]:
    """The cascade whose threshold `held_out` rows choose, measured on `test` rows, and points of all others.

    The baseline answers the largest share (in steps of 5 % of the held-out rows) with which no more of them are wrong
    than by the LLM alone. `share` is what the baseline answers, `llm_share` what is left for the LLM.
    """
    levels = np.arange(0, 1 + _STEP / 2, _STEP)
    thresholds = [_threshold(held_out.sure, share) for share in levels]
    alone = held_out.right_model.sum()
    chosen = max((t for t in thresholds if held_out.right(t).sum() >= alone), key=lambda t: -t, default=math.inf)
    on = {"part": held_out_name, "rows": len(held_out.sure)}
    return cascade_at(thresholds, chosen, test, groups, on=on, margin=margin)


def cascade_at(
    thresholds: Sequence[float],
    chosen: float,
    test: Sides,
    groups: np.ndarray,
    *,
    on: Mapping[str, Any],
    margin: float,
) -> dict[str, Any]:
    """The cascade with a threshold that was `chosen` before, `on` which rows, measured on `test` rows."""
    right = test.right(chosen)
    share = float((test.sure >= chosen).mean())
    verdict = compare_hits(right, test.right_model, groups, margin=margin, names=("cascade", "the LLM alone"))
    return {
        "points": [_point(test, threshold) for threshold in dict.fromkeys(thresholds)],
        "chosen": {
            "threshold": _plain(chosen),
            "share": share,
            "llm_share": 1 - share,
            "accuracy": proportion(right, groups).as_dict(),
            "difference": verdict.difference.as_dict(),
            "on": dict(on),
        },
        "text": _told(share, verdict.difference.value, float(right.mean())),
    }


def again(cascade: Mapping[str, Any], test: Sides, groups: np.ndarray, *, margin: float) -> dict[str, Any]:
    """A cascade of an earlier report.json on other rows: same thresholds, same choice."""
    points = [_parsed(point["threshold"], point["share"]) for point in cascade["points"]]
    chosen = cascade["chosen"]
    return cascade_at(
        points, _parsed(chosen["threshold"], chosen["share"]), test, groups, on=chosen["on"], margin=margin
    )


def _parsed(threshold: float | None, share: float) -> float:
    """A threshold of report.json: without one TF-IDF answers either nothing or everything."""
    return threshold if threshold is not None else (math.inf if share <= 0 else -math.inf)


def _threshold(sure: np.ndarray, share: float) -> float:
    """The surety from which on this share of rows is answered, or a little more where many are equally sure."""
    if share <= 0 or not len(sure):
        return math.inf
    return float(np.quantile(sure, 1 - min(share, 1.0), method="lower")) if share < 1 - 1e-9 else -math.inf


def _point(test: Sides, threshold: float) -> dict[str, Any]:
    share = float((test.sure >= threshold).mean())
    accuracy = float(test.right(threshold).mean())
    return {"threshold": _plain(threshold), "share": share, "llm_share": 1 - share, "accuracy": accuracy}


def _plain(threshold: float) -> float | None:
    return threshold if math.isfinite(threshold) else None


def _told(share: float, difference: float, accuracy: float) -> str:
    if share == 0:
        return "On the held-out rows no cascade is as good as the LLM alone: it answers everything."
    return (
        f"TF-IDF answers {100 * share:.0f} % of the texts where it is sure, the LLM the rest: together "
        f"{100 * accuracy:.1f} % are right, {difference:+.1f} points from the LLM alone."
    )
