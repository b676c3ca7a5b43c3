"""By what test rows are sliced: length, language, time, and the source columns that were asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from tagsmith.data.chronology import times_of
from tagsmith.data.languages import language_of_rows, words_of
from tagsmith.data.table import SLICE, Table
from tagsmith.errors import DataError

_QUARTERS = (0.25, 0.5, 0.75)


def facets_of(table: Table) -> Mapping[str, Sequence[str | None]]:
    """A value for each row of `table`, or None for none, by the name of what slices."""
    facets: dict[str, Sequence[str | None]] = {"length": _quarters(table.frame["text"].str.len_chars(), "characters")}
    languages = language_of_rows(table.frame["text"], words_of(table.frame["text"]))
    if languages.n_unique() > 1:
        facets["language"] = languages.to_list()
    if "time" in table.frame.columns:
        facets["time"] = _times(table)
    for column in table.frame.columns:
        if column.startswith(SLICE):
            facets[column.removeprefix(SLICE)] = table.frame[column].to_list()
    return facets


def _quarters(values: pl.Series, unit: str) -> list[str | None]:
    """The quarter of each value in words; fewer parts where many values are equal."""
    numbers = values.to_numpy()
    if not len(numbers):
        return []
    edges = sorted({int(edge) for edge in np.quantile(numbers, _QUARTERS, method="lower")} - {int(numbers.max())})
    names = [f"up to {edges[0]:,} {unit}" if edges else f"up to {int(numbers.max()):,} {unit}"]
    names += [f"{low + 1:,} to {high:,} {unit}" for low, high in pairwise(edges)]
    names += [f"over {edges[-1]:,} {unit}"] if edges else []
    return [names[i] for i in np.searchsorted(edges, numbers, side="left")]


def _times(table: Table) -> list[str | None]:
    """The quarter of the times in which each row lies, named by its first and last; nothing where times are unreadable.

    A column of times that is no time decides nothing here: whoever splits by it has said so already.
    """
    try:
        times = times_of(table)
    except DataError:
        return [None] * len(table)
    words = table.frame["time"].cast(pl.String).str.strip_chars().to_list()
    part = np.searchsorted(np.quantile(times, _QUARTERS, method="lower"), times, side="left")
    names = {}
    for number in np.unique(part):
        own = np.flatnonzero(part == number)
        names[number] = f"{words[own[times[own].argmin()]]} to {words[own[times[own].argmax()]]}"
    return [names[number] for number in part]
