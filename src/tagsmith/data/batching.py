"""Which rows are computed together: by length, so that next to nothing is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STEPS_PER_MEGA_BATCH = 50


def length_sorted(lengths: np.ndarray, *, tokens_per_batch: int) -> list[np.ndarray]:
    """Batches of row indices, longest first, each a rectangle of at most `tokens_per_batch` (or one row)."""
    return packed(np.argsort(-lengths, kind="stable"), lengths, tokens_per_batch=tokens_per_batch)


def packed(rows: np.ndarray, lengths: np.ndarray, *, tokens_per_batch: int) -> list[np.ndarray]:
    """Rows, longest first, cut into rectangles of at most `tokens_per_batch` (or one row)."""
    batches: list[np.ndarray] = []
    start = 0
    while start < len(rows):
        widest = max(1, int(lengths[rows[start]]))
        stop = start + max(1, tokens_per_batch // widest)
        batches.append(rows[start:stop])
        start = stop
    return batches


def training_steps(lengths: np.ndarray, *, rows_per_step: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One epoch: steps of `rows_per_step` rows each (the last may be smaller), of like lengths, in random order.

    Rows are shuffled, cut into mega-batches of 50 steps, sorted by length inside each, cut into steps, and the steps
    are shuffled again. The order depends on `seed` and `epoch` alone, so that a resumed run sees the same one.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    steps: list[np.ndarray] = []
    for start in range(0, len(order), rows_per_step * STEPS_PER_MEGA_BATCH):
        mega = order[start : start + rows_per_step * STEPS_PER_MEGA_BATCH]
        mega = mega[np.argsort(-lengths[mega], kind="stable")]
        cut = [mega[i : i + rows_per_step] for i in range(0, len(mega), rows_per_step)]
        steps += [cut[i] for i in generator.permutation(len(cut))]
    return steps


def padding_share(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """The share of a list of rectangles that is padding, in [0, 1)."""
    cells = sum(len(rows) * int(lengths[rows].max(initial=0)) for rows in batches)
    real = sum(int(lengths[rows].sum()) for rows in batches)
    return 1 - real / cells if cells else 0.0
