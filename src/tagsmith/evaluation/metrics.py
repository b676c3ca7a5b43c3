"""Truth and probabilities -> numbers, each with the 95 % interval that rows in groups deserve.

Axes: N rows, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.errors import DataError
from tagsmith.evaluation.calibration_error import ece, ece_calibrated
from tagsmith.evaluation.confusions import FEWEST_ROWS, ConfusionScores, confusion_scores
from tagsmith.evaluation.losses import brier, log_loss
from tagsmith.evaluation.proportions import Interval, f1_of_share, proportion
from tagsmith.evaluation.ranking import Ranking, ranking
from tagsmith.labels import Labels
from tagsmith.model.decision import Rule, decided


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

    `macro_f1_frequent` leaves out the labels with fewer than 10 test rows, None where none is left; `roc_auc` and
    `pr_auc` are means over the labels that some rows have and some have not, None where there is none of them;
    `ece_calibrated` is the ECE that a perfectly calibrated model would show on as many rows; `counts (C, C)` has a row
    for each true label. Of single labels the micro F1 is the accuracy.
    """

    n: int
    groups: int
    accuracy: Interval
    confused: ConfusionScores
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
        confused, ranked = self.confused, self.ranked
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": confused.balanced_accuracy,
            "macro_f1": confused.macro_f1,
            "macro_f1_frequent": confused.macro_f1_frequent,
            "micro_f1": self.accuracy,
            "weighted_f1": confused.weighted_f1,
            "mcc": confused.mcc,
            "roc_auc": ranked.roc_auc,
            "pr_auc": ranked.pr_auc,
            "log_loss": self.log_loss,
            "brier": self.brier,
            "ece": self.ece,
            "ece_calibrated": self.ece_calibrated,
        }

    def as_dict(self) -> dict[str, Any]:
        """The shape of `test` in report.json."""
        return {
            "n": self.n,
            "groups": self.groups,
            **{name: each.as_dict() if each else None for name, each in self.measures.items()},
            "per_label": [scores.as_dict() for scores in self.per_label],
            "confusion": {"labels": list(self.labels), "counts": self.counts.tolist()},
        }


def measure(
    truth: np.ndarray,
    probs: np.ndarray,
    groups: np.ndarray,
    *,
    labels: Labels,
    resamples: int,
    seed: int,
    rule: Rule = None,
) -> Scores:
    """All scores of `probs (N, C)` against `truth (N,)`, rows of one group `(N,)` taken together; N is at least 1.

    ECE is that of the likeliest label, whichever the `rule` answers.
    """
    guess, drawn = decided(probs, rule), {"resamples": resamples, "seed": seed}
    return Scores(
        n=len(truth),
        groups=len(np.unique(groups)),
        accuracy=proportion(guess == truth, groups),
        confused=confusion_scores(truth, guess, groups, **drawn),
        ranked=ranking(truth[:, None] == np.arange(len(labels)), probs, groups),
        log_loss=log_loss(truth, probs, groups, **drawn),
        brier=brier(truth, probs, groups, **drawn),
        ece=ece(truth, probs, groups, **drawn),
        ece_calibrated=ece_calibrated(probs, groups, **drawn),
        per_label=tuple(label_scores(truth == i, guess == i, groups, name=name) for i, name in enumerate(labels.names)),
        labels=labels.names,
        counts=confusion(truth, guess, classes=len(labels)),
    )


def require_probabilities(probs: np.ndarray, *, several: bool, whose: str) -> None:
    """DataError where `probs (N, C)` of one model are none, or do not sum to 1 in rows that have one label each."""
    beyond = ~np.isfinite(probs).all(axis=1) | (probs < 0).any(axis=1) | (probs > 1 + _ROUNDING).any(axis=1)
    if not several:
        beyond |= ~(np.abs(probs.sum(axis=1) - 1) <= _ROUNDING)
    if beyond.any():
        row = int(beyond.argmax())
        shown = ", ".join(f"{p:.4g}" for p in probs[row][:5])
        raise DataError(
            f"The probabilities that {whose} gives row {row} are none: {shown}{', ...' if probs.shape[1] > 5 else ''} "
            f"(their sum is {probs[row].sum():.4g}; {int(beyond.sum())} of {len(probs)} rows are like that). Expected "
            f"numbers from 0 to 1{'' if several else ' that sum to 1'}; give softmax outputs, not logits."
        )


_ROUNDING = 1e-6


def confusion(truth: np.ndarray, guess: np.ndarray, *, classes: int) -> np.ndarray:
    """Counts `(C, C)` int64: rows are the truth, columns the answers."""
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)


def label_scores(
    is_true: np.ndarray, is_guess: np.ndarray, groups: np.ndarray, *, name: str, threshold: float | None = None
) -> LabelScores:
    """Precision, recall and F1 of one label as proportions; F1 is 2 q / (1 + q) of q = hits among truth or answers."""
    hits, either = is_true & is_guess, is_true | is_guess
    support = int(is_true.sum())
    measures = [proportion(hits[rows], groups[rows]) for rows in (is_guess, is_true, either)]
    measures[2] = f1_of_share(measures[2])
    if support < FEWEST_ROWS:
        measures = [Interval(measure.value) for measure in measures]
    return LabelScores(name, support, *measures, threshold=threshold)
