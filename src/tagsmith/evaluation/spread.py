"""Several tunings on the same test rows: the points that each makes, their mean and their spread.

Axes: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tagsmith.evaluation.decisions import score_of
from tagsmith.evaluation.label_sets import f1_of, label_sums, row_set_losses
from tagsmith.evaluation.selection import selection_metric
from tagsmith.model.decision import Rule, decided


def points(truth: np.ndarray, probs: np.ndarray, *, thresholds: Rule = None) -> dict[str, float]:
    """Measures of probabilities `(N, C)` under their names in `test` of report.json, without intervals.

    `thresholds (C,)` where `truth` is `(N, C)` bool.
    """
    guess = decided(probs, thresholds)
    if guess.ndim == 1:
        named = {name: score_of(name, truth, guess) for name in ("accuracy", "macro_f1")}
        return named | {"log_loss": -selection_metric("log_loss")(truth, probs)}
    sums = label_sums(truth, guess, np.arange(len(truth)), seed=0).sum(axis=0)[None]
    return {
        "accuracy": float((guess == truth).all(axis=1).mean()),
        "micro_f1": float(f1_of(sums, "micro")[0]),
        "macro_f1": float(f1_of(sums, "macro")[0]),
        "log_loss": float(row_set_losses(truth, probs).mean()),
    }


def spread_of(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean and the standard deviation (of a sample) of each measure in `seeds` of report.json; empty below two.

    Those of the test rows have the names that `points` gives them.
    """
    if len(seeds) < 2:
        return {}
    rows = [{**each["test"], **{name: each[name] for name in _VALIDATED if name in each}} for each in seeds]
    values = {name: np.array([row[name] for row in rows if name in row]) for name in rows[0]}
    return {
        name: {"mean": float(each.mean()), "standard_deviation": float(each.std(ddof=1))}
        for name, each in values.items()
        if len(each) > 1
    }


_VALIDATED = ("validation_loss", "validation_accuracy")
