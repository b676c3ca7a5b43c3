"""What wrong answers cost, by a matrix of costs, at the shares that labels have where the classifier works.

Axes: N rows, C labels, U units, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagsmith.errors import SettingError
from tagsmith.evaluation.proportions import Interval
from tagsmith.evaluation.resampling import bca, block_sums, resampled_sums
from tagsmith.labels import Labels

PER = 1000
"""Costs are told for so many texts."""


def cost_matrix(costs: Mapping[str, Mapping[str, float]], labels: Labels) -> np.ndarray:
    """Costs `(C, C)` from `costs[truth][answer]`; what is not named costs 1 where it is wrong, and nothing where right.

    SettingError for a label that is none.
    """
    unknown = sorted({name for truth, row in costs.items() for name in (truth, *row)} - set(labels.names))
    if unknown:
        raise SettingError(
            f"evaluation.costs names {unknown[:5]}, and the labels are {list(labels.names[:20])}. Expected labels "
            "only, as in costs = {spam = {ham = 1.0}, ham = {spam = 20.0}}: truth first, then the answer."
        )
    ids = {name: i for i, name in enumerate(labels.names)}
    matrix = 1.0 - np.eye(len(labels))
    for truth, row in costs.items():
        for answer, cost in row.items():
            matrix[ids[truth], ids[answer]] = cost
    return matrix


def expected_cost(
    truth: np.ndarray,
    answers: Mapping[str, np.ndarray],
    groups: np.ndarray,
    *,
    matrix: np.ndarray,
    prior: np.ndarray,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The cost per 1,000 texts of each system's `answers (N,)`, at the shares `prior (C,)` of the labels.

    Each label's mean cost is that of its test rows; labels without any are left out, and the others' shares scaled up.
    Intervals are BCa over groups.
    """
    classes = len(prior)
    support = np.bincount(truth, minlength=classes)
    shares = np.where(support > 0, prior, 0.0)
    shares = shares / shares.sum()
    is_true = truth[:, None] == np.arange(classes)

    def measured(costs: np.ndarray) -> Interval:
        sums = block_sums(np.hstack([is_true * costs[:, None], is_true]), groups, seed=seed)

        def cost(columns: np.ndarray) -> np.ndarray:
            total, rows = np.hsplit(columns, 2)
            return PER * (shares * total / np.maximum(rows, 1)).sum(axis=1)

        value = float(cost(sums.sum(axis=0)[None])[0])
        draws = cost(resampled_sums(sums, resamples=resamples, seed=seed))
        low, high = bca(draws, value, cost(sums.sum(axis=0) - sums), np.ones(len(sums)))
        return Interval(value, min(low, value), max(high, value))

    return {
        "per": PER,
        "prior": {"shares": shares.tolist(), "left_out": np.flatnonzero(support == 0).tolist()},
        "matrix": matrix.tolist(),
        **{name: measured(matrix[truth, guess]).as_dict() for name, guess in answers.items()},
    }


def cheapest_answers(probs: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The answer `(N,)` with the least expected cost by `probs (N, C)` (Elkan 2001, equation 1)."""
    return (probs @ matrix).argmin(axis=1)
