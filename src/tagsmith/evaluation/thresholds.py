"""From which probability on a label is answered, where a text may have several labels.

Axes: N rows, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEWEST_POSITIVES = 50
"""A label with fewer positive rows shares its threshold; as many rows weigh as much as what a threshold shrinks to."""
EVEN = 0.5
_NEVER, _ALWAYS = 1e-6, 1 - 1e-6


@dataclass(frozen=True)
class Thresholds:
    """A label is answered where its probability is at least its `values (C,)`.

    `shared (C,)` marks labels with too few positive rows for a threshold of their own; `rows` were looked at.
    """

    values: np.ndarray
    shared: np.ndarray
    rows: int


def fit_thresholds(probs: np.ndarray, truth: np.ndarray, *, metric: str) -> Thresholds:
    """Thresholds for `metric` from calibrated `probs (N, C)` and `truth (N, C)` bool of rows that were held out.

    Accuracy asks for the likeliest set of labels, hence for 0.5. Every other metric gets the thresholds of largest F1
    (Lipton, Elkan and Narayanaswamy 2014), which on few positive rows follow chance: a label with under 50 shares one,
    fitted on the cells of all such labels; and each is drawn, in log-odds, towards the threshold of all labels
    together, with the weight that 50 positive rows have against its own.
    """
    classes = truth.shape[1]
    positives_C = truth.sum(axis=0)
    rare_C = positives_C < FEWEST_POSITIVES
    if metric == "accuracy":
        return Thresholds(np.full(classes, EVEN), np.zeros(classes, dtype=bool), len(truth))
    common = _shrunk(probs, truth, towards=EVEN)
    values_C = np.full(classes, _shrunk(probs[:, rare_C], truth[:, rare_C], towards=common))
    for label in np.flatnonzero(~rare_C):
        values_C[label] = _shrunk(probs[:, label], truth[:, label], towards=common)
    return Thresholds(values_C, rare_C, len(truth))


def best_threshold(probs: np.ndarray, truth: np.ndarray) -> float:
    """The threshold of largest F1 on `probs (N,)`, halfway between two; `truth (N,)` bool holds at least once."""
    order = np.argsort(-probs, kind="stable")
    found, hits = probs[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(found) + 1) + hits[-1])
    below = np.append(found[1:], 0.0)
    f1[found == below] = -1.0  # equal probabilities are answered alike
    best = int(f1.argmax())
    return float((found[best] + below[best]) / 2)


def _shrunk(probs: np.ndarray, truth: np.ndarray, *, towards: float) -> float:
    positives = int(truth.sum())
    if not positives:
        return towards
    weight = positives / (positives + FEWEST_POSITIVES)
    own = best_threshold(probs.ravel(), truth.ravel())
    return _chance(weight * _log_odds(own) + (1 - weight) * _log_odds(towards))


def _log_odds(chance: float) -> float:
    inside = min(max(chance, _NEVER), _ALWAYS)
    return float(np.log(inside) - np.log1p(-inside))


def _chance(log_odds: float) -> float:
    return float(1 / (1 + np.exp(-log_odds)))
