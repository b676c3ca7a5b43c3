"""The same text with different labels: which rows they are, and what is done about them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from tagsmith.data.folding import distinct, fold_all
from tagsmith.data.table import Table

Conflicts = Literal["keep", "majority", "drop"]


def settle_conflicts(table: Table, *, how: Conflicts) -> Table:
    """The table without texts that carry different labels; in a multi-label table, different sets of labels.

    `drop` leaves out their rows; `majority` gives all of them the label that most of them have, and leaves out the
    texts without a single most frequent one; `keep` changes nothing, here or in the history.
    """
    if how == "keep":
        return table
    text_ids = distinct(fold_all(table.frame["text"]))[1]
    rows = conflicting_rows(table, text_ids)
    if not len(rows):
        return table.changed(table.frame, step="conflicting labels", reason="no text has different labels")
    if how == "drop":
        return _without(table, rows, reason=f"{_found(text_ids, rows)} that have different labels; dropped")
    return _by_majority(table, text_ids, rows)


def conflicting_rows(table: Table, text_ids: np.ndarray) -> np.ndarray:
    """Positions of the rows whose text stands in the table with different labels."""
    pairs = pl.DataFrame({"text": text_ids, "label": label_keys(table)}).drop_nulls("label").unique()
    labels_per_text = np.bincount(pairs["text"].to_numpy(), minlength=int(text_ids.max(initial=-1)) + 1)
    return np.flatnonzero(labels_per_text[text_ids] > 1)


def label_keys(table: Table) -> pl.Series:
    """The label of each row `(N,)`; of a multi-label row its whole set, equal for equal sets."""
    label = table.frame["label"]
    return label.list.unique().list.sort().list.join("\0") if table.multi_label else label


def _by_majority(table: Table, text_ids: np.ndarray, rows: np.ndarray) -> Table:
    frame = pl.DataFrame({"at": rows, "text": text_ids[rows], "key": label_keys(table)[rows]})
    counts = frame.drop_nulls("key").group_by("text", "key").agg(pl.len().alias("rows"), pl.col("at").min())
    most = counts.filter(pl.col("rows") == pl.col("rows").max().over("text"))
    won = most.filter(pl.len().over("text") == 1).select("text", pl.col("key").alias("won"), pl.col("at").alias("of"))
    settled = frame.join(won, on="text", how="left", maintain_order="left")
    tied = settled["won"].is_null().to_numpy()
    relabelled = settled.filter(pl.col("won").is_not_null() & pl.col("won").ne_missing(pl.col("key")))
    reason = f"{_found(text_ids, rows)} that have different labels; {relabelled.height} rows take their text's majority"
    table = _relabelled(table, relabelled, reason=reason)
    if not tied.any():
        return table
    return _without(table, rows[tied], reason=f"{_found(text_ids, rows[tied])} whose labels tie; dropped")


def _relabelled(table: Table, changes: pl.DataFrame, *, reason: str) -> Table:
    source = np.arange(len(table))
    source[changes["at"].to_numpy()] = changes["of"].to_numpy()
    frame = table.frame.with_columns(table.frame["label"][source])
    return table.changed(frame, step="conflicting labels", reason=reason, rows=table.rows[changes["at"].to_numpy()])


def _without(table: Table, rows: np.ndarray, *, reason: str) -> Table:
    kept = np.setdiff1d(np.arange(len(table)), rows)
    return table.changed(table.take(kept).frame, step="conflicting labels", reason=reason, rows=table.rows[rows])


def _found(text_ids: np.ndarray, rows: np.ndarray) -> str:
    return f"{len(rows)} rows hold {len(np.unique(text_ids[rows]))} texts"
