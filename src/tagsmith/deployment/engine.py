"""A loaded bundle that answers: texts in, labels and probabilities out. Nothing here needs torch.

Axes: N texts, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tagsmith.data.encoding import Tokens
from tagsmith.deployment.choosing import choose_engine
from tagsmith.deployment.manifest import verify
from tagsmith.deployment.recipe import read_settings
from tagsmith.labels import Labels
from tagsmith.model.calibration import is_sure
from tagsmith.model.decision import Rule, decided

TEXTS_AT_ONCE = 8192


@dataclass(frozen=True)
class Answer:
    """What is said of one text.

    `label` and `probability` are None for a text that gets no answer, and `reason` says why (`empty`);
    `truncated` says that the text was longer than the classifier reads. `labels` are all that were found: one, or
    where a text may have several those from their thresholds on, in output order; `label` and `probability` are None
    then, whatever was found. `abstained` says that the likeliest label was not likely enough to be answered; there is
    no label then.
    """

    label: str | None
    probability: float | None
    probabilities: tuple[float, ...]
    truncated: bool
    reason: str | None = None
    labels: tuple[str, ...] = ()
    abstained: bool = False


class Engine(Protocol):
    """What computes the answers of a bundle. All engines of one bundle give the same answers, by their gates.

    `thresholds (C,)` are the probabilities from which on labels are answered, or a decision for one label, None where
    the likeliest one is;
    `max_tokens` is what is read of a text at most, None for all of it.
    """

    name: str
    labels: Labels
    tokens_per_batch: int

    @property
    def thresholds(self) -> Rule:
        """The probabilities `(C,)` from which on labels are answered, or the decision for one of them."""
        ...

    @property
    def sureties(self) -> np.ndarray | None:
        """From which surety labels `(C,)` are answered at all; None where they always are."""
        ...

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """How many tokens are read of a text."""
        ...

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """The tokens of cleaned texts, and of their second ones; no text becomes a control token.

        A text without any letter or sign has no tokens. DataError for one that is not valid Unicode, SettingError for
        pairs that the bundle does not know.
        """
        ...

    def logits_of(self, tokens: Tokens) -> np.ndarray:
        """Logits `(N, C)` of texts; NaN for one without tokens."""
        ...

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities `(N, C)` float64 of logits; NaN stays NaN."""
        ...

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
        """An answer for each text, in order."""
        ...


def open_engine(folder: str | Path, name: str = "auto", *, threads: int | None = None, device: str = "cpu") -> Engine:
    """An engine of a bundle, ready to answer, with so many threads (None: as many as there are cores).

    `name` is that of an engine; or `reference`, the first one in fp32 that is installed; or `auto`, the fastest here of
    those that are installed and passed their gate, by the bundle's probe texts. `device` is named as `tuning.device`.

    Raises:
        BundleError: no bundle, or one that was altered.
        SettingError: an engine that is unknown, not installed, not carried by the bundle or not let in.
    """
    path = Path(folder)
    verify(path)
    return choose_engine(path, read_settings(path), name, threads=threads, device=device)


def probabilities(engine: Engine, texts: Sequence[str]) -> np.ndarray:
    """Calibrated probabilities `(N, C)` float64; NaN for a text without any letter or sign."""
    return _computed(engine, texts, None)[0]


def answers(engine: Engine, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
    """An answer for each text, in order."""
    return answers_of(engine, *_computed(engine, texts, pairs))


def answers_of(engine: Engine, probs_NC: np.ndarray, truncated_N: np.ndarray) -> list[Answer]:
    """The answers that probabilities come to."""
    return [
        _answer(probs_C, engine.labels, engine.thresholds, engine.sureties, cut=bool(cut))
        for probs_C, cut in zip(probs_NC, truncated_N, strict=True)
    ]


def _computed(engine: Engine, texts: Sequence[str], pairs: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(N, C)`, and whether each text was truncated `(N,)`; part by part, to bound the memory."""
    probs = np.zeros((len(texts), len(engine.labels)))
    truncated = np.zeros(len(texts), dtype=bool)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = slice(start, start + TEXTS_AT_ONCE)
        tokens = engine.encode(texts[part], None if pairs is None else pairs[part])
        probs[part] = engine.probabilities_of(engine.logits_of(tokens))
        truncated[part] = tokens.truncated
    return probs, truncated


def _answer(probs_C: np.ndarray, labels: Labels, thresholds: Rule, sureties: np.ndarray | None, *, cut: bool) -> Answer:
    if np.isnan(probs_C).any():
        return Answer(None, None, (), cut, reason="empty")
    probs, names = tuple(float(p) for p in probs_C), labels.names
    if isinstance(thresholds, np.ndarray):
        found = tuple(names[i] for i in np.flatnonzero(probs_C >= thresholds))
        return Answer(None, None, probs, cut, labels=found)
    best = int(decided(probs_C[None], thresholds)[0])
    if sureties is not None and not is_sure(probs_C, best, sureties):
        return Answer(None, None, probs, cut, abstained=True)
    return Answer(names[best], probs[best], probs, cut, labels=(names[best],))
