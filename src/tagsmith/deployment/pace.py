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


@dataclass(frozen=True, eq=False)
class Out:
    """A batch that is out: its tokens, and when it went."""

    tokens: int
    start: float


class Pace:
    """Follows the batches of one engine, which computes in so many `lanes` at a time."""

    def __init__(self, cost: Cost, *, batch_tokens: int, clock: Callable[[], float], lanes: int = 1) -> None:
        self._cost = cost
        self._most = batch_tokens
        self._clock = clock
        self._lanes = lanes
        self._mean, self._deviation = 1.0, 0.0
        self._out: list[Out] = []

    def began(self, tokens: int) -> Out:
        """A batch goes out."""
        out = Out(tokens, self._clock())
        self._out.append(out)
        return out

    def ended(self, out: Out, *, whole: bool) -> None:
        """It has come back; one that failed says nothing of the pace."""
        self._out.remove(out)
        expected = self._cost.seconds(out.tokens)
        if whole and expected:
            off = (self._clock() - out.start) / expected - self._mean
            self._mean += _FORGETTING * off
            self._deviation += _FORGETTING * (abs(off) - self._deviation)

    @property
    def slowness(self) -> float:
        """How many times as long as at first a batch takes, doubtful as that is; batches that are overdue count too."""
        taken = ((self._clock() - out.start, self._cost.seconds(out.tokens)) for out in self._out)
        return max([self._mean + self._deviation, *(so_far / expected for so_far, expected in taken if expected)])

    def wait_s(self, tokens: int) -> float:
        """Seconds until so many tokens that wait, and the batches that are out, are computed."""
        slowness = self.slowness
        now = self._clock()
        left = sum(max(0.0, slowness * self._cost.seconds(out.tokens) - (now - out.start)) for out in self._out)
        batches = math.ceil(tokens / self._most)
        return (left + slowness * (batches * self._cost.fixed_s + tokens * self._cost.token_s)) / self._lanes

    def tokens_within(self, seconds: float) -> int:
        """How many tokens a batch may have that is to take no longer than so; never under an eighth of the most."""
        room = seconds / max(self._mean + self._deviation, 1e-9) - self._cost.fixed_s
        fitting = room / self._cost.token_s if self._cost.token_s else math.inf
        return int(min(self._most, max(fitting, self._most / 8)))
