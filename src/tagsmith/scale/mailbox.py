"""What workers tell the command that started them: one console for events of all, one word back, to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tagsmith.events import Event, Listener

SECONDS_BETWEEN_LETTERS, SECONDS_HELD_BACK = 0.3, 5.0


@dataclass
class Letters:
    """What lies in the box: events that nobody has read yet, an error that ends the work, whether it is to stop.

    `groups` counts how often workers came together: once, and again after each of them that was lost.
    """

    events: list[Event] = field(default_factory=list)
    error: Exception | None = None
    is_stopped: bool = False
    groups: int = 0


class Mailbox:
    """A box for letters, to be an actor on the machine of the command: whoever dies elsewhere, it stays."""

    def __init__(self) -> None:
        self._held = Letters()

    def enter(self, *, is_first: bool) -> Letters:
        """A worker comes in; what it finds, without the events."""
        self._held.groups += is_first
        return Letters(error=self._held.error, is_stopped=self._held.is_stopped, groups=self._held.groups)

    def post(self, events: Iterable[Event]) -> bool:
        """Leave events; whether to stop."""
        self._held.events.extend(events)
        return self._held.is_stopped

    def fail(self, error: Exception) -> None:
        """Leave the error that ends the work; the first one is the cause of others."""
        self._held.error = self._held.error or error

    def stop(self) -> None:
        """Ask all workers to stop."""
        self._held.is_stopped = True

    def take(self) -> Letters:
        """All that has come, once."""
        taken, self._held = self._held, Letters([], self._held.error, self._held.is_stopped, self._held.groups)
        return taken


class Ear:
    """Tells a listener what all workers say: what the first one says at once, what others alone say with their name.

    Most of what others note is what the first one notes too, sooner or later: they are held back for a while.
    """

    def __init__(self, listen: Listener) -> None:
        self._listen, self._said, self._held = listen, set[str](), list[tuple[float, Event]]()

    def hear(self, events: Iterable[Event]) -> None:
        """Take what came."""
        for event in events:
            if "worker" in event.values:
                self._held.append((time.monotonic(), event))
                continue
            if event.name == "note":
                self._said.add(str(event.values["text"]))
            self._listen(event)
        self.release(before=time.monotonic() - SECONDS_HELD_BACK)

    def release(self, *, before: float = math.inf) -> None:
        """Say what others alone said before a moment."""
        due = [event for when, event in self._held if when < before]
        self._held = [(when, event) for when, event in self._held if when >= before]
        for event in due:
            text = str(event.values["text"])
            if text not in self._said:
                self._said.add(text)
                self._listen(Event(event.stage, "note", values={"text": f"{event.values['worker']}: {text}"}))


class Reporter:
    """A listener in a worker: its events go to the mailbox, a few times a second, together.

    What others than the first worker say would be said twice: of them notes alone are passed on, with their name.
    """

    def __init__(self, box: Any, name: str) -> None:
        self._box, self._name, self._waiting = box, name, list[Event]()
        self._sent, self._is_stopped = 0.0, False

    def __call__(self, event: Event) -> None:
        """Keep an event until the next letter."""
        self._waiting.append(event)
        self._send_when_due()

    @property
    def of_others(self) -> Listener:
        """What the pipeline tells where this worker is not the first."""

        def listen(event: Event) -> None:
            if event.name == "note":
                self(Event(event.stage, "note", values={**event.values, "worker": self._name}))

        return listen

    def stop(self) -> bool:
        """Whether the command was asked to stop."""
        self._send_when_due()
        return self._is_stopped

    def send(self) -> None:
        """Post what waits, and hear whether to stop."""
        import ray

        self._is_stopped = ray.get(self._box.post.remote(self._waiting))
        self._waiting, self._sent = [], time.monotonic()

    def _send_when_due(self) -> None:
        if time.monotonic() - self._sent >= SECONDS_BETWEEN_LETTERS:
            self.send()
