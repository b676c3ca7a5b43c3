"""The measures of answers that are sets of labels, each with its interval over groups.

Axes: N rows, C labels, U units (groups or blocks of groups), B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tagsmith.evaluation.calibration_error import calibration_error, calibration_error_by_chance
from tagsmith.evaluation.confusions import FEWEST_ROWS
from tagsmith.evaluation.losses import mean_interval
from tagsmith.evaluation.metrics import LabelScores, label_scores
from tagsmith.evaluation.proportions import FEW_ERRORS, Interval, mean_of_proportions, proportion
from tagsmith.evaluation.ranking import Ranking, ranking
from tagsmith.evaluation.resampling import bca, block_sums, resampled_sums
from tagsmith.labels import Labels

Average = Literal["micro", "macro"]


@dataclass(frozen=True)
class SetScores:
    """What was measured on one set of rows that may have any number of labels.

    `accuracy` is the share of rows whose set is exactly right, `hamming_loss` the share of wrong decisions among
    rows times labels, `log_loss` and `brier` the means of the labels' binary ones; `samples_f1` averages the F1 of each
    row, 1 where neither truth nor answer has a label. `macro_f1_frequent` leaves out labels with fewer than 10 positive
    rows, None where none is left. `mcc` is that of all decisions together, `balanced_accuracy` the mean over labels of
    the recall with and without them, None where no label is with some rows and without others, as are the areas.
    `ece` is that of all labels' probabilities, and `ece_calibrated` what a perfectly calibrated model would show.
    `counts (C, 2, 2)` are without and with the label: truth, then answer.
    """

    n: int
    groups: int
    accuracy: Interval
    decided: dict[str, Interval | None]
    samples_f1: Interval
    hamming_loss: Interval
    ranked: Ranking
    log_loss: Interval
    brier: Interval
    ece: Interval
    ece_calibrated: Interval
    per_label: tuple[LabelScores, ...]
    labels: tuple[str, ...]
    counts: np.ndarray

    @property
    def measures(self) -> dict[str, Interval | None]:
        """Each measure under its name in report.json."""
        return {
            "accuracy": self.accuracy,
            **self.decided,
            "samples_f1": self.samples_f1,
            "hamming_loss": self.hamming_loss,
            "roc_auc": self.ranked.roc_auc,
            "pr_auc": self.ranked.pr_auc,
            "log_loss": self.log_loss,
            "brier": self.brier,
            "ece": self.ece,
            "ece_calibrated": self.ece_calibrated,
        }

    def as_dict(self) -> dict[str, Any]:
        """The shape of `test` in report.json."""
        return {
            "kind": "multi_label",
            "n": self.n,
            "groups": self.groups,
            **{name: each.as_dict() if each else None for name, each in self.measures.items()},
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
        decided=decision_scores(truth, guess, groups, **drawn),
        samples_f1=_widened_down(mean_interval(row_f1(truth, guess), groups, **drawn), exact, groups),
        hamming_loss=_hamming_loss(truth, guess, groups, **drawn),
        ranked=ranking(truth, probs, groups),
        log_loss=mean_interval(row_set_losses(truth, probs), groups, **drawn),
        brier=mean_interval(((probs - truth) ** 2).mean(axis=1), groups, **drawn),
        ece=calibration_error(probs, truth, groups, **drawn),
        ece_calibrated=calibration_error_by_chance(probs.ravel(), claims(groups, len(labels)), **drawn),
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


def claims(groups: np.ndarray, classes: int) -> np.ndarray:
    """The group `(N C,)` of each decision: those of near duplicates about the same label hold or fail together."""
    _, group = np.unique(groups, return_inverse=True)
    return (group[:, None] * classes + np.arange(classes)).ravel()


# --- decisions


def decision_scores(
    truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int
) -> dict[str, Interval | None]:
    """F1 by its averages, MCC and balanced accuracy of answers `guess (N, C)` bool, with BCa intervals over groups.

    Macro F1 is over the labels that occur in truth or answers. With up to 5 wrong rows intervals reach down to that of
    the share of right ones at least, since so few say little about how many there could be.
    """
    sums = block_sums(np.hstack([truth & guess, guess, truth, np.ones((len(truth), 1))]), groups, seed=seed)
    whole, draws = sums.sum(axis=0), resampled_sums(sums, resamples=resamples, seed=seed)
    frequent = truth.sum(axis=0) >= FEWEST_ROWS
    two_sided = np.asarray(truth.any(axis=0) & ~truth.all(axis=0))
    measures: dict[str, Callable[[_Sums], np.ndarray]] = {
        "balanced_accuracy": lambda each: each.balanced_accuracy(two_sided),
        "macro_f1": lambda each: each.macro_f1(None),
        "macro_f1_frequent": lambda each: each.macro_f1(frequent),
        "micro_f1": _Sums.micro_f1,
        "weighted_f1": _Sums.weighted_f1,
        "mcc": _Sums.mcc,
    }
    absent = {"balanced_accuracy": not two_sided.any(), "macro_f1_frequent": not frequent.any()}
    exact = (truth == guess).all(axis=1)
    found: dict[str, Interval | None] = dict.fromkeys(measures)
    for name, measure in measures.items():
        if absent.get(name):
            continue
        value = float(measure(_Sums.of(whole[None]))[0])
        low, high = bca(measure(_Sums.of(draws)), value, measure(_Sums.of(whole - sums)), np.ones(len(sums)))
        least = -1.0 if name == "mcc" else 0.0
        each = Interval(value, max(least, min(low, value)), min(1.0, max(high, value)))
        found[name] = _widened_down(each, exact, groups)
    if (resampled := found["balanced_accuracy"]) is not None:
        found["balanced_accuracy"] = _hull(resampled, _of_recalls(truth, guess, groups, two_sided))
    return found


def _of_recalls(truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, two_sided: np.ndarray) -> Interval:
    """The balanced accuracy from the intervals of its recalls: wide where a label has few rows."""
    right = truth == guess
    shares = [
        proportion(right[side, i], groups[side])
        for i in np.flatnonzero(two_sided)
        for side in (truth[:, i], ~truth[:, i])
    ]
    return mean_of_proportions(shares)


def _hull(first: Interval, second: Interval) -> Interval:
    return Interval(first.value, min(first.low or 0.0, second.low or 0.0), max(first.high or 1.0, second.high or 1.0))


@dataclass(frozen=True)
class _Sums:
    """Sums `(B, C)` over units of right answers, all answers and the truth, and the rows `(B, 1)`."""

    hits: np.ndarray
    answers: np.ndarray
    support: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray) -> _Sums:
        """From columns `(B, 3C + 1)` side by side."""
        classes = (columns.shape[1] - 1) // 3
        return cls(*np.split(columns, [classes, 2 * classes, 3 * classes], axis=1))

    def f1(self) -> np.ndarray:
        return 2 * self.hits / np.maximum(self.answers + self.support, 1)

    def micro_f1(self) -> np.ndarray:
        return 2 * self.hits.sum(axis=1) / np.maximum((self.answers + self.support).sum(axis=1), 1)

    def macro_f1(self, chosen: np.ndarray | None) -> np.ndarray:
        counted = self.answers + self.support > 0 if chosen is None else np.broadcast_to(chosen, self.hits.shape)
        return (self.f1() * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)

    def weighted_f1(self) -> np.ndarray:
        return (self.f1() * self.support).sum(axis=1) / np.maximum(self.support.sum(axis=1), 1)

    def balanced_accuracy(self, two_sided: np.ndarray) -> np.ndarray:
        """The mean over labels of the recall with and without them; 0 for a side that a resample left without rows."""
        recall = self.hits / np.maximum(self.support, 1)
        without = self.rows - self.support
        specificity = (without - self.answers + self.hits) / np.maximum(without, 1)
        return ((recall + specificity) / 2)[:, two_sided].mean(axis=1)

    def mcc(self) -> np.ndarray:
        """Matthews' correlation of all decisions together; 0 where it is undefined."""
        both, answers, support = (each.sum(axis=1) for each in (self.hits, self.answers, self.support))
        cells = self.rows[:, 0] * self.hits.shape[1]
        spread = answers * support * (cells - answers) * (cells - support)
        return np.where(spread > 0, (both * cells - answers * support) / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


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


def _hamming_loss(truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    wrong_NC = truth != guess
    found = mean_interval(wrong_NC.mean(axis=1), groups, resamples=resamples, seed=seed)
    rows = proportion(wrong_NC.any(axis=1), groups)
    few = np.count_nonzero(wrong_NC.any(axis=1)) <= FEW_ERRORS
    high = max(found.high or 0.0, (rows.high or 0.0) / truth.shape[1]) if few else found.high
    return Interval(found.value, found.low, high)


def _widened_down(found: Interval, exact: np.ndarray, groups: np.ndarray) -> Interval:
    if np.count_nonzero(~exact) > FEW_ERRORS:
        return found
    return Interval(found.value, min(found.low or 0.0, proportion(exact, groups).low or 0.0), found.high)
