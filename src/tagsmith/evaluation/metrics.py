"""Truth and probabilities -> numbers, each with the 95 % interval that rows in groups deserve.

Near duplicates are right or wrong together, so groups, not rows, are the unit: proportions count effective rows (rows
over the design effect), everything else resamples whole groups.

Axes: N rows, C labels, G groups, U units (groups that look alike, counted), B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.evaluation.resampling import LEVEL, bca, block_sums, resampled_sums
from tagsmith.labels import Labels

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BINS = 15
FEWEST_ROWS = 10
"""A label with fewer test rows gets counts without intervals, and stays out of `macro_f1_frequent`."""
_FEWEST_EFFECTIVE = 30
_OBSERVED_WEIGHT = 0.55  # mid-P's 0.5 covers 91.8 % at n = 300, p = 0.99
_FEW_ERRORS = 5


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % interval; None where there are too few rows for one."""

    value: float
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """`value`, `low` and `high`."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class LabelScores:
    """How one label is found: `support` is its number of test rows, `threshold` None where the likeliest wins."""

    label: str
    support: int
    precision: Interval
    recall: Interval
    f1: Interval
    threshold: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, each interval as `value`, `low`, `high`; without `threshold` where there is none."""
        measures = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        plain = {"label": self.label, "support": self.support} | {k: v.as_dict() for k, v in measures.items()}
        return plain if self.threshold is None else plain | {"threshold": self.threshold}


@dataclass(frozen=True)
class Scores:
    """What was measured on one set of rows.

    `macro_f1_frequent` leaves out the labels with fewer than 10 test rows, None where none is left; `ece_calibrated` is
    the ECE that a perfectly calibrated model would show on as many rows; `counts (C, C)` has a row for each true label.
    """

    n: int
    groups: int
    accuracy: Interval
    macro_f1: Interval
    macro_f1_frequent: Interval | None
    log_loss: Interval
    ece: Interval
    ece_calibrated: Interval
    per_label: tuple[LabelScores, ...]
    labels: tuple[str, ...]
    counts: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """The shape of `test` in report.json."""
        return {
            "n": self.n,
            "groups": self.groups,
            "accuracy": self.accuracy.as_dict(),
            "macro_f1": self.macro_f1.as_dict(),
            "macro_f1_frequent": self.macro_f1_frequent.as_dict() if self.macro_f1_frequent else None,
            "log_loss": self.log_loss.as_dict(),
            "ece": self.ece.as_dict(),
            "ece_calibrated": self.ece_calibrated.as_dict(),
            "per_label": [scores.as_dict() for scores in self.per_label],
            "confusion": {"labels": list(self.labels), "counts": self.counts.tolist()},
        }


def measure(
    truth: np.ndarray, probs: np.ndarray, groups: np.ndarray, *, labels: Labels, resamples: int, seed: int
) -> Scores:
    """All scores of `probs (N, C)` against `truth (N,)`, rows of one group `(N,)` taken together; N is at least 1."""
    guess = probs.argmax(axis=1)
    counts = confusion(truth, guess, classes=len(labels))
    return Scores(
        n=len(truth),
        groups=len(np.unique(groups)),
        accuracy=proportion(guess == truth, groups),
        macro_f1=macro_f1(truth, guess, groups, resamples=resamples, seed=seed),
        macro_f1_frequent=_macro_f1_frequent(truth, guess, groups, resamples=resamples, seed=seed),
        log_loss=log_loss(truth, probs, groups, resamples=resamples, seed=seed),
        ece=ece(truth, probs, groups, resamples=resamples, seed=seed),
        ece_calibrated=ece_calibrated(probs, groups, resamples=resamples, seed=seed),
        per_label=tuple(label_scores(truth == i, guess == i, groups, name=name) for i, name in enumerate(labels.names)),
        labels=labels.names,
        counts=counts,
    )


def confusion(truth: np.ndarray, guess: np.ndarray, *, classes: int) -> np.ndarray:
    """Counts `(C, C)` int64: rows are the truth, columns the answers."""
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)


# --- proportions


def proportion(hits: np.ndarray, groups: np.ndarray) -> Interval:
    """The share of `hits (N,)` bool with a 95 % interval on the effective number of rows.

    A binomial interval near mid-P, Clopper-Pearson below 30 effective rows. Simulated on n = 30 to 3000, p = 0.5 to
    0.99, 0 to 35 % of the rows in groups of 2 to 5: mean coverage 95 to 96 %, at least 92 % pointwise from n = 100 on
    (tests/evaluation/test_metrics.py).
    """
    if not len(hits):
        return Interval(0.0)
    share = float(np.mean(hits))
    rows = len(hits) / design_effect(hits.astype(np.float64), groups)
    low, high = _binomial_bounds(share * rows, rows, weight=1.0 if rows < _FEWEST_EFFECTIVE else _OBSERVED_WEIGHT)
    return Interval(share, min(low, share), max(high, share))


def design_effect(values: np.ndarray, groups: np.ndarray) -> float:
    """By how much rows in groups inflate the variance of the mean of `values (N,)`; 1 without groups.

    1 + r (sum m_g^2 / N - 1) for group sizes m_g and the correlation r inside groups (Kish 1965, Survey Sampling, 5.4).
    r is estimated from all pairs and shrunk towards 0.6 with the weight of three rows, since a handful of rare errors
    says little about it: unshrunk, coverage at p = 0.99 fell to 89 %.
    """
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if sizes.max() == 1:
        return 1.0
    residuals = values - values.mean()
    variance = np.mean(residuals**2)
    pairs = float((sizes * (sizes - 1)).sum())
    between = (np.bincount(index, weights=residuals) ** 2).sum() - (residuals**2).sum()
    correlation = between / (pairs * variance) if variance > 0 else 0.0
    usual = np.round(np.median(values[sizes[index] > 1]))
    known = np.count_nonzero(values[sizes[index] > 1] != usual)
    shrunk = (known * np.clip(correlation, 0, 1) + 3 * 0.6) / (known + 3)
    return float(1 + shrunk * ((sizes**2).sum() / len(values) - 1))


def _binomial_bounds(hits: float, rows: float, *, weight: float) -> tuple[float, float]:
    """Bounds whose tails count the observed number by `weight`: 1 is Clopper-Pearson, 0.5 mid-P (Lancaster 1961)."""
    from scipy.special import betainc

    tail = (1 - LEVEL) / 2

    def at_least(k: float, p: float) -> float:
        return 1.0 if k <= 0 else (0.0 if k > rows else float(betainc(k, rows - k + 1, p)))

    def above(k: float, p: float) -> float:
        return weight * at_least(k, p) + (1 - weight) * at_least(k + 1, p)

    low = 0.0 if hits <= 0 else _root(lambda p: above(hits, p) - tail)
    high = 1.0 if hits >= rows else 1 - _root(lambda p: above(rows - hits, p) - tail)
    return low, high


def _root(rising: Callable[[float], float]) -> float:
    from scipy.optimize import root_scalar

    return float(root_scalar(rising, bracket=(0.0, 1.0), xtol=1e-10).root)


def label_scores(
    is_true: np.ndarray, is_guess: np.ndarray, groups: np.ndarray, *, name: str, threshold: float | None = None
) -> LabelScores:
    """Precision, recall and F1 of one label as proportions; F1 is 2 q / (1 + q) of q = hits among truth or answers."""
    hits, either = is_true & is_guess, is_true | is_guess
    support = int(is_true.sum())
    measures = [proportion(hits[rows], groups[rows]) for rows in (is_guess, is_true, either)]
    measures[2] = _f1_of_share(measures[2])
    if support < FEWEST_ROWS:
        measures = [Interval(measure.value) for measure in measures]
    return LabelScores(name, support, *measures, threshold=threshold)


def _f1_of_share(share: Interval) -> Interval:
    value, low, high = (None if q is None else 2 * q / (1 + q) for q in (share.value, share.low, share.high))
    return Interval(value or 0.0, low, high)


# --- macro-F1


def macro_f1(
    truth: np.ndarray,
    guess: np.ndarray,
    groups: np.ndarray,
    *,
    resamples: int,
    seed: int,
    among: np.ndarray | None = None,
) -> Interval:
    """The mean F1 of the labels in truth or answers, or of those `among`, with a BCa interval over groups.

    BCa (Efron 1987) because percentiles fall short on long tails: simulated with 20 labels of Zipf frequency and 300
    rows, 79 to 93 % for percentiles, 88 to 97 % for BCa; on 100 rows such a tail has labels that no test row shows, and
    no method that was tried covers it (BCa 72 to 85 %). With up to 5 errors the interval reaches down to that of the
    accuracy at least.
    """
    units = _Units.of(truth, guess, groups)
    value = float(units.macro_f1(units.copies[None].astype(np.float64), among)[0])
    rng = np.random.default_rng(seed)
    draws = np.concatenate([units.macro_f1(weights, among) for weights in units.resample(resamples, rng)])
    jackknife = units.macro_f1_without_one(among)
    low, high = bca(draws, value, jackknife, units.copies)
    if np.count_nonzero(truth != guess) <= _FEW_ERRORS:
        low = min(low, proportion(truth == guess, groups).low or 0.0)
    return Interval(value, max(0.0, min(low, value)), min(1.0, max(high, value)))


def _macro_f1_frequent(
    truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int
) -> Interval | None:
    frequent = np.flatnonzero(np.bincount(truth) >= FEWEST_ROWS)
    if not len(frequent):
        return None
    return macro_f1(truth, guess, groups, resamples=resamples, seed=seed, among=frequent)


@dataclass(frozen=True)
class _Units:
    """Groups with the same confusions, counted; `hits`, `answers`, `support` are `(U, K)`, K labels that occur."""

    copies: np.ndarray
    names: np.ndarray
    hits: csr_matrix
    answers: csr_matrix
    support: csr_matrix

    @classmethod
    def of(cls, truth: np.ndarray, guess: np.ndarray, groups: np.ndarray) -> _Units:
        names, ids = np.unique(np.concatenate([truth, guess]), return_inverse=True)
        truth, guess = ids[: len(truth)], ids[len(truth) :]
        _, group = np.unique(groups, return_inverse=True)
        kind, copies = _alike(group, truth * len(names) + guess)
        shape = (len(copies), len(names))
        rows, kinds = np.flatnonzero(kind[group] >= 0), kind[group]
        right = rows[truth[rows] == guess[rows]]
        tables = ((right, truth), (rows, guess), (rows, truth))
        return cls(copies, names, *(_sparse_table(kinds[rows], labels[rows], shape) for rows, labels in tables))

    def resample(self, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Weights `(b, U)`: groups drawn with replacement, in parts that fit into memory."""
        total, part = self.copies.sum(), 16 + 4_000_000 // sum(self.hits.shape)
        for start in range(0, resamples, part):
            size = min(part, resamples - start)
            yield rng.multinomial(total, self.copies / total, size=size).astype(np.float64)

    def macro_f1(self, weights: np.ndarray, among: np.ndarray | None) -> np.ndarray:
        return mean_f1(weights @ self.hits, weights @ self.answers, weights @ self.support, self._chosen(among))

    def macro_f1_without_one(self, among: np.ndarray | None) -> np.ndarray:
        """Macro-F1 `(U,)` of all groups but one of each kind."""
        if self.copies.sum() == 1:
            return np.zeros(1)
        hits, answers, support = (
            (self.copies @ table)[None] - table.toarray() for table in (self.hits, self.answers, self.support)
        )
        return mean_f1(hits, answers, support, self._chosen(among))

    def _chosen(self, among: np.ndarray | None) -> np.ndarray | None:
        return None if among is None else np.isin(self.names, among)


def _alike(group: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each group the kind it stands for, -1 where another stands for it, and the number of groups of each kind.

    Groups are alike when their rows fill the same cells; a sum of one random 64-bit number for each cell tells.
    """
    numbers = np.random.default_rng(0).integers(0, 2**63, size=int(cell.max()) + 1, dtype=np.uint64)
    prints = np.zeros(int(group.max()) + 1, dtype=np.uint64)
    np.add.at(prints, group, numbers[cell])
    _, first, copies = np.unique(prints, return_index=True, return_counts=True)
    kind = np.full(len(prints), -1)
    kind[first] = np.arange(len(first))
    return kind, copies


def _sparse_table(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    from scipy.sparse import csr_matrix

    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)


def mean_f1(hits: np.ndarray, answers: np.ndarray, support: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
    """Macro-F1 `(B,)` of sums `(B, K)`: over the chosen labels, or over those that occur."""
    total = answers + support
    f1 = 2 * hits / np.maximum(total, 1)
    counted = total > 0 if chosen is None else np.broadcast_to(chosen, total.shape)
    return (f1 * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)


# --- log loss and calibration


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
    gaps, bins = confidence - hits, _equal_mass_bins(confidence)
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
    bins = _equal_mass_bins(confidence)
    sizes = np.bincount(bins, minlength=BINS)
    inflation = design_effect((confidence > np.median(confidence)).astype(np.float64), groups)
    spread = np.sqrt(inflation * np.bincount(bins, weights=confidence * (1 - confidence), minlength=BINS))
    noise = np.random.default_rng(seed).standard_normal((resamples, BINS)) * spread
    _, draws = _debiased_ece(np.hstack([noise, np.tile(sizes, (resamples, 1))]), spread)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = min(1.0, float(draws.mean()))
    return Interval(value, min(float(low), value), min(1.0, max(float(high), value)))


def _equal_mass_bins(confidence: np.ndarray) -> np.ndarray:
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
