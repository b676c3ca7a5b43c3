"""The parts of a report beyond scores: reliability, abstention, slices, expected cost, and the table of answers.

Axes: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tagsmith.evaluation.abstention import answered, risk_coverage, surety
from tagsmith.evaluation.at_prior import scores_at_prior
from tagsmith.evaluation.costs import cheapest_answers, cost_matrix, expected_cost
from tagsmith.evaluation.label_sets import claims
from tagsmith.evaluation.proportions import proportion
from tagsmith.evaluation.reliability import reliability
from tagsmith.evaluation.score_table import score_table
from tagsmith.evaluation.slices import slices_of
from tagsmith.labels import Labels
from tagsmith.model.decision import Rule, decided

Costs = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Asked:
    """What the parts need beside truth and probabilities.

    `rows (N,)` are numbers in the source; `facets` give a value for each row by which accuracy is sliced, None for
    none; `costs[truth][answer]` are what answers cost, and `prior (C,)` the shares of labels where the classifier
    works, None where they are not known; `sureties (C,)` are those from which labels are answered, None where all are,
    and `certificate` is what is known of that.
    """

    rows: np.ndarray | None = None
    facets: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    costs: Costs | None = None
    prior: np.ndarray | None = None
    sureties: np.ndarray | None = None
    certificate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Truth `(N,)`, or `(N, C)` bool where a text may have several labels, probabilities `(N, C)`, and groups `(N,)`.

    `thresholds (C,)` are None where the likeliest label is answered, a decision where another one may be.
    """

    truth: np.ndarray
    probs: np.ndarray
    groups: np.ndarray
    labels: Labels
    thresholds: Rule = None

    @property
    def right(self) -> np.ndarray:
        """Which rows `(N,)` are answered rightly; a set of labels must be right in whole."""
        return right_rows(self.truth, self.probs, self.thresholds)


def right_rows(truth: np.ndarray, probs: np.ndarray, thresholds: Rule) -> np.ndarray:
    """Which rows `(N,)` bool are answered rightly; a set of labels must be right in whole."""
    answers = decided(probs, thresholds)
    return answers == truth if answers.ndim == 1 else (answers == truth).all(axis=1)


def sureness(probs: np.ndarray, thresholds: Rule) -> np.ndarray:
    """How sure answers are `(N,)`; a set of labels is as sure as the least sure of its decisions."""
    return np.maximum(probs, 1 - probs).min(axis=1) if isinstance(thresholds, np.ndarray) else surety(probs)


def sections_of(
    measured: Measured,
    asked: Asked,
    *,
    baseline_probs: Mapping[str, np.ndarray],
    baseline_rules: Mapping[str, Rule] | None = None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The fields of a Report that come from test rows beside scores, as plain data."""
    truth, probs, groups, thresholds = measured.truth, measured.probs, measured.groups, measured.thresholds
    rows = np.arange(len(probs)) if asked.rows is None else asked.rows
    sections: dict[str, Any] = {
        "reliability": _reliability(measured),
        "abstention": _abstention(measured, asked),
        "slices": slices_of(measured.right, groups, _facets(measured, asked)),
        "score_table": score_table(rows, truth, probs, thresholds, groups=groups),
    }
    if asked.prior is not None and not isinstance(thresholds, np.ndarray):
        sections["at_prior"] = scores_at_prior(
            truth,
            decided(probs, thresholds),
            groups,
            labels=measured.labels,
            prior=asked.prior,
            resamples=resamples,
            seed=seed,
        )
    if asked.costs:
        matrix = cost_matrix(asked.costs, measured.labels)
        answers = {"model": decided(probs, thresholds), "cheapest_answers": cheapest_answers(probs, matrix)}
        answers |= {name: decided(each, (baseline_rules or {}).get(name)) for name, each in baseline_probs.items()}
        prior = np.bincount(truth, minlength=len(measured.labels)) / len(truth) if asked.prior is None else asked.prior
        drawn = {"resamples": resamples, "seed": seed}
        sections["expected_cost"] = expected_cost(truth, answers, groups, matrix=matrix, prior=prior, **drawn)
    return sections


def _reliability(measured: Measured) -> list[dict[str, Any]]:
    if not isinstance(measured.thresholds, np.ndarray):
        answers = decided(measured.probs, measured.thresholds)
        claimed = measured.probs[np.arange(len(answers)), answers]
        return reliability(claimed, measured.right, measured.groups)
    cells = claims(measured.groups, len(measured.labels))
    return reliability(measured.probs.ravel(), measured.truth.ravel(), cells)


def _abstention(measured: Measured, asked: Asked) -> dict[str, Any]:
    right = measured.right
    found = risk_coverage(sureness(measured.probs, measured.thresholds), right) | dict(asked.certificate)
    if asked.sureties is not None:
        kept = answered(measured.probs, asked.sureties)
        found["test"] = {
            "answered": int(kept.sum()),
            "coverage": proportion(kept, measured.groups).as_dict(),
            "error": proportion(~right[kept], measured.groups[kept]).as_dict(),
        }
    return found


def _facets(measured: Measured, asked: Asked) -> Mapping[str, Sequence[str | None]]:
    if isinstance(measured.thresholds, np.ndarray):
        return asked.facets
    return {"label": [measured.labels.names[i] for i in measured.truth]} | dict(asked.facets)
