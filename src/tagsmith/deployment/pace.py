"""How long an engine will take: by what waiting times are told, requests are let in, and batches are bounded.

A batch of `t` tokens takes `slowness * (fixed + each * t)` seconds. The two constants were measured when the engine
warmed up; the slowness, 1 then, is followed batch by batch, since a machine is not always as free as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_FORGETTING = 0.3
"""Weight of the newest batch."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a batch: `fixed_s` whatever is in it, and `token_s` for each token."""

    fixed_s: float = 0.0
    token_s: float = 0.0

    @classmethod
    def of(cls, small: tuple[int, float], large: tuple[int, float]) -> Cost:
        """The cost by which two batches, each with its tokens and its seconds, took as long as they did."""
        (few, short_s), (many, long_s) = small, large
        token_s = max(long_s - short_s, 0.0) / (many - few) if many > few else 0.0
        return cls(max(short_s - few * token_s, 0.0), token_s)

    def seconds(self, tokens: int) -> float:
        """Seconds of a batch of so many tokens."""
        return self.fixed_s + self.token_s * tokens


class Pace:
    """Follows the batches of one engine."""

    def __init__(self, cost: Cost, *, batch_tokens: int, clock: Callable[[], float]) -> None:
        self._cost = cost
        self._most = batch_tokens
        self._clock = clock
        self._mean, self._deviation = 1.0, 0.0
        self._out: tuple[int, float] | None = None

    def began(self, tokens: int) -> None:
        """A batch goes out."""
        self._out = (tokens, self._clock())

    def ended(self, *, whole: bool) -> None:
        """It has come back; one that failed says nothing of the pace."""
        assert self._out is not None, "no batch was out"
        tokens, start = self._out
        self._out = None
        expected = self._cost.seconds(tokens)
        if whole and expected:
            off = (self._clock() - start) / expected - self._mean
            self._mean += _FORGETTING * off
            self._deviation += _FORGETTING * (abs(off) - self._deviation)

    @property
    def slowness(self) -> float:
        """How many times as long as at first a batch takes, doubtful as that is; a batch that is overdue counts too."""
        known = self._mean + self._deviation
        if self._out is None:
            return known
        tokens, start = self._out
        expected = self._cost.seconds(tokens)
        return max(known, (self._clock() - start) / expected) if expected else known

    def wait_s(self, tokens: int) -> float:
        """Seconds until so many tokens that wait, and the batch that is out, are computed."""
        slowness, left = self.slowness, 0.0
        if self._out is not None:
            out, start = self._out
            left = max(0.0, slowness * self._cost.seconds(out) - (self._clock() - start))
        batches = math.ceil(tokens / self._most)
        return left + slowness * (batches * self._cost.fixed_s + tokens * self._cost.token_s)

    def tokens_within(self, seconds: float) -> int:
        """How many tokens a batch may have that is to take no longer than so; never under an eighth of the most."""
        room = seconds / max(self._mean + self._deviation, 1e-9) - self._cost.fixed_s
        fitting = room / self._cost.token_s if self._cost.token_s else math.inf
        return int(min(self._most, max(fitting, self._most / 8)))
