"""Which label is answered, by the measure that counts: the likeliest, one that its share is held against, the cheapest.

Probabilities are calibrated first and stay what they are; only the label that is answered follows the measure.

Axes: N rows, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.evaluation.scaling import FOLDS, folds_of
from tagsmith.model.decision import Decision, decided

TAUS = np.linspace(0, 1, 21)
FEWEST_ROWS = 50
"""With fewer rows nothing is fitted, and the likeliest label is answered."""

MEASURES = {"macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}
"""Measures by which each label counts as much as any other, so that rare ones deserve more than their share."""


@dataclass(frozen=True)
class Decided:
    """A decision, None for the likeliest label, and how it was found.

    `before` and `after` are the measure of rows that the decision was not fitted on, without and with it.
    """

    decision: Decision | None
    kind: str
    tau: float | None = None
    measure: str | None = None
    rows: int | None = None
    before: float | None = None
    after: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """What `calibration.decision` of report.json says of it."""
        found: dict[str, Any] = {"kind": self.kind, "text": self.text}
        for name in ("tau", "measure", "rows"):
            found |= {} if getattr(self, name) is None else {name: getattr(self, name)}
        if self.before is not None:
            found["out_of_fold"] = {"before": self.before, "after": self.after, "folds": FOLDS}
        return found

    @property
    def text(self) -> str:
        """The decision in a sentence or two."""
        if self.kind == "costs":
            return "The label that is expected to cost least is answered, which may not be the likeliest one."
        measure = MEASURES.get(self.measure or "", "")
        if self.before is None or self.after is None:
            return (
                f"The likeliest label is answered: {self.rows} held-out rows are too few to fit anything for {measure}."
            )
        told = f"{measure} of {self.rows} held-out rows, out of fold: {100 * self.before:.1f} by the likeliest label"
        if self.decision is None:
            return f"The likeliest label is answered; holding the labels' shares against them gains nothing ({told})."
        return (
            f"For {measure} a label's probability is divided by its share to the power {self.tau:.2f} before one is "
            f"answered, which may not be the likeliest ({told}, {100 * self.after:.1f} so)."
        )


def fit_prior_decision(
    probs: np.ndarray, truth: np.ndarray, groups: np.ndarray, *, shares: np.ndarray, measure: str, seed: int
) -> Decided:
    """How far the labels' `shares (C,)` are held against them for `measure`, by calibrated `probs (N, C)`.

    It is kept where it is better on rows of other folds than those it was fitted on, in folds of whole groups.
    """
    if len(truth) < FEWEST_ROWS:
        return Decided(None, "likeliest", measure=measure, rows=len(truth))
    answers = np.stack([decided(probs, Decision.by_prior(shares, tau)) for tau in TAUS])
    folds, apart = folds_of(groups, seed=seed), np.empty(len(truth), dtype=np.int64)
    for fold in np.unique(folds):
        held = folds == fold
        apart[held] = answers[_best(answers[:, ~held], truth[~held], groups[~held], measure, seed=seed)][held]
    before, after = (score_of(measure, truth, each) for each in (answers[0], apart))
    chosen = _best(answers, truth, groups, measure, seed=seed)
    found = Decided(None, "likeliest", measure=measure, rows=len(truth), before=before, after=after)
    if after <= before or not chosen:
        return found
    tau = float(TAUS[chosen])
    return Decided(Decision.by_prior(shares, tau), "prior", tau, measure, len(truth), before, after)


def score_of(measure: str, truth: np.ndarray, answers: np.ndarray, weights: np.ndarray | None = None) -> float:
    """`accuracy`, `macro_f1` or `balanced_accuracy` of answers `(N,)`; `weights (N,)` say how often each row counts."""
    classes = int(max(truth.max(), answers.max())) + 1
    counts = np.bincount(truth * classes + answers, weights=weights, minlength=classes**2).reshape(classes, classes)
    hits, told, true = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    if measure == "accuracy":
        return float(hits.sum() / counts.sum())
    if measure == "balanced_accuracy":
        return float((hits[true > 0] / true[true > 0]).mean())
    occurring = told + true > 0
    return float((2 * hits[occurring] / (told + true)[occurring]).mean())


_RESAMPLES = 100


def _best(answers: np.ndarray, truth: np.ndarray, groups: np.ndarray, measure: str, *, seed: int) -> int:
    """Which of `answers (T, N)` is best: the one with the best mean over resamples of groups, the first of equals.

    A mean over resamples is a smoothed score: a step of one row's answer in a rare label does not decide.
    """
    distinct, of_row = np.unique(groups, return_inverse=True)
    random, totals = np.random.default_rng([seed, 11]), np.zeros(len(answers))
    for _ in range(_RESAMPLES):
        drawn = np.bincount(random.integers(0, len(distinct), len(distinct)), minlength=len(distinct))[of_row]
        totals += [score_of(measure, truth, each, weights=drawn) for each in answers]
    return int(totals.argmax())
