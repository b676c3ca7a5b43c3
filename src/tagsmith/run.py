"""What one training run knows while it goes on: its settings, who listens, what it has made so far."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.assets import Located
from tagsmith.config import Config
from tagsmith.data.hands import OWN, Hands
from tagsmith.data.preparing import Prepared
from tagsmith.data.table import Table
from tagsmith.errors import DataError
from tagsmith.events import Event, Listener
from tagsmith.labels import Labels

if TYPE_CHECKING:
    from tagsmith.evaluation.thresholds import Thresholds
    from tagsmith.model.calibration import Calibration
    from tagsmith.model.classifier import Classifier
    from tagsmith.model.decision import Decision, Rule
    from tagsmith.model.hybrid import Mixing
    from tagsmith.model.lexical import Lexical
    from tagsmith.tuning.depth import DepthChoice
    from tagsmith.tuning.forecast import Forecast
    from tagsmith.tuning.learner import Part
    from tagsmith.tuning.loop import Tuned
    from tagsmith.tuning.seeds import SeedRun


@dataclass(frozen=True)
class Searched:
    """What a search decided: the settings to train with, and all that the report says of it, as plain data.

    `times` are those of the candidates, forecast on this machine; `budget` is in seconds.
    """

    settings: dict[str, Any]
    candidates: list[dict[str, Any]]
    times: list[dict[str, Any]]
    notes: list[str]
    sample: dict[str, Any]
    depth: dict[str, Any] | None
    budget: float

    def write(self, path: Path) -> None:
        """Keep it for a run that goes on."""
        aside = path.with_name(f".{path.name}.part")
        aside.write_text(json.dumps(vars(self), ensure_ascii=False, indent=1), encoding="utf-8")
        aside.replace(path)

    @classmethod
    def read(cls, path: Path) -> Searched:
        """What `write` kept."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Ready:
    """Rows that were prepared before a run, by whomever: the splits, what was said of them, and how long it took."""

    prepared: Prepared
    notes: tuple[str, ...]
    seconds: float


@dataclass
class Run:
    """What one run knows about itself: settings, listener, seconds per stage, and remarks for the report.

    `facts` are found before the test and join the section `data` of the report. `source` is where the rows can be read
    again, without a password; None where they were handed over in memory. What may differ from run to run, as times
    do, stands `apart`, in run.json. `hands` do the heavy work on rows.
    """

    config: Config
    listen: Listener
    command: str
    source: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    apart: dict[str, Any] = field(default_factory=dict)
    weights: Located | None = None
    depth: DepthChoice | None = None
    searched: Searched | None = None
    forecast: Forecast | None = None
    hands: Hands = OWN

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

    def take(self, ready: Ready) -> Prepared:
        """Rows that are prepared already, with what was said of them for the report, and their time."""
        self.notes += ready.notes
        self.seconds["data"] = self.seconds.get("data", 0.0) + ready.seconds
        return ready.prepared


@dataclass(frozen=True)
class Answering:
    """How logits are answered: `calibration`; `thresholds` where a text may have several labels.

    `decision` says which label of a text is answered, None for the likeliest.
    `sureties (C,)` are those from which labels are answered at all, None where they always are. `about` joins the
    section `calibration` of the report, `certificate` its section `abstention`.
    """

    calibration: Calibration
    thresholds: Thresholds | None = None
    sureties: np.ndarray | None = None
    about: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)
    decision: Decision | None = None

    @property
    def rule(self) -> Rule:
        """What says which labels are answered."""
        return self.decision if self.thresholds is None else self.thresholds.values


@dataclass
class Result:
    """A tuned classifier's parts, curves and kept activations, its weights from before, and how logits are answered.

    `further` are the tunings from other seeds than the run's own. In a hybrid `lexical` is its TF-IDF, `mixing` how it
    is mixed with the LLM, and `tfidf` are the scores `(N, C)` of TF-IDF by part.
    """

    parts: dict[str, Part]
    tuned: Tuned
    untuned: dict[str, Any]
    trained_parameters: int
    answering: Answering | None = None
    lexical: Lexical | None = None
    mixing: Mixing | None = None
    tfidf: dict[str, np.ndarray] = field(default_factory=dict)
    further: list[FurtherSeed] = field(default_factory=list)

    def logits(self, classifier: Classifier, name: str) -> np.ndarray:
        """Logits `(N, C)` of a part, in a hybrid those of LLM and TF-IDF together."""
        return self.mixed(self.logits_alone(classifier, name), name)

    def mixed(self, logits_NC: np.ndarray, name: str) -> np.ndarray:
        """What a hybrid makes of the LLM's logits of a part; the same logits where the LLM answers alone."""
        return logits_NC if self.mixing is None else self.mixing.mixed(logits_NC, self.tfidf[name])

    def logits_alone(self, classifier: Classifier, name: str) -> np.ndarray:
        """Logits `(N, C)` of a part by the LLM alone; `states` that were kept are gone on from."""
        from tagsmith.model.classifier import Scorer, finish_states

        if name in self.tuned.states and self.tuned.start:
            return finish_states(classifier, self.tuned.states[name], start=self.tuned.start)
        return Scorer(classifier).logits(self.parts[name].tokens)

    def held_out_logits(self, classifier: Classifier) -> np.ndarray:
        """Logits `(N, C)` of the validation and the calibration rows: those that thresholds are fitted on."""
        return np.concatenate([self.logits(classifier, name) for name in HELD_OUT if len(self.parts[name].truth)])

    @property
    def held_out_truth(self) -> np.ndarray:
        """What `held_out_logits` should say."""
        return np.concatenate([self.parts[name].truth for name in HELD_OUT])


@dataclass(frozen=True)
class FurtherSeed:
    """A tuning from a further seed, and what turns its logits into answers, fitted as the first one's was."""

    run: SeedRun
    answering: Answering


HELD_OUT = ("validation", "calibration")


def labels_of(table: Table) -> Labels:
    """The labels that occur in a table."""
    return Labels.of(chain.from_iterable(table.label_sets), multi_label=table.multi_label)


def truth_of(table: Table, labels: Labels) -> np.ndarray:
    """Label ids `(N,)`, or which labels each text has `(N, C)` bool where it may have several.

    DataError for labels that training did not see, and for label sets where one label is answered.
    """
    if labels.multi_label:
        return labels.encode_sets(table.label_sets)
    if table.multi_label:
        raise DataError(
            "The rows have lists of labels, but training saw one label a row. Expected rows with one label each; "
            "give those, or train again with lists."
        )
    return labels.encode(table.labels)
