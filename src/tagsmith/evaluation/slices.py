"""Accuracy of parts of the test rows: by label, length, language, time, source.

Some part always looks bad by chance: shares are shrunk towards that of all rows, and p-values corrected for their
number.

Axes: N rows, S slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tagsmith.evaluation.comparison import holm
from tagsmith.evaluation.proportions import proportion

FEWEST = 30
"""A slice with fewer rows is left out."""
MOST = 60
"""Of each kind of slice, so many of the largest at most."""


def slices_of(
    right: np.ndarray, groups: np.ndarray, facets: Mapping[str, Sequence[str | None]]
) -> list[dict[str, Any]]:
    """One entry for each value of each facet with 30 rows or more: by and value, n, accuracy, shrunk, p_holm.

    `right (N,)` bool are the rows answered rightly; a facet gives a value for each row, None for none. `shrunk` is the
    accuracy drawn towards that of all rows, the more the fewer rows it rests on and the less slices of its kind differ
    (beta-binomial, moments). `p_holm` tests whether the slice differs from the rows outside it, by hypergeometric
    chances where each group counts as one row, corrected after Holm (1979) for all slices.
    """
    found = []
    for by, values in facets.items():
        found += _slices_of_one(by, np.array([value or "" for value in values], dtype=object), right, groups)
    for each, p in zip(found, holm([each.pop("p") for each in found]), strict=True):
        each["p_holm"] = p
    return found


def _slices_of_one(by: str, values: np.ndarray, right: np.ndarray, groups: np.ndarray) -> list[dict[str, Any]]:
    names, index, sizes = np.unique(values, return_inverse=True, return_counts=True)
    kept = [i for i in np.argsort(-sizes, kind="stable")[:MOST] if sizes[i] >= FEWEST and sizes[i] < len(values)]
    kept = [int(i) for i in kept if names[i] != ""]
    if not kept:
        return []
    hits = np.bincount(index, weights=right)
    strength = _strength(hits[kept], sizes[kept])
    mean = float(right.mean())
    share_of_group = _share_of_group(groups)
    found = []
    for i in sorted(kept):
        own = index == i
        found.append(
            {
                "by": by,
                "value": str(names[i]),
                "n": int(sizes[i]),
                "accuracy": proportion(right[own], groups[own]).as_dict(),
                "shrunk": float((hits[i] + strength * mean) / (sizes[i] + strength)) if np.isfinite(strength) else mean,
                "p": _p_apart(right, own, share_of_group),
            }
        )
    return found


def _strength(hits: np.ndarray, sizes: np.ndarray) -> float:
    """By how many rows of the common share each slice is drawn; infinite where slices differ no more than by chance.

    Moments of a beta-binomial (Kleinman 1973): the spread of the shares beyond that of chance.
    """
    share = hits.sum() / sizes.sum()
    chance = share * (1 - share)
    if len(hits) < 2 or chance <= 0:
        return np.inf
    weights = sizes / sizes.sum()
    between = (weights * (hits / sizes - share) ** 2).sum()
    expected = chance * (weights * (1 - weights) / sizes).sum()
    beyond = (between - expected) / (
        chance * ((weights * (1 - weights)).sum() - (weights * (1 - weights) / sizes).sum())
    )
    return float(1 / beyond - 1) if beyond > 1e-9 else np.inf


def _share_of_group(groups: np.ndarray) -> np.ndarray:
    """What each row `(N,)` is of its group, so that a group counts as one row."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return 1 / sizes[index]


def _p_apart(right: np.ndarray, own: np.ndarray, weights: np.ndarray) -> float:
    """The two-sided chance that as many of all wrong answers fall into a slice, each group counted once."""
    from scipy.stats import hypergeom

    rows, inside = round(weights.sum()), max(1, round(weights[own].sum()))
    wrong, wrong_inside = round(weights[~right].sum()), round(weights[own & ~right].sum())
    chance = hypergeom(max(rows, inside), min(wrong, rows), inside)
    return float(min(1.0, 2 * min(chance.cdf(wrong_inside), chance.sf(wrong_inside - 1))))
