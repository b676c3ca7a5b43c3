"""The texts that a page shows: they stand in report.html alone, so they travel beside the report and never in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class NearestRow:
    """A training row that is like a test row: its number in the source, its text and label, how like it is (0 to 1)."""

    row: int
    text: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Mishap:
    """A test row that was answered wrongly: its number in the source, its text, both labels, the answer's chance.

    `words` is the text cut into pieces, each with how much it speaks for the answer (below 0: against it), empty where
    nobody asked; `nearest` are training rows, the likest first.
    """

    row: int
    text: str
    truth: str
    predicted: str
    probability: float
    nearest: tuple[NearestRow, ...] = ()
    words: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class CellText:
    """A test row behind a cell of the confusion matrix: truth and answer are numbers of labels."""

    row: int
    text: str
    truth: int
    answer: int
    probability: float


@dataclass(frozen=True)
class PageTexts:
    """What a page quotes: the surest mistakes, test rows by cell, and the training rows that the label audit names."""

    mistakes: Sequence[Mishap] = ()
    cells: Sequence[CellText] = ()
    training: Mapping[int, str] = field(default_factory=dict)
