"""Labels that may be wrong: confident learning on what other rows say of each row.

Northcutt, Jiang and Chuang (2021), Confident Learning, sections 3.1 and 3.2. How many labels are wrong comes from the
confident joint of the first round. Which ones: probes are fitted again without the rows that disagree, so that wrong
labels no longer speak for themselves, and the rows least supported then come first.

Axes: N rows, C labels, K cells (a row, or a row and one of its possible labels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ROUNDS = 3
_FEWEST_KEPT = 0.5
"""Of each label so many of its rows stay in a further round at least."""

OutOfFold = Callable[[np.ndarray | None], np.ndarray]
"""From the rows `(N,)` bool that may be learnt from (None for all) to probabilities `(N, C)`, each of a row unseen."""


@dataclass(frozen=True)
class Audit:
    """Rows whose label may be wrong, the likeliest first.

    `places (S,)` are positions among the audited rows; `suggested (S,)` is the id of the label that the other rows
    speak for, or `(S, C)` bool where a text may have several; `confidence (S,)` how much they do. `rows` were audited.
    """

    rows: int
    places: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray

    @property
    def share(self) -> float:
        """The share of rows whose label may be wrong."""
        return len(self.places) / self.rows if self.rows else 0.0


def audit(given: np.ndarray, out_of_fold: OutOfFold) -> Audit:
    """Audit labels `given (N,)`, or `(N, C)` bool where a text may have several."""
    find = _audit_sets if given.ndim > 1 else _audit_single
    return find(given, out_of_fold)


def _audit_single(given_N: np.ndarray, out_of_fold: OutOfFold) -> Audit:
    probs_NC = first_NC = out_of_fold(None)
    for _ in range(ROUNDS - 1):
        probs_NC = out_of_fold(_agreeing(probs_NC, given_N))
    own_N = probs_NC[np.arange(len(given_N)), given_N]
    suggested_N = probs_NC.argmax(axis=1)
    order = np.argsort(own_N, kind="stable")
    order = order[suggested_N[order] != given_N[order]][: expected_errors(first_NC, given_N)]
    return Audit(len(given_N), order, suggested_N[order], probs_NC[order, suggested_N[order]])


def _audit_sets(given_NC: np.ndarray, out_of_fold: OutOfFold) -> Audit:
    """Each label is a question of yes and no; a row is suspected for its least supported decision."""
    probs_NC = first_NC = out_of_fold(None)
    for _ in range(ROUNDS - 1):
        agreeing_N = ((probs_NC >= _HALF) == given_NC).all(axis=1)
        agreeing_N[_best_half(np.where(given_NC, probs_NC, 1 - probs_NC).min(axis=1))] = True
        probs_NC = out_of_fold(agreeing_N)
    support_NC = np.where(given_NC, probs_NC, 1 - probs_NC)
    suspected_NC = np.zeros_like(given_NC)
    for label in range(given_NC.shape[1]):
        sides_N2 = np.stack([1 - first_NC[:, label], first_NC[:, label]], axis=1)
        order = np.argsort(support_NC[:, label], kind="stable")
        order = order[support_NC[order, label] < _HALF]
        suspected_NC[order[: expected_errors(sides_N2, given_NC[:, label].astype(int))], label] = True
    surety_N = np.where(suspected_NC, 1 - support_NC, 0.0).max(axis=1)
    places = np.argsort(-surety_N, kind="stable")[: int(suspected_NC.any(axis=1).sum())]
    return Audit(len(given_NC), places, (given_NC ^ suspected_NC)[places], surety_N[places])


_HALF = 0.5


def confident_joint(probs_NC: np.ndarray, given_N: np.ndarray) -> np.ndarray:
    """Counts `(C, C)` of rows by the given label and the one they confidently belong to (equations 1 to 3).

    A row belongs to the likeliest of those labels whose probability reaches the mean that rows of that label get.
    Rows that reach none are left out; each label's counts are then scaled to its number of rows.
    """
    classes = probs_NC.shape[1]
    sizes = np.bincount(given_N, minlength=classes)
    sums_C = np.bincount(given_N, weights=probs_NC[np.arange(len(given_N)), given_N], minlength=classes)
    usual_C = np.where(sizes > 0, sums_C / np.maximum(sizes, 1), np.inf)
    reaching_NC = np.where(probs_NC >= usual_C - 1e-6, probs_NC, -1.0)
    belongs_N, counted = reaching_NC.argmax(axis=1), reaching_NC.max(axis=1) >= 0
    counts = np.zeros((classes, classes))
    np.add.at(counts, (given_N[counted], belongs_N[counted]), 1)
    empty = counts.sum(axis=1) == 0
    counts[empty, empty] = 1  # nothing is known against such a label
    return counts / counts.sum(axis=1, keepdims=True) * sizes[:, None]


def expected_errors(probs_NC: np.ndarray, given_N: np.ndarray) -> int:
    """How many labels are wrong, by the confident joint."""
    joint = confident_joint(probs_NC, given_N)
    return round(joint.sum() - np.trace(joint))


def _agreeing(probs_NC: np.ndarray, given_N: np.ndarray) -> np.ndarray:
    """The rows `(N,)` bool whose label is the likeliest, and of each label its best supported half at least."""
    own_N = probs_NC[np.arange(len(given_N)), given_N]
    kept_N = probs_NC.argmax(axis=1) == given_N
    for label in np.unique(given_N):
        rows = np.flatnonzero(given_N == label)
        kept_N[rows[_best_half(own_N[rows])]] = True
    return kept_N


def _best_half(support_N: np.ndarray) -> np.ndarray:
    """Places of the better supported half, rounded up."""
    return np.argsort(-support_N, kind="stable")[: int(np.ceil(_FEWEST_KEPT * len(support_N)))]
