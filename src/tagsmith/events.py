"""What the pipeline says while it works. It never prints: whoever cares passes a listener."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

R = TypeVar("R")
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    `stage` is one of `assets data model tuning evaluation deployment`; `name` says what happened (`progress`, `step`,
    `epoch`, `note`, `done`); `step` and `total` count towards the end of it, where that is known; `values` are the
    numbers and words that go with it.
    """

    stage: str
    name: str
    step: int | None = None
    total: int | None = None
    values: Mapping[str, Value] = field(default_factory=dict)


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener for those who do not care."""


def steps_alone(listen: Listener) -> Listener:
    """A listener to how far a further tuning is, and to nothing of what belongs to the first."""

    def heard(event: Event) -> None:
        if event.name == "step":
            listen(event)

    return heard


def listened(work: Generator[Event, None, R], listen: Listener) -> R:
    """Run a generator of events to its end, telling each to `listen`, and give what it returns."""
    while True:
        try:
            listen(next(work))
        except StopIteration as end:
            return end.value


class JsonLines:
    """A listener that appends each event to a file as one line of JSON; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, str(path)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        if _is_torn(self.path):
            self._file.write("\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Write the event and flush, so that a killed run leaves whole lines."""
        line: dict[str, Any] = {"stage": event.stage, "name": event.name, "step": event.step, "total": event.total}
        line |= {name: _plain(value) for name, value in event.values.items()}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


def _is_torn(path: Path) -> bool:
    """Whether a file ends within a line: a run was killed, or the disk was full."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _plain(value: Value) -> Value:
    """JSON has no NaN: a number that is not finite is None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
