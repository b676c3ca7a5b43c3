"""The seconds of a search: how many there are, what they are for, and how many are left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tagsmith.config import Config
from tagsmith.tuning.recipes import Entrant, are_few

SHARES = {"probes": 0.15, "trials": 0.45, "winner": 0.5}
"""Of the budget: what the passes over the sample may take, what may be over when the last trial ends, and what is kept
for training the winner on all rows."""

LEAST_TRIALS = 0.3
"""What may be over when the last trial ends, where not even the quickest tuning has time for all of its epochs."""

PASSES, LONGEST, SHORTEST = 3, 1800.0, 60.0
"""The budget where none is given: so many passes of all texts through all blocks, within these seconds."""

LATEST, LATEST_FEW = 0.95, 1.15
"""Of the budget: when the winner's training should have ended. With a few rows of each label it takes seconds, and what
draws texts together must not lose them to a start that was slow: a budget is kept within a fifth."""


@dataclass
class Clock:
    """The seconds of a budget since reading began."""

    budget: float
    started: float
    now: Callable[[], float] = time.perf_counter

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self.now() - self.started

    def left(self, share: float) -> float:
        """Seconds until that share of the budget is over."""
        return share * self.budget - self.spent


def budget_of(config: Config, entrants: Sequence[Entrant]) -> float:
    """The seconds asked for, or three passes of all texts through all blocks, within a minute and half an hour."""
    asked = config.tuning.budget_seconds
    if asked is not None:
        return asked
    return float(np.clip(PASSES * max(each.reference_pass() for each in entrants), SHORTEST, LONGEST))


def latest(entrants: Sequence[Entrant]) -> float:
    """The share of the budget that may be over when the winner has learnt."""
    return LATEST_FEW if are_few(entrants) else LATEST


def trials_end(trainings: Sequence[float], budget: float, *, members: int) -> float:
    """The share of the budget that may be over when the last trial ends, by the seconds of trainings that may follow.

    Where even the longest of them is over soon, `members` times, trials have more time; where not even the quickest has
    time for all of its epochs, less.
    """
    longest, quickest = max(trainings, default=0.0), min(trainings, default=0.0)
    least = float(np.clip(LATEST - quickest / budget, LEAST_TRIALS, SHARES["trials"]))
    return max(least, 0.85 - 1.2 * members * longest / budget)
