"""Losses of probabilities: the log loss and the Brier score, with intervals over groups.

Axes: N rows, C labels, U units (groups or blocks of groups), B resamples.
"""

from __future__ import annotations

import numpy as np

from tagsmith.evaluation.proportions import Interval
from tagsmith.evaluation.resampling import bca, block_sums, resampled_sums


def log_loss(truth: np.ndarray, probs: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mean negative log probability of the truth in nats, clipped as scikit-learn's, with a BCa interval."""
    return mean_interval(row_losses(truth, probs), groups, resamples=resamples, seed=seed)


def mean_interval(values: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mean of `values (N,)`, none below 0, with a BCa interval over groups."""
    sums_U2 = block_sums(np.stack([values, np.ones(len(values))], axis=1), groups, seed=seed)
    draws_B2 = resampled_sums(sums_U2, resamples=resamples, seed=seed)
    value = float(values.mean())
    left = sums_U2.sum(axis=0) - sums_U2
    jackknife = left[:, 0] / np.maximum(left[:, 1], 1)
    low, high = bca(draws_B2[:, 0] / draws_B2[:, 1], value, jackknife, np.ones(len(sums_U2)))
    return Interval(value, max(0.0, min(low, value)), max(high, value))


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
