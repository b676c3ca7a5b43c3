"""What was said of each test row, for pictures that let a reader move a threshold: numbers, and no text.

Axes: N rows, C labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tagsmith.model.decision import Rule, decided

MOST_ROWS = 5000
MOST_NUMBERS = 100_000
_PLACES = 4


def score_table(
    rows: np.ndarray,
    truth: np.ndarray,
    probs: np.ndarray,
    thresholds: Rule,
    *,
    groups: np.ndarray,
) -> dict[str, Any]:
    """Columns with an entry for each row: its number in the source, ids of group, truth and answer, probabilities.

    `truth` and `answer` are lists of ids where a text may have several labels. At most 5,000 rows and 100,000
    probabilities (rounded to 4 places), evenly spaced over all rows; `of` says how many there are.
    """
    most = min(MOST_ROWS, max(1, MOST_NUMBERS // probs.shape[1]))
    kept = np.arange(len(probs))
    if len(kept) > most:
        kept = np.unique(np.linspace(0, len(probs) - 1, most).round().astype(int))
    true, found = (_ids(each) for each in (truth[kept], decided(probs[kept], thresholds)))
    return {
        "of": len(probs),
        "row": rows[kept].tolist(),
        "group": np.unique(groups[kept], return_inverse=True)[1].tolist(),
        "truth": true,
        "answer": found,
        "probabilities": np.round(probs[kept], _PLACES).tolist(),
    }


def _ids(answers: np.ndarray) -> list:
    return answers.tolist() if answers.ndim == 1 else [np.flatnonzero(row).tolist() for row in answers]
