"""How often two sides as far apart come about where their rows are dealt out by chance.

A permutation test (Fisher, The Design of Experiments, 1935, section 21) on counts by bins. Axes: K bins, D deals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DEALS = 999

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From counts `(..., K)` of both sides to how far apart they are."""


def chance_of(
    reference: np.ndarray,
    live: np.ndarray,
    *,
    random: np.random.Generator,
    statistic: Statistic,
    deals: int = DEALS,
) -> float:
    """How often sides as far apart come about where the rows of both counts `(K,)` are dealt out by chance."""
    pooled = reference + live
    dealt = random.multivariate_hypergeometric(pooled, int(live.sum()), size=deals, method="marginals")
    found = statistic(pooled - dealt, dealt)
    return float((1 + (found >= statistic(reference, live) - 1e-12).sum()) / (1 + deals))


def stability_index(reference: np.ndarray, live: np.ndarray) -> np.ndarray:
    """The PSI of counts `(..., K)`, half a row added to each bin: 0 for equal shares, above 0.25 for a large shift."""
    shares = [
        (counts + 0.5) / (counts.sum(axis=-1, keepdims=True) + 0.5 * counts.shape[-1]) for counts in (reference, live)
    ]
    return ((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum(axis=-1)
