"""The score by which tuning chooses its best step on the validation rows: larger is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], float]
"""From truth `(N,)` and probabilities `(N, C)` to a score."""


def selection_metric(name: str) -> Score:
    """The score named `log_loss` (its negative), `accuracy` or `macro_f1`."""
    return {"log_loss": _log_likelihood, "accuracy": _accuracy, "macro_f1": _macro_f1}[name]


def _log_likelihood(truth: np.ndarray, probs: np.ndarray) -> float:
    return float(np.log(np.clip(probs[np.arange(len(truth)), truth], 1e-12, 1)).mean())


def _accuracy(truth: np.ndarray, probs: np.ndarray) -> float:
    return float((probs.argmax(axis=1) == truth).mean())


def _macro_f1(truth: np.ndarray, probs: np.ndarray) -> float:
    guess = probs.argmax(axis=1)
    scores = []
    for label in np.union1d(truth, guess):
        hits = np.sum((truth == label) & (guess == label))
        scores.append(2 * hits / (np.sum(truth == label) + np.sum(guess == label)))
    return float(np.mean(scores))
