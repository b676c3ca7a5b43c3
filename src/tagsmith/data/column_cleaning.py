"""A column of texts cleaned as `cleaning` cleans one, and what each step did to it.

Polars picks the rows that could change, and only those reach Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tagsmith.data.cleaning import STEPS, SUSPICIONS, cleaned, in_order
from tagsmith.data.pairs import PAIR
from tagsmith.data.table import Table

MOST_ROWS_LISTED = 1000
"""Row numbers kept in a line of history; its count is of all rows."""


@dataclass(frozen=True)
class Cleaned:
    """Cleaned texts `(N,)`, and for each step which of them it changed, `(N,)` bool."""

    texts: pl.Series
    changed: Mapping[str, np.ndarray]


def clean(texts: pl.Series, steps: Sequence[str]) -> Cleaned:
    """`clean_text` for a column, with what each step did; a null stays null."""
    asked = in_order(steps)
    changed = {step: np.zeros(len(texts), dtype=bool) for step in asked}
    places = np.flatnonzero(_suspicious(texts, asked).to_numpy()) if asked else np.empty(0, dtype=np.int64)
    found = []
    for place, text in zip(places.tolist(), texts[places].to_list(), strict=True):
        found.append(cleaned(text, asked, lambda step, place=place: changed[step].__setitem__(place, True)))
    if any(mask.any() for mask in changed.values()):
        texts = texts.clone().scatter(places, pl.Series(found, dtype=pl.String))
    return Cleaned(texts, changed)


Clean = Callable[[pl.Series, Sequence[str]], Cleaned]


def clean_table(table: Table, steps: Sequence[str], *, clean: Clean = clean) -> Table:
    """The table with clean texts, a line of history for each step; rows that have no text any more are dropped.

    `clean` is what cleans the column.
    """
    found = clean(table.frame["text"], steps)
    for step, mask in found.changed.items():
        count, rows = int(mask.sum()), table.rows[mask][:MOST_ROWS_LISTED].tolist()
        table = table.changed(table.frame, step=f"clean: {step}", reason=f"{_DONE[step]} in {count:,} rows", rows=rows)
    if not found.changed:
        return table
    frame = table.frame.with_columns(found.texts.alias("text"))
    table = Table(frame, table.history)
    empty = frame.select(pl.col("text").str.contains(_SOMETHING).not_()).to_series()
    if not empty.any():
        return table
    rows = frame.filter(empty)["row"].head(MOST_ROWS_LISTED).to_list()
    reason = f"no text after cleaning: {int(empty.sum()):,} rows"
    return table.changed(frame.filter(~empty), step="drop", reason=reason, rows=rows)


def would_change(texts: pl.Series) -> dict[str, int]:
    """How many of the texts each step alone would change."""
    return {step: int(clean(texts, [step]).changed[step].sum()) for step in STEPS}


_DONE = {
    "mojibake": "text decoded with the wrong encoding mended",
    "html": "HTML removed",
    "email": "e-mail headers, quoted lines or signatures removed",
    "invisible": "invisible characters removed",
    "nfc": "characters composed (Unicode NFC)",
    "nfkc": "characters in their compatible form (Unicode NFKC)",
    "spaces": "white space folded",
}
_SOMETHING = rf"[^\s{PAIR}]"


def _suspicious(texts: pl.Series, steps: Sequence[str]) -> pl.Series:
    # One side of a pair may begin or end with a space.
    patterns = [SUSPICIONS[step] for step in steps] + ([PAIR] if "spaces" in steps else [])
    return texts.str.contains("|".join(patterns)).fill_null(value=False)
