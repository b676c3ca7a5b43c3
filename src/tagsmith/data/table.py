"""The table of labelled texts, its splits, and the history of all that was done to its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import polars as pl

from tagsmith.errors import DataError

T = TypeVar("T")
U = TypeVar("U")

SLICE = "slice:"
"""What stands before the name of a source column by which test rows are sliced."""
LISTED = 1000
"""Most row numbers that a line of history lists; it counts all."""


@dataclass(frozen=True)
class Change:
    """One line of history: what a step did to the rows, and to which of them.

    `rows` are numbers of rows in the source, the first thousand of the `concerned` ones.
    """

    step: str
    rows_before: int
    rows_after: int
    reason: str
    rows: tuple[int, ...] = ()
    concerned: int = 0


@dataclass(frozen=True)
class Table:
    """Labelled texts. Each step returns a new table with one more line of history.

    `frame` has the columns `row` (UInt32, the row's number in the source, from 0), `text` (String), `label` (String,
    null in a table that has none; List(String) in a multi-label table, where a row may have no label at all) and
    `group` (UInt32; rows of one group must never be separated); beside them `time` and `part` (String, as they stand
    in the source) where the user named columns for them, and `slice:NAME` for columns by which test rows are sliced.
    A pair of texts is one text with `PAIR` in it.
    """

    frame: pl.DataFrame
    history: tuple[Change, ...] = ()

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        groups: Sequence[object] | None = None,
    ) -> Table:
        """A table of texts; each row is its own group unless `groups` says otherwise.

        With a list or tuple of labels for each row it is a multi-label table.
        """
        if labels is not None and len(labels) != len(texts):
            raise DataError(f"Found {len(texts)} texts and {len(labels)} labels; expected as many labels as texts.")
        if groups is not None and len(groups) != len(texts):
            raise DataError(f"Found {len(texts)} texts and {len(groups)} groups; expected as many groups as texts.")
        rows = np.arange(len(texts), dtype=np.uint32)
        group_of = {group: i for i, group in enumerate(dict.fromkeys(() if groups is None else groups))}
        columns = {
            "row": pl.Series(rows),
            "text": pl.Series(list(texts), dtype=pl.String),
            "label": _label_column([None] * len(texts) if labels is None else labels),
            "group": pl.Series(
                rows if groups is None else np.array([group_of[group] for group in groups], dtype=np.uint32)
            ),
        }
        return cls(
            pl.DataFrame(columns), (Change("read", len(texts), len(texts), "texts and labels handed over in memory"),)
        )

    def __len__(self) -> int:
        return self.frame.height

    @property
    def texts(self) -> list[str]:
        """The texts `(N,)`."""
        return self.frame["text"].to_list()

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels, or none."""
        return self.frame.schema["label"] == pl.List(pl.String)

    @property
    def labels(self) -> list[str]:
        """The labels `(N,)` of a single-label table."""
        assert not self.multi_label, "rows of a multi-label table have label sets"
        return self.frame["label"].to_list()

    @property
    def label_sets(self) -> list[list[str]]:
        """The labels of each row `(N,)`, in a single-label table one each."""
        return self.frame["label"].to_list() if self.multi_label else [[label] for label in self.labels]

    @property
    def groups(self) -> np.ndarray:
        """The group of each row `(N,)`."""
        return self.frame["group"].to_numpy()

    @property
    def rows(self) -> np.ndarray:
        """The number of each row in the source `(N,)`."""
        return self.frame["row"].to_numpy()

    def take(self, indices: np.ndarray) -> Table:
        """The rows at these positions, in this order, with the same history."""
        return replace(self, frame=self.frame[np.asarray(indices, dtype=np.int64)])

    def changed(self, frame: pl.DataFrame, *, step: str, reason: str, rows: Sequence[int] | np.ndarray = ()) -> Table:
        """A table of other rows or values, with a line of history that says why."""
        listed = tuple(int(row) for row in rows[:LISTED])
        change = Change(step, self.frame.height, frame.height, reason, listed, len(rows))
        return Table(frame, (*self.history, change))


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Four parts of anything: to learn from, to stop and choose by, to calibrate on, and to measure once."""

    train: T
    validation: T
    calibration: T
    test: T

    def map(self, function: Callable[[T], U]) -> Splits[U]:
        """The same four parts, each after `function`."""
        return Splits(*(function(part) for _, part in self.items()))

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and parts, in the order of use."""
        yield from zip(PARTS, (self.train, self.validation, self.calibration, self.test), strict=True)


PARTS = ("train", "validation", "calibration", "test")


def _label_column(labels: Sequence[str | None] | Sequence[Sequence[str]]) -> pl.Series:
    if any(isinstance(label, list | tuple) for label in labels):
        return pl.Series([list(label or ()) for label in labels], dtype=pl.List(pl.String))
    return pl.Series(list(labels), dtype=pl.String)
