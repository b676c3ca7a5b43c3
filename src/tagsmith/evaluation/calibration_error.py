"""How far claimed probabilities are from what happens: the expected calibration error, debiased, and chance's share.

Axes: N rows, C labels, K claims about a row, U units, B resamples.
"""

from __future__ import annotations

import numpy as np

from tagsmith.evaluation.proportions import Interval, design_effect
from tagsmith.evaluation.resampling import LEVEL, block_sums, resampled_sums

BINS = 15


def ece(truth: np.ndarray, probs: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The expected calibration error of the answer's probability: 15 bins of equal mass, debiased, group bootstrap.

    A bin's gap between confidence and accuracy is never 0 by chance; what chance adds to its absolute value (the mean
    of a folded normal, less its centre) is taken off, in the spirit of Kumar, Liang and Ma (2019), section 4.
    """
    hits = probs.argmax(axis=1) == truth
    return calibration_error(probs.max(axis=1)[:, None], hits[:, None], groups, resamples=resamples, seed=seed)


def calibration_error(
    confidence: np.ndarray, hits: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int
) -> Interval:
    """`ece` of any claims: `confidence (N, K)` that each of K claims about a row holds, and whether it does."""
    gaps, bins = confidence - hits, equal_mass_bins(confidence)
    cells = (np.arange(len(gaps))[:, None] * BINS + bins).ravel()
    shape, size = (len(gaps), BINS), len(gaps) * BINS
    filled = [np.bincount(cells, weights=w, minlength=size).reshape(shape) for w in (gaps.ravel(), None)]
    sums = block_sums(np.hstack(filled), groups, seed=seed)
    spread = _gap_spread(sums)
    raw, debiased = _debiased_ece(sums.sum(axis=0)[None], spread)
    _, draws = _debiased_ece(resampled_sums(sums, resamples=resamples, seed=seed), spread)
    # A resample adds chance to gaps that hold chance already: the bias is taken off a second time.
    low, high = np.quantile(np.maximum(draws - (raw - debiased), 0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(debiased[0])
    return Interval(value, min(float(low), value), min(1.0, max(float(high), value)))


def ece_calibrated(probs: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The ECE that a perfectly calibrated model with these confidences would show: its mean and 95 % band."""
    return calibration_error_by_chance(probs.max(axis=1), groups, resamples=resamples, seed=seed)


def calibration_error_by_chance(confidence: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """`ece_calibrated` of any claims with their `confidence (N,)`; claims of one group hold or fail together."""
    bins = equal_mass_bins(confidence)
    sizes = np.bincount(bins, minlength=BINS)
    inflation = design_effect((confidence > np.median(confidence)).astype(np.float64), groups)
    spread = np.sqrt(inflation * np.bincount(bins, weights=confidence * (1 - confidence), minlength=BINS))
    noise = np.random.default_rng(seed).standard_normal((resamples, BINS)) * spread
    _, draws = _debiased_ece(np.hstack([noise, np.tile(sizes, (resamples, 1))]), spread)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = min(1.0, float(draws.mean()))
    return Interval(value, min(float(low), value), min(1.0, max(float(high), value)))


def equal_mass_bins(confidence: np.ndarray) -> np.ndarray:
    """The bin of each value; equal confidences share a bin, so that the order of rows does not matter."""
    edges = np.quantile(confidence, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, confidence, side="right")


def _gap_spread(sums: np.ndarray) -> np.ndarray:
    """Standard error `(BINS,)` of each bin's summed gap, from the units' `(U, 2 BINS)` sums."""
    gaps, sizes = sums[:, :BINS], sums[:, BINS:]
    mean = gaps.sum(axis=0) / np.maximum(sizes.sum(axis=0), 1)
    return np.sqrt(((gaps - mean * sizes) ** 2).sum(axis=0))


def _debiased_ece(sums: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The raw and the debiased ECE `(B,)` of sums `(B, 2 BINS)`: gaps, then sizes."""
    from scipy.special import ndtr

    gaps, rows = np.abs(sums[:, :BINS]), np.maximum(sums[:, BINS:].sum(axis=1), 1)
    ratio = gaps / np.maximum(spread, 1e-12)
    folded = spread * np.sqrt(2 / np.pi) * np.exp(-(np.minimum(ratio, 50) ** 2) / 2) + gaps * (1 - 2 * ndtr(-ratio))
    raw = gaps.sum(axis=1) / rows
    return raw, np.maximum(raw - (folded - gaps).sum(axis=1) / rows, 0)
