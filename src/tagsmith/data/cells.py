"""Values of any type -> words, and rows of them -> columns of words or of lists of words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import polars as pl

from tagsmith.data.files import require_columns
from tagsmith.data.words import is_plain_list, mended, word_of

_ROWS_AT_ONCE = 50_000


def frame_of(names: Sequence[str], rows: Iterable[Sequence[object]]) -> tuple[pl.DataFrame, int]:
    """Rows of values as columns of words, and in how many cells half a character (a lone surrogate) was replaced."""
    stream = iter(rows)
    parts = []
    mended_cells = 0
    while part := list(itertools.islice(stream, _ROWS_AT_ONCE)):
        frame, strange = part_of(names, zip(*part, strict=True))
        parts.append(frame)
        mended_cells += strange
    return joined(parts) if parts else pl.DataFrame(schema=dict.fromkeys(names, pl.String)), mended_cells


def part_of(names: Sequence[str], columns: Iterable[Sequence[object]]) -> tuple[pl.DataFrame, int]:
    """Columns of values as a frame of words, and in how many cells half a character was replaced."""
    require_columns("the source", len(names))
    made = [_column(name, values) for name, values in zip(names, columns, strict=True)]
    return pl.DataFrame([column for column, _ in made]), sum(strange for _, strange in made)


def joined(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Frames below one another; a column that holds lists in one of them does so in all."""
    lists = {column.name for part in parts for column in part if column.dtype == pl.List}
    wrapped = [part.with_columns(_as_list(part[name]) for name in part.columns if name in lists) for part in parts]
    return pl.concat(wrapped, how="diagonal")


def _column(name: str, values: Sequence[object]) -> tuple[pl.Series, int]:
    as_list = any(is_plain_list(value) for value in values)
    dtype = pl.List(pl.String) if as_list else pl.String
    words = [_cell(value, as_list=as_list) for value in values]
    try:
        return pl.Series(mended(name), words, dtype=dtype), 0
    except UnicodeEncodeError:
        whole = [[*map(mended, word)] if isinstance(word, list) else mended(word) for word in words]
        strange = sum(old != new for old, new in zip(words, whole, strict=True))
        return pl.Series(mended(name), whole, dtype=dtype), strange


def _as_list(column: pl.Series) -> pl.Series:
    if column.dtype == pl.List:
        return column
    return column.to_frame().select(pl.when(pl.all().is_not_null()).then(pl.concat_list(pl.all()))).to_series()


def _cell(value: object, *, as_list: bool) -> str | list[str | None] | None:
    if not as_list or value is None:
        return word_of(value)
    return [word_of(item) for item in value] if isinstance(value, list) else [word_of(value)]
