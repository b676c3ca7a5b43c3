"""Which texts are answered together, and when. Knows no HTTP and no model, and asks the clock that it is given.

A text goes out at once when the engine, or a lane of it, rests. While all lanes work texts gather; when one has
finished they go together, at the latest `max_wait_s` after the oldest of them came. Texts of like length share a batch
first.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

J = TypeVar("J")

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
"""Lengths up to which texts count as alike; one of `n` tokens costs the smallest of these that holds it."""


class Full(Exception):  # noqa: N818 - it is an answer to `add`, not a fault
    """No room in the queue for these texts."""


@dataclass(frozen=True)
class Bounds:
    """What a batch and the queue may hold. Tokens of a batch are counted with their padding."""

    batch_texts: int = 256
    batch_tokens: int = 2048
    max_wait_s: float = 0.002
    queue_texts: int = 512
    queue_tokens: int = 32768


@dataclass(eq=False)
class Waiting(Generic[J]):
    """A text in the queue: its tokens, when it came, by when it must go out, and whatever its owner ties to it."""

    job: J
    tokens: int
    arrived: float
    deadline: float
    number: int
    here: bool = field(default=True)


class Batcher(Generic[J]):
    """A bounded queue that hands out a batch to each of `lanes` of the engine, the oldest text always in the next."""

    def __init__(self, bounds: Bounds, *, clock: Callable[[], float], lanes: int = 1) -> None:
        self.bounds = bounds
        self.lanes = lanes
        self.texts = 0
        self.tokens = 0
        self._clock = clock
        self._numbers = itertools.count()
        self._lines: dict[int, deque[Waiting[J]]] = {}
        self._out = 0
        self._ended = -math.inf

    def __len__(self) -> int:
        return self.texts

    @property
    def busy(self) -> bool:
        """Whether every lane has a batch."""
        return self._out >= self.lanes

    def add(self, jobs: Sequence[tuple[J, int]], *, deadline: float = math.inf) -> list[Waiting[J]]:
        """Queue jobs with their numbers of tokens, all of them or none. Full when there is no room."""
        tokens = sum(size for _, size in jobs)
        if self.texts + len(jobs) > self.bounds.queue_texts or self.tokens + tokens > self.bounds.queue_tokens:
            raise Full
        now = self._clock()
        queued = [Waiting(job, size, now, deadline, next(self._numbers)) for job, size in jobs]
        for waiting in queued:
            self._lines.setdefault(_width(waiting.tokens), deque()).append(waiting)
        self.texts += len(queued)
        self.tokens += tokens
        return queued

    def cancel(self, waiting: Waiting[J]) -> bool:
        """Take a text back; False when it has gone out already."""
        if not waiting.here:
            return False
        self._leave(waiting)
        return True

    def expired(self) -> list[Waiting[J]]:
        """Take the texts out whose deadline has passed, in the order in which they came."""
        now = self._clock()
        late = [each for line in self._lines.values() for each in line if each.here and each.deadline <= now]
        for waiting in late:
            self._leave(waiting)
        return sorted(late, key=lambda waiting: waiting.number)

    def take(self) -> list[Waiting[J]]:
        """The next batch, or nothing where none is due, as while every lane has one, until `finished` is called."""
        due = self.due_at()
        if due is None or due > self._clock():
            return []
        batch = self._gather()
        for waiting in batch:
            self._leave(waiting)
        self._out += 1
        return batch

    def finished(self, *, batch_tokens: int | None = None) -> None:
        """A batch that was out has come back; the next ones may hold so many tokens (None: as many as before)."""
        if batch_tokens is not None:
            self.bounds = replace(self.bounds, batch_tokens=batch_tokens)
        self._out -= 1
        self._ended = self._clock()

    def due_at(self) -> float | None:
        """When the next batch is to go out (it may be in the past); None while no lane is free or nothing waits."""
        if self.busy:
            return None
        oldest = min((line[0] for line in self._tidy().values()), key=lambda head: head.number, default=None)
        if oldest is None:
            return None
        latest = oldest.arrived + self.bounds.max_wait_s
        if self._is_full() or oldest.arrived - self._ended >= self.bounds.max_wait_s:
            return oldest.arrived
        return latest

    def _is_full(self) -> bool:
        return self.texts >= self.bounds.batch_texts or self.tokens >= self.bounds.batch_tokens

    def _gather(self) -> list[Waiting[J]]:
        """The oldest text, then those of its length, then all others, oldest first each, as far as the budget goes.

        Only those whose turn is near are looked at: else a text of a rare length would be overtaken by all that come.
        """
        near = self._near()
        led_by = _width(near[0].tokens)
        in_turn = sorted(near, key=lambda waiting: _width(waiting.tokens) != led_by)  # it keeps the order otherwise
        batch: list[Waiting[J]] = []
        # What waits is shared out among free lanes, lest one computes for all while another rests.
        left = min(self.bounds.batch_tokens, math.ceil(sum(map(_width_of, near)) / (self.lanes - self._out)))
        for waiting in in_turn:
            width = _width(waiting.tokens)
            if len(batch) < self.bounds.batch_texts and (width <= left or not batch):
                batch.append(waiting)
                left -= width
        return batch

    def _near(self) -> list[Waiting[J]]:
        """The oldest texts, of which two batches can be made."""
        in_order = heapq.merge(*self._tidy().values(), key=lambda waiting: waiting.number)
        near: list[Waiting[J]] = []
        left = 2 * self.bounds.batch_tokens
        for waiting in in_order:
            if waiting.here:
                near.append(waiting)
                left -= _width(waiting.tokens)
            if left <= 0 or len(near) >= 2 * self.bounds.batch_texts:
                break
        return near

    def _leave(self, waiting: Waiting[J]) -> None:
        waiting.here = False
        self.texts -= 1
        self.tokens -= waiting.tokens

    def _tidy(self) -> dict[int, deque[Waiting[J]]]:
        """The lines, without those at their heads who have left."""
        for width, line in list(self._lines.items()):
            while line and not line[0].here:
                line.popleft()
            if not line:
                del self._lines[width]
        return self._lines


def _width_of(waiting: Waiting[J]) -> int:
    return _width(waiting.tokens)


def _width(tokens: int) -> int:
    place = bisect.bisect_left(BUCKETS, tokens)
    return BUCKETS[place] if place < len(BUCKETS) else tokens
