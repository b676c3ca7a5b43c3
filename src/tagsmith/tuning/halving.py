"""Successive halving: many recipes learn from few rows, the best third of them from three times as many, and so on.

Which rungs there are is settled by forecast costs before the first trial; results only say who climbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHARES = (1 / 9, 1 / 3, 1.0)
"""Of the sample's rows, rung by rung; the judged rows are the same on all of them."""

FEWEST = 300
"""Rows that the lowest rung learns from at least. Fewer tell what begins well, not what ends well: after 167 rows
of emotion a random head lost 1.06 a row, more than a head alone (0.85), and was dropped; on all rows it has won."""


@dataclass(frozen=True)
class Cost:
    """What one recipe takes on the whole sample, in seconds: to learn, and to answer the judged rows."""

    learning: float
    answering: float

    def on(self, share: float) -> float:
        """The same with a share of the rows to learn from."""
        return share * self.learning + self.answering


@dataclass(frozen=True)
class Rung:
    """So many recipes learn from this share of the rows."""

    share: float
    entrants: int


@dataclass(frozen=True)
class Ladder:
    """The recipes that enter, by their places, and the rungs; one rung where there is time for all on all rows."""

    entrants: tuple[int, ...]
    rungs: tuple[Rung, ...]


def plan_ladder(costs: Sequence[Cost], left: float, *, rows: int) -> Ladder:
    """As many recipes as `left` seconds allow, the first ones first, on as few rungs as that takes.

    `rows` are those that a recipe learns from on the last rung.
    """
    at_once, most = _fitting(costs, left), sum(share * rows >= FEWEST for share in SHARES)
    for count in range(len(costs), len(at_once), -1):
        for rungs in (_rungs(count, number) for number in range(2, most + 1)):
            if _most_seconds(costs[:count], rungs) <= left:
                return Ladder(tuple(range(count)), rungs)
    return Ladder(at_once, (Rung(1.0, len(at_once)),))


def _fitting(costs: Sequence[Cost], left: float) -> tuple[int, ...]:
    """The recipes that there is time for on all rows; a cheaper one may take the place of one that is too dear."""
    found = []
    for place, cost in enumerate(costs):
        if cost.on(1.0) <= left:
            found.append(place)
            left -= cost.on(1.0)
    return tuple(found)


def _rungs(count: int, number: int) -> tuple[Rung, ...]:
    """A third of the recipes go on from each of so many rungs; two of them at least reach the last one."""
    return tuple(Rung(share, min(count, max(2, -(-count // 3**i)))) for i, share in enumerate(SHARES[-number:]))


def _most_seconds(costs: Sequence[Cost], rungs: Sequence[Rung]) -> float:
    """What the rungs take at most: if those that climb are the dearest."""
    return sum(sum(sorted((cost.on(rung.share) for cost in costs), reverse=True)[: rung.entrants]) for rung in rungs)
