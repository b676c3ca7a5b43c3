"""Scores at other shares of labels than the test rows have: what a balanced test says of real traffic.

Axes: N rows, C labels, U units, B resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tagsmith.evaluation.proportions import Interval
from tagsmith.evaluation.resampling import bca, block_sums, resampled_sums
from tagsmith.labels import Labels

APART = 0.02
"""By so much in total the shares of the test rows differ from the prior before a report speaks of it."""
_MOST_LABELS = 30


def scores_at_prior(
    truth: np.ndarray,
    guess: np.ndarray,
    groups: np.ndarray,
    *,
    labels: Labels,
    prior: np.ndarray,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Accuracy, and with up to 30 labels their precision, where labels have the shares `prior (C,)`.

    Each label's rows count by its new share over its old one, which assumes that texts of a label are as they are
    here. BCa intervals over groups. None where the shares are the same within two points, or a label with a share has
    no test rows.
    """
    classes = len(labels)
    support = np.bincount(truth, minlength=classes)
    shares = support / len(truth)
    if np.abs(shares - prior).sum() / 2 < APART or (support[prior > 0] == 0).any() or classes > _MOST_LABELS:
        return None
    cells = np.zeros((len(truth), classes * classes))
    cells[np.arange(len(truth)), truth * classes + guess] = 1
    sums = block_sums(cells, groups, seed=seed)
    whole, draws = sums.sum(axis=0), resampled_sums(sums, resamples=resamples, seed=seed)

    def interval(values: np.ndarray, drawn: np.ndarray, left: np.ndarray) -> dict[str, float | None]:
        value = float(values[0])
        low, high = bca(drawn, value, left, np.ones(len(left)))
        return Interval(value, max(0.0, min(low, value)), min(1.0, max(high, value))).as_dict()

    measured = [_rates(each.reshape(-1, classes, classes), prior) for each in (whole[None], draws, whole - sums)]
    return {
        "shares": dict(zip(labels.names, prior.tolist(), strict=True)),
        "accuracy": interval(*(each.trace(axis1=1, axis2=2) for each in measured)),
        "per_label": [
            {"label": name, "precision": interval(*(_precision(each, i) for each in measured))}
            for i, name in enumerate(labels.names)
        ],
    }


def _rates(counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Shares of all texts `(B, C, C)` by truth and answer, at the prior."""
    return prior[:, None] * counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)


def _precision(rates: np.ndarray, label: int) -> np.ndarray:
    return rates[:, label, label] / np.maximum(rates[:, :, label].sum(axis=1), 1e-12)
