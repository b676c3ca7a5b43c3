"""Which test rows a page quotes: the surest wrong answers, and those behind each cell of the confusion matrix.

Axes: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tagsmith.data.table import Table
from tagsmith.evaluation.page.texts import CellText, Mishap
from tagsmith.labels import Labels
from tagsmith.model.decision import Rule, decided

MOST_MISTAKES = 20


def mistakes(
    table: Table,
    truth: np.ndarray,
    probs_NC: np.ndarray,
    labels: Labels,
    *,
    thresholds: Rule = None,
    most: int = MOST_MISTAKES,
) -> list[Mishap]:
    """The surest wrong answers first; a set of labels is as sure as its surest wrong decision.

    `thresholds (C,)` where `truth` is `(N, C)` bool, or a decision.
    """
    texts, rows = table.texts, table.rows
    answers = decided(probs_NC, thresholds)
    found = (_wrong if answers.ndim == 1 else _wrong_sets)(truth, probs_NC, labels, answers)
    surest = sorted(found, key=lambda each: -each[3])[:most]
    return [Mishap(int(rows[i]), texts[i], told, said, surety) for i, told, said, surety in surest]


def cell_texts(table: Table, truth: np.ndarray, probs_NC: np.ndarray, rule: Rule = None) -> list[CellText]:
    """Each test row with its cell `(truth, answer)`; nothing where `truth` is `(N, C)`: there is no matrix then."""
    if truth.ndim > 1:
        return []
    answers = decided(probs_NC, rule)
    sureties = probs_NC[np.arange(len(answers)), answers]
    return [
        CellText(int(row), text, int(told), int(said), float(surety))
        for row, text, told, said, surety in zip(table.rows, table.texts, truth, answers, sureties, strict=True)
    ]


_Wrong = tuple[int, str, str, float]
"""A place, the truth, the answer, and how sure that was."""


def _wrong(truth: np.ndarray, probs_NC: np.ndarray, labels: Labels, answers: np.ndarray) -> Iterator[_Wrong]:
    for i in np.flatnonzero(answers != truth):
        yield int(i), labels.names[truth[i]], labels.names[answers[i]], float(probs_NC[i, answers[i]])


def _wrong_sets(truth: np.ndarray, probs_NC: np.ndarray, labels: Labels, answers: np.ndarray) -> Iterator[_Wrong]:
    surety_N = np.where(truth != answers, np.where(answers, probs_NC, 1 - probs_NC), 0.0).max(axis=1)

    def named(has_C: np.ndarray) -> str:
        return ", ".join(labels.decode(np.flatnonzero(has_C))) or "-"

    for i in np.flatnonzero((truth != answers).any(axis=1)):
        yield int(i), named(truth[i]), named(answers[i]), float(surety_N[i])
