"""Values of any type -> words, and rows of them -> columns of words or of lists of words."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from tagsmith.data.files import require_columns

_ROWS_AT_ONCE = 50_000


def frame_of(names: Sequence[str], rows: Iterable[Sequence[object]]) -> tuple[pl.DataFrame, int]:
    """Rows of values as columns of words, and in how many cells half a character (a lone surrogate) was replaced."""
    stream = iter(rows)
    parts = []
    mended = 0
    while part := list(itertools.islice(stream, _ROWS_AT_ONCE)):
        frame, strange = part_of(names, zip(*part, strict=True))
        parts.append(frame)
        mended += strange
    return joined(parts) if parts else pl.DataFrame(schema=dict.fromkeys(names, pl.String)), mended


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


def is_plain_list(value: object) -> bool:
    """Whether a value is a list of words or numbers, as labels are."""
    return isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)


def _column(name: str, values: Sequence[object]) -> tuple[pl.Series, int]:
    as_list = any(is_plain_list(value) for value in values)
    dtype = pl.List(pl.String) if as_list else pl.String
    words = [_cell(value, as_list=as_list) for value in values]
    try:
        return pl.Series(_mended(name), words, dtype=dtype), 0
    except UnicodeEncodeError:
        mended = [[*map(_mended, word)] if isinstance(word, list) else _mended(word) for word in words]
        strange = sum(old != new for old, new in zip(words, mended, strict=True))
        return pl.Series(_mended(name), mended, dtype=dtype), strange


def _as_list(column: pl.Series) -> pl.Series:
    if column.dtype == pl.List:
        return column
    return column.to_frame().select(pl.when(pl.all().is_not_null()).then(pl.concat_list(pl.all()))).to_series()


def _cell(value: object, *, as_list: bool) -> str | list[str | None] | None:
    if not as_list or value is None:
        return _word(value)
    return [_word(item) for item in value] if isinstance(value, list) else [_word(value)]


def _word(value: object) -> str | None:
    """1 and 1.0 become "1", true becomes "true", records become JSON; NaN is no value."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    if isinstance(value, bool | int | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _mended(text: str | None) -> Any:
    return None if text is None else re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
