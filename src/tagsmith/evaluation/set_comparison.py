"""Two models that answer with sets of labels, on the same rows: which is better, beyond chance.

Axes: N rows, C labels, U units (groups or blocks of groups), P flips.
"""

from __future__ import annotations

import numpy as np

from tagsmith.evaluation.comparison import Measure, Verdict, Wording, compare_hits
from tagsmith.evaluation.label_sets import Average, f1_of, label_sums
from tagsmith.evaluation.proportions import Interval
from tagsmith.evaluation.resampling import bca, block_sums, resampled_sums
from tagsmith.model.decision import Rule

FLIPS = 9_999
_AT_ONCE = 256


def primary_measure(metric: str) -> Measure:
    """What two multi-label models are compared by, given `evaluation.metric`; micro F1 for the log loss."""
    match metric:
        case "accuracy" | "macro_f1":
            return metric
    return "micro_f1"


def compared_by(metric: str, rule: Rule) -> Measure:
    """What two models are compared by, given `evaluation.metric`: that measure where answers follow it, by a `rule`.

    Where the likeliest label is answered it is the accuracy, whatever chose the step; with costs too, which the report
    compares apart.
    """
    if isinstance(rule, np.ndarray):
        return primary_measure(metric)
    if rule is None or rule.kind == "costs":
        return "accuracy"
    return "balanced_accuracy" if metric == "balanced_accuracy" else "macro_f1"


def as_sets(answers: np.ndarray, classes: int) -> np.ndarray:
    """Label ids `(N,)` as sets of one `(N, C)` bool; sets stay what they are."""
    return np.arange(classes) == answers[:, None] if answers.ndim == 1 else answers


def compare_sets(
    truth: np.ndarray,
    answers_model: np.ndarray,
    answers_baseline: np.ndarray,
    groups: np.ndarray,
    *,
    measure: Measure,
    resamples: int,
    seed: int,
    margin: float = 1.0,
    spread: float | None = None,
    names: tuple[str, str] = ("LLM", "TF-IDF"),
) -> Verdict:
    """The paired comparison of two sets of answers `(N, C)` bool against `truth (N, C)`, as `compare` decides.

    By `accuracy` it is `compare` itself, on rows whose set is exactly right. By F1 the interval is a BCa bootstrap of
    the difference, over groups; the p-value comes from swapping the two models' answers in whole groups at random,
    9,999 times (a randomisation test, exact for the hypothesis that the two are exchangeable). `spread` is
    `paired_spread` seen in validation; it says which difference these rows would show with 80 % power.
    """
    if measure == "accuracy":
        right, right_baseline = ((answers == truth).all(axis=1) for answers in (answers_model, answers_baseline))
        return compare_hits(right, right_baseline, groups, margin=margin, discordance=spread, names=names)
    average: Average = "micro" if measure == "micro_f1" else "macro"
    pair = _Pair(*(_sums(truth, answers, groups, measure, seed=seed) for answers in (answers_model, answers_baseline)))
    difference = pair.difference(average, resamples=resamples, seed=seed)
    p_value = pair.swap_p(average, seed=seed)
    detectable = None if spread is None else float(100 * _POWER * spread / np.sqrt(len(truth)))
    limit = "are too few" if detectable is None else f"show a difference of {detectable:.1f} points with 80 % power"
    wording = Wording(names, f"{len(truth):,} rows {limit}", margin, unit=f"points of {_NAMES[measure]}")
    return Verdict(p_value, difference, None, detectable, wording, measure)


_NAMES = {"micro_f1": "micro F1", "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}


def _sums(truth: np.ndarray, answers: np.ndarray, groups: np.ndarray, measure: Measure, *, seed: int) -> np.ndarray:
    """What `f1_of` takes; in the place of answers with positives twice the positives, for the mean recall of labels."""
    if measure != "balanced_accuracy":
        return label_sums(truth, answers, groups, seed=seed)
    return block_sums(np.hstack([truth & answers, 2 * truth.astype(np.int8)]), groups, seed=seed)


_POWER = 1.959964 + 0.841621  # two-sided at 5 %, seen with 80 %


class _Pair:
    """Sums `(U, 2C)` of two models over the same units."""

    def __init__(self, model: np.ndarray, baseline: np.ndarray) -> None:
        self.model, self.baseline = model, baseline

    def difference(self, average: Average, *, resamples: int, seed: int) -> Interval:
        """Model minus baseline, in points."""
        both = np.hstack([self.model, self.baseline])
        value = float(_gain(both.sum(axis=0)[None], average)[0])
        draws = _gain(resampled_sums(both, resamples=resamples, seed=seed), average)
        low, high = bca(draws, value, _gain(both.sum(axis=0) - both, average), np.ones(len(both)))
        return Interval(100 * value, 100 * min(low, value), 100 * max(high, value))

    def swap_p(self, average: Average, *, seed: int) -> float:
        """The two-sided p-value of the difference when each unit's answers may have come from either model."""
        apart = self.model - self.baseline
        apart = apart[apart.any(axis=1)]
        middle = (self.model + self.baseline).sum(axis=0) / 2
        seen, far = float(np.abs(_between(middle, apart.sum(axis=0)[None] / 2, average)[0])), 1
        rng = np.random.default_rng(seed)
        for start in range(0, FLIPS, _AT_ONCE):
            signs = rng.integers(0, 2, size=(min(_AT_ONCE, FLIPS - start), len(apart))) - 0.5
            far += int(np.count_nonzero(np.abs(_between(middle, signs @ apart, average)) >= seen - 1e-12))
        return far / (FLIPS + 1)


def _gain(sums: np.ndarray, average: Average) -> np.ndarray:
    model, baseline = np.hsplit(sums, 2)
    return f1_of(model, average) - f1_of(baseline, average)


def _between(middle: np.ndarray, half: np.ndarray, average: Average) -> np.ndarray:
    return f1_of(middle + half, average) - f1_of(middle - half, average)


def paired_spread(
    truth: np.ndarray, answers_model: np.ndarray, answers_baseline: np.ndarray, groups: np.ndarray, *, measure: Measure
) -> float:
    """How far two models differ row by row: by F1 the standard error of the difference times the root of the rows.

    From a jackknife over groups. By `accuracy` it is the share of rows that just one of the two gets right.
    """
    if measure == "accuracy":
        return float(((answers_model == truth).all(axis=1) != (answers_baseline == truth).all(axis=1)).mean())
    both = np.hstack([_sums(truth, answers, groups, measure, seed=0) for answers in (answers_model, answers_baseline)])
    left = _gain(both.sum(axis=0) - both, "micro" if measure == "micro_f1" else "macro")
    variance = (len(both) - 1) / len(both) * ((left - left.mean()) ** 2).sum()
    return float(np.sqrt(variance * len(truth)))
