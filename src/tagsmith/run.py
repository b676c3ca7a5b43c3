"""What one training run knows while it goes on: its settings, who listens, what it has made so far."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.assets import Located
from tagsmith.config import Config
from tagsmith.events import Event, Listener

if TYPE_CHECKING:
    from tagsmith.model.classifier import Classifier
    from tagsmith.tuning.loop import Part, Tuned


@dataclass
class Run:
    """What one run knows about itself: settings, listener, seconds per stage, and remarks for the report."""

    config: Config
    listen: Listener
    command: str
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    weights: Located | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    def note(self, text: str) -> None:
        """Say something that the reader of the report must know too."""
        self.notes.append(text)
        self.listen(Event("data", "note", values={"text": text}))


@dataclass
class Result:
    """A tuned classifier's parts, curves and kept activations, and its weights from before."""

    parts: dict[str, Part]
    tuned: Tuned
    untuned: dict[str, Any]
    trained_parameters: int

    def logits(self, classifier: Classifier, name: str) -> np.ndarray:
        """Logits `(N, C)` of a part; `states` that were kept are gone on from."""
        from tagsmith.model.classifier import Scorer, finish_states

        if name in self.tuned.states and self.tuned.start:
            return finish_states(classifier, self.tuned.states[name], start=self.tuned.start)
        return Scorer(classifier).logits(self.parts[name].tokens)
