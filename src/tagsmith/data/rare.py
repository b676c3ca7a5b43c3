"""Labels with too few rows to learn from and to measure on: refused, kept, dropped, or merged into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from tagsmith.data.table import Table
from tagsmith.errors import DataError

RareLabels = Literal["error", "keep", "drop", "merge"]


@dataclass(frozen=True)
class Rare:
    """What becomes of some labels: `merged_into` one name, or dropped where that is None."""

    labels: tuple[str, ...]
    below: int
    merged_into: str | None

    def settle(self, table: Table) -> Table:
        """The table without these labels; a row of a multi-label table goes when no label is left to it."""
        if not self.labels:
            return table
        touched = _touched(table, self.labels)
        if self.merged_into is not None:
            reason = f"{len(touched)} rows: {some(self.labels)} became '{self.merged_into}', for {self._why}"
            frame = table.frame.with_columns(_renamed(table, self.labels, self.merged_into))
            return table.changed(frame, step="rare labels", reason=reason, rows=table.rows[touched])
        return self._dropped(table, touched)

    def _dropped(self, table: Table, touched: np.ndarray) -> Table:
        emptied = touched
        if table.multi_label:
            left = pl.col("label").list.set_difference(list(self.labels))
            shorter = table.frame.with_columns(left)
            emptied = touched[shorter["label"].list.len().to_numpy()[touched] == 0]
            reason = f"{some(self.labels)} taken off {len(touched)} rows, for {self._why}"
            table = table.changed(shorter, step="rare labels", reason=reason, rows=table.rows[touched])
            if not len(emptied):
                return table
        reason = f"{len(emptied)} rows dropped that had {some(self.labels)} alone, for {self._why}"
        kept = np.setdiff1d(np.arange(len(table)), emptied)
        return table.changed(table.take(kept).frame, step="rare labels", reason=reason, rows=table.rows[emptied])

    @property
    def _why(self) -> str:
        return f"each has fewer than {self.below} rows"


def find_rare(table: Table, *, how: RareLabels, below: int, name: str) -> Rare:
    """Which labels have fewer than `below` rows, and what becomes of them; DataError where they are not allowed.

    Merged labels that have too few rows together are refused as well.
    """
    counts = label_counts(table)
    rare = tuple(counts.filter(pl.col("count") < below)["label"].to_list())
    if how == "keep" or not rare:
        return Rare((), below, None)
    if how == "error":
        raise too_rare(rare, fewest=below)
    if how == "drop":
        return Rare(rare, below, None)
    together = Rare(tuple(label for label in rare if label != name), below, name)
    merged = label_counts(together.settle(table)).filter(pl.col("label") == name)["count"]
    if len(merged) and merged[0] < below:
        raise DataError(
            f"Found {merged[0]} rows of '{name}', into which {some(rare)} were merged. Expected at least {below}; take "
            "--set data.rare_labels=drop to leave them out, lower data.rare_below, or add rows."
        )
    return together


def label_counts(table: Table) -> pl.DataFrame:
    """`label` and `count`, how many rows have it, by label; rows without a label count nowhere."""
    labels = table.frame.select("label").drop_nulls()
    if table.multi_label:
        labels = labels.select(pl.col("label").list.unique().list.explode().drop_nulls())
    return labels["label"].value_counts().sort("label")


def too_rare(labels: Sequence[str], *, fewest: int) -> DataError:
    """The error that names labels with too few rows."""
    return DataError(
        f"Found fewer than {fewest} rows of the label{'s' if len(labels) > 1 else ''} {some(labels)}. Expected at "
        f"least {fewest} rows of each, one to learn from and one to measure on; merge rare labels, drop them, or add "
        "rows (--set data.rare_labels=merge or drop does it)."
    )


def some(labels: Sequence[str], most: int = 10) -> str:
    """The first labels in quotes, and how many more there are."""
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(f"'{label}'" for label in labels[:most]) + more


def _touched(table: Table, labels: Sequence[str]) -> np.ndarray:
    wanted = pl.Series("wanted", list(labels), dtype=pl.String)
    if table.multi_label:
        shared = table.frame["label"].list.set_intersection(list(labels)).list.len()
        return np.flatnonzero(shared.fill_null(0).to_numpy() > 0)
    return np.flatnonzero(table.frame["label"].is_in(wanted.implode()).to_numpy())


def _renamed(table: Table, labels: Sequence[str], name: str) -> pl.Expr:
    names = dict.fromkeys(labels, name)
    if table.multi_label:
        return pl.col("label").list.eval(pl.element().replace(names)).list.unique(maintain_order=True)
    return pl.col("label").replace(names)
