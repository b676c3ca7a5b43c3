"""Fewer training rows for the LLM than there are, where time does not allow for all; each label in its share."""

from __future__ import annotations

import numpy as np

from tagsmith.data.table import Table


def limited(train: Table, most: int, *, seed: int) -> Table:
    """A sample of at most so many rows, in their order, with a line of history; no label is left out.

    Where a row may have several labels, rows are drawn by the first of them.
    """
    if most >= len(train):
        return train
    firsts = np.array([labels[0] if labels else "" for labels in train.label_sets])
    drawn = np.random.default_rng([seed, 7]).permutation(len(train))
    by_label = drawn[np.argsort(firsts[drawn], kind="stable")]
    chosen = by_label[np.linspace(0, len(train) - 1, most).round().astype(int)]
    kept = np.union1d(chosen, _of_missing_labels(train, chosen, drawn))
    frame = train.take(kept).frame
    reason = "a sample of each label's rows for the LLM (tuning.most_rows); TF-IDF learns from all"
    return train.changed(frame, step="limit", reason=reason)


def _of_missing_labels(train: Table, chosen: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The first drawn row of each label that no chosen row has."""
    sets, found = train.label_sets, dict[str, int]()
    present = {label for row in chosen for label in sets[row]}
    for row in drawn:
        for label in sets[row]:
            if label not in present:
                found.setdefault(label, int(row))
    return np.array(sorted(found.values()), dtype=np.int64)
