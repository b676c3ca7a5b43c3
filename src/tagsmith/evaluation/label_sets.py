"""The measures of answers that are sets of labels, each with its interval over groups.

Axes: N rows, C labels, U units (groups or blocks of groups), B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tagsmith.evaluation.metrics import (
    FEWEST_ROWS,
    Interval,
    LabelScores,
    calibration_error,
    calibration_error_by_chance,
    label_scores,
    mean_interval,
    proportion,
)
from tagsmith.evaluation.resampling import bca, block_sums, resampled_sums
from tagsmith.labels import Labels

Average = Literal["micro", "macro"]
_FEW_ERRORS = 5


@dataclass(frozen=True)
class SetScores:
    """What was measured on one set of rows that may have any number of labels.

    `accuracy` is the share of rows whose set is exactly right, `hamming_loss` the share of wrong decisions among
    rows times labels, `log_loss` the mean of the labels' binary ones; `samples_f1` averages the F1 of each row, 1
    where neither truth nor answer has a label. `macro_f1_frequent` leaves out labels with fewer than 10 positive rows,
    None where none is left. `ece` is that of all labels' probabilities, and `ece_calibrated` what a perfectly
    calibrated model would show. `counts (C, 2, 2)` are without and with the label: truth, then answer.
    """

    n: int
    groups: int
    accuracy: Interval
    micro_f1: Interval
    macro_f1: Interval
    macro_f1_frequent: Interval | None
    samples_f1: Interval
    hamming_loss: Interval
    log_loss: Interval
    ece: Interval
    ece_calibrated: Interval
    per_label: tuple[LabelScores, ...]
    labels: tuple[str, ...]
    counts: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """The shape of `test` in report.json."""
        names = ("accuracy", "micro_f1", "macro_f1", "samples_f1", "hamming_loss", "log_loss", "ece", "ece_calibrated")
        measures = {name: getattr(self, name).as_dict() for name in names}
        frequent = self.macro_f1_frequent.as_dict() if self.macro_f1_frequent else None
        return {
            "kind": "multi_label",
            "n": self.n,
            "groups": self.groups,
            **measures,
            "macro_f1_frequent": frequent,
            "per_label": [scores.as_dict() for scores in self.per_label],
            "confusion": {"kind": "per_label", "labels": list(self.labels), "counts": self.counts.tolist()},
        }


def measure_sets(
    truth: np.ndarray,
    probs: np.ndarray,
    groups: np.ndarray,
    *,
    thresholds: np.ndarray,
    labels: Labels,
    resamples: int,
    seed: int,
) -> SetScores:
    """All scores of `probs (N, C)` against `truth (N, C)` bool, each label answered from `thresholds (C,)` on."""
    guess = probs >= thresholds
    exact, drawn = (guess == truth).all(axis=1), {"resamples": resamples, "seed": seed}
    return SetScores(
        n=len(truth),
        groups=len(np.unique(groups)),
        accuracy=proportion(exact, groups),
        micro_f1=f1_interval(truth, guess, groups, average="micro", **drawn),
        macro_f1=f1_interval(truth, guess, groups, average="macro", **drawn),
        macro_f1_frequent=_macro_f1_frequent(truth, guess, groups, **drawn),
        samples_f1=_widened_down(mean_interval(row_f1(truth, guess), groups, **drawn), exact, groups),
        hamming_loss=_hamming_loss(truth, guess, groups, **drawn),
        log_loss=mean_interval(row_set_losses(truth, probs), groups, **drawn),
        ece=calibration_error(probs, truth, groups, **drawn),
        ece_calibrated=calibration_error_by_chance(probs.ravel(), _claims(groups, len(labels)), **drawn),
        per_label=tuple(
            label_scores(truth[:, i], guess[:, i], groups, name=name, threshold=float(thresholds[i]))
            for i, name in enumerate(labels.names)
        ),
        labels=labels.names,
        counts=counts_of(truth, guess),
    )


def counts_of(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Counts `(C, 2, 2)` int64 as scikit-learn's `multilabel_confusion_matrix`: `[[none, false], [missed, found]]`."""
    both, answers, support = ((a & b).sum(axis=0) for a, b in ((truth, guess), (guess, guess), (truth, truth)))
    neither = len(truth) - answers - support + both
    return np.stack([neither, answers - both, support - both, both], axis=1).reshape(-1, 2, 2)


def row_f1(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """The F1 of each row's set `(N,)`; 1 where neither truth nor answer has a label."""
    total_N = truth.sum(axis=1) + guess.sum(axis=1)
    return np.where(total_N > 0, 2 * (truth & guess).sum(axis=1) / np.maximum(total_N, 1), 1.0)


def row_set_losses(truth: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The mean over labels of the binary log loss, of each row `(N,)`, in nats; clipped to one step of float64."""
    least = np.finfo(np.float64).eps
    chances_NC = np.clip(np.where(truth, probs, 1 - probs).astype(np.float64), least, 1 - least)
    return -np.log(chances_NC).mean(axis=1)


def _claims(groups: np.ndarray, classes: int) -> np.ndarray:
    """The group `(N C,)` of each decision: those of near duplicates about the same label hold or fail together."""
    _, group = np.unique(groups, return_inverse=True)
    return (group[:, None] * classes + np.arange(classes)).ravel()


# --- F1


def f1_interval(
    truth: np.ndarray,
    guess: np.ndarray,
    groups: np.ndarray,
    *,
    average: Average,
    resamples: int,
    seed: int,
    among: np.ndarray | None = None,
) -> Interval:
    """Micro or macro F1 with a BCa interval over groups; macro over the labels that occur in truth or answers.

    `among` names the labels instead. With up to 5 wrong rows the interval reaches down to that of the share of right
    ones at least, since so few say little about how many there could be.
    """
    chosen = slice(None) if among is None else among
    sums = label_sums(truth[:, chosen], guess[:, chosen], groups, seed=seed)
    value = float(f1_of(sums.sum(axis=0)[None], average)[0])
    draws = f1_of(resampled_sums(sums, resamples=resamples, seed=seed), average)
    low, high = bca(draws, value, f1_of(sums.sum(axis=0) - sums, average), np.ones(len(sums)))
    found = Interval(value, max(0.0, min(low, value)), min(1.0, max(high, value)))
    return _widened_down(found, (truth == guess).all(axis=1), groups)


def label_sums(truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, *, seed: int) -> np.ndarray:
    """Sums `(U, 2C)` over units: each label's hits, then its answers and positives together."""
    return block_sums(np.hstack([truth & guess, truth.astype(np.int8) + guess]), groups, seed=seed)


def f1_of(sums: np.ndarray, average: Average) -> np.ndarray:
    """F1 `(B,)` of sums `(B, 2C)` as `label_sums` gives them; 0 where nothing is true and nothing answered."""
    hits, total = np.hsplit(sums, 2)
    if average == "micro":
        return 2 * hits.sum(axis=1) / np.maximum(total.sum(axis=1), 1)
    occurring = (total > 0).sum(axis=1)
    return (2 * hits / np.maximum(total, 1)).sum(axis=1) / np.maximum(occurring, 1)


def _macro_f1_frequent(
    truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int
) -> Interval | None:
    frequent = np.flatnonzero(truth.sum(axis=0) >= FEWEST_ROWS)
    if not len(frequent):
        return None
    return f1_interval(truth, guess, groups, average="macro", resamples=resamples, seed=seed, among=frequent)


def _hamming_loss(truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    wrong_NC = truth != guess
    found = mean_interval(wrong_NC.mean(axis=1), groups, resamples=resamples, seed=seed)
    rows = proportion(wrong_NC.any(axis=1), groups)
    few = np.count_nonzero(wrong_NC.any(axis=1)) <= _FEW_ERRORS
    high = max(found.high or 0.0, (rows.high or 0.0) / truth.shape[1]) if few else found.high
    return Interval(found.value, found.low, high)


def _widened_down(found: Interval, exact: np.ndarray, groups: np.ndarray) -> Interval:
    if np.count_nonzero(~exact) > _FEW_ERRORS:
        return found
    return Interval(found.value, min(found.low or 0.0, proportion(exact, groups).low or 0.0), found.high)
