"""Losses of probabilities: the log loss and the Brier score, with intervals over groups.

Axes: N rows, C labels, U units (groups or blocks of groups), B resamples.
"""

from __future__ import annotations

import numpy as np

from tagsmith.evaluation.proportions import Interval
from tagsmith.evaluation.resampling import LEVEL, block_sums, resampled_sums

_ENDS = (1 - LEVEL) / 2, (1 + LEVEL) / 2


def log_loss(truth: np.ndarray, probs: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mean negative log probability of the truth in nats, clipped as scikit-learn's, with its interval."""
    return mean_interval(row_losses(truth, probs), groups, resamples=resamples, seed=seed)


def mean_interval(values: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mean of `values (N,)`, none below 0, with a studentized bootstrap interval over groups.

    Each resample's distance from the mean is taken in its own standard errors (Efron and Tibshirani 1993, chapter 12),
    since the few large losses that move the mean widen it too; docs/benchmarks/evaluation.md has how often such
    intervals hold the truth.
    """
    sums_U2 = block_sums(np.stack([values, np.ones(len(values))], axis=1), groups, seed=seed)
    moments_U5 = np.column_stack([sums_U2, sums_U2[:, 0] ** 2, sums_U2.prod(axis=1), sums_U2[:, 1] ** 2])
    value = float(values.mean())
    reach = float(_mean_and_error(moments_U5.sum(axis=0)[None])[1][0])
    draws_B, errors_B = _mean_and_error(resampled_sums(moments_U5, resamples=resamples, seed=seed))
    distances_B = (draws_B - value) / np.maximum(errors_B, 1e-12)
    distances_B[errors_B <= 1e-12] = 0.0  # one unit drawn again and again tells nothing
    below, above = (float(each) for each in np.quantile(distances_B, _ENDS, method="weibull"))
    return Interval(value, max(0.0, min(value - above * reach, value)), max(value - below * reach, value))


def _mean_and_error(moments_B5: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means `(B,)` and their standard errors: of sums, sizes, and the sums of their squares and products."""
    sums, sizes, squares, products, sizes_squared = moments_B5.T
    means = sums / sizes
    return means, np.sqrt(np.maximum(squares - 2 * means * products + means**2 * sizes_squared, 0.0)) / sizes


def row_losses(truth: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The negative log probability of the truth `(N,)`, probabilities clipped to one step of float64 from 0 and 1."""
    least = np.finfo(np.float64).eps
    return -np.log(np.clip(probs[np.arange(len(truth)), truth].astype(np.float64), least, 1 - least))


def brier(truth: np.ndarray, probs: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mean squared distance of `probs (N, C)` from the truth; of two labels half of it, as scikit-learn has it."""
    return mean_interval(row_briers(truth, probs), groups, resamples=resamples, seed=seed)


def row_briers(truth: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The Brier score of each row `(N,)` (Brier 1950), halved where there are two labels."""
    probs_NC = probs.astype(np.float64)
    squares = (probs_NC**2).sum(axis=1) - 2 * probs_NC[np.arange(len(truth)), truth] + 1
    return np.maximum(squares, 0) / (2 if probs.shape[1] == 2 else 1)
