"""The score by which tuning chooses its best step on the validation rows: larger is better."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from tagsmith.evaluation.calibration import fit_set_temperature, fit_temperature
from tagsmith.evaluation.decisions import score_of
from tagsmith.evaluation.label_sets import Average, f1_of, label_sums, row_set_losses
from tagsmith.evaluation.thresholds import EVEN, fit_thresholds
from tagsmith.model.lexical import softmax

Score = Callable[[np.ndarray, np.ndarray], float]
"""From truth `(N,)`, or `(N, C)` bool where rows have label sets, and probabilities `(N, C)` to a score."""


def selection_metric(name: str, *, multi_label: bool = False, calibrated: bool = False) -> Score:
    """The score named `log_loss` (its negative), `accuracy`, `macro_f1`, `micro_f1` or `balanced_accuracy`.

    `calibrated` takes the log loss at the temperature that the rows themselves ask for: one number, so that steps that
    are right and too sure do not lose for it where a temperature is fitted afterwards.

    With `multi_label` accuracy is the share of rows whose set is exactly right at thresholds of 0.5, and F1 is that of
    thresholds fitted on the same rows, as a bundle will have them. Of single labels micro F1 is the accuracy, and
    all are those of the likeliest labels.
    """
    if calibrated and name == "log_loss":
        return _calibrated_set_likelihood if multi_label else _calibrated_likelihood
    if multi_label:
        return {"log_loss": _set_likelihood, "accuracy": _set_accuracy, "macro_f1": _macro, "micro_f1": _micro}[name]
    return {"log_loss": _log_likelihood, "accuracy": _accuracy, "micro_f1": _accuracy}.get(
        name, partial(_of_likeliest, name)
    )


def _log_likelihood(truth: np.ndarray, probs: np.ndarray) -> float:
    return float(np.log(np.clip(probs[np.arange(len(truth)), truth], 1e-12, 1)).mean())


def _calibrated_likelihood(truth: np.ndarray, probs: np.ndarray) -> float:
    logits_NC = np.log(np.clip(probs, 1e-12, 1))
    return _log_likelihood(truth, softmax(logits_NC / fit_temperature(logits_NC, truth)))


def _calibrated_set_likelihood(truth: np.ndarray, probs: np.ndarray) -> float:
    kept = np.clip(probs, 1e-12, 1 - 1e-12)
    logits_NC = np.log(kept) - np.log1p(-kept)
    return _set_likelihood(truth, 1 / (1 + np.exp(-logits_NC / fit_set_temperature(logits_NC, truth))))


def _accuracy(truth: np.ndarray, probs: np.ndarray) -> float:
    return float((probs.argmax(axis=1) == truth).mean())


def _of_likeliest(measure: str, truth: np.ndarray, probs: np.ndarray) -> float:
    return score_of(measure, truth, probs.argmax(axis=1))


def _set_likelihood(truth: np.ndarray, probs: np.ndarray) -> float:
    return -float(row_set_losses(truth, probs).mean())


def _set_accuracy(truth: np.ndarray, probs: np.ndarray) -> float:
    return float(((probs >= EVEN) == truth).all(axis=1).mean())


def _macro(truth: np.ndarray, probs: np.ndarray) -> float:
    return _set_f1(truth, probs, "macro")


def _micro(truth: np.ndarray, probs: np.ndarray) -> float:
    return _set_f1(truth, probs, "micro")


def _set_f1(truth: np.ndarray, probs: np.ndarray, average: Average) -> float:
    guess = probs >= fit_thresholds(probs, truth, metric=f"{average}_f1").values
    sums = label_sums(truth, guess, np.arange(len(truth)), seed=0)
    return float(f1_of(sums.sum(axis=0)[None], average)[0])
