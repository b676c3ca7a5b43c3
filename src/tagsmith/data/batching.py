"""Which rows are computed together: by length, so that there is next to nothing to pad where rectangles are needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

STEPS_PER_MEGA_BATCH = 50
MOST_EVENED = 16


def length_sorted(lengths: np.ndarray, *, tokens_per_batch: int) -> list[np.ndarray]:
    """Batches of row indices, longest first, each a rectangle of at most `tokens_per_batch` (or one row)."""
    return packed(np.argsort(-lengths, kind="stable"), lengths, tokens_per_batch=tokens_per_batch)


def evenly_sorted(lengths: np.ndarray, *, tokens_per_batch: int) -> list[np.ndarray]:
    """As `length_sorted`; where that makes a few batches they are of like size, and 2, 4, 8 or 16 in number at most.

    Cut at the budget, the second of two batches may be a sliver, for which one core works while the other rests. What
    is cut depends on the lengths alone and not on the number of cores, nor do the answers.
    """
    batches = length_sorted(lengths, tokens_per_batch=tokens_per_batch)
    wanted = 1 << max(0, len(batches) - 1).bit_length()
    if not 1 < len(batches) <= wanted <= MOST_EVENED:
        return batches
    low, high = 1, tokens_per_batch
    while low < high:
        budget = (low + high) // 2
        found = length_sorted(lengths, tokens_per_batch=budget)
        if len(found) > wanted:
            low = budget + 1
        else:
            high, batches = budget, found
    return batches


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


@dataclass(frozen=True)
class Work:
    """What batches cost a transformer's block: `tokens` pass its linear layers, `pairs` of tokens meet in attention.

    Texts lie one after the other, so that no padding is a token; `cells` are the pairs that attention computes where it
    has no kernel for unequal lengths: those of the rectangle around a batch.
    """

    tokens: float = 0.0
    pairs: float = 0.0
    cells: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.cells + other.cells)

    def __mul__(self, times: float) -> Work:
        return Work(self.tokens * times, self.pairs * times, self.cells * times)

    def padding(self, *, weights: int, width: int) -> float:
        """The share of multiplications that is padding, in [0, 1); a block has so many weights, a state that width."""
        real, computed = (self.tokens * weights + 2 * width * met for met in (self.pairs, self.cells))
        return 1 - real / computed if computed else 0.0


def work_of(lengths: np.ndarray, batches: Iterable[np.ndarray]) -> Work:
    """The work of batches of rows."""
    found = Work()
    for rows in batches:
        own = lengths[rows].astype(np.float64)
        found += Work(float(own.sum()), float((own**2).sum()), float(len(own) * own.max(initial=0.0) ** 2))
    return found
