"""Rows of what needs polars to be read: Parquet part by part, and whole any other source that this release knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tagsmith.data.columnar import unreadable
from tagsmith.data.files import File, require_columns
from tagsmith.data.readers import read_frame

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class HeavyRows:
    """Columns, their number of rows, how to read them from the start, and their types."""

    columns: tuple[str, ...]
    count: int
    read: Callable[[], Iterator[dict[str, Any]]]
    schema: pl.Schema


def parquet_rows(file: File) -> HeavyRows:
    """The rows of a Parquet file, of which only some are held at once; DataError where it is damaged."""
    try:
        scan = pl.scan_parquet(file.path, glob=False)
        schema = scan.collect_schema()
        require_columns(file.name, len(schema))
        count = int(scan.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise unreadable(file, "Parquet", error) from None

    def read() -> Iterator[dict[str, Any]]:
        for start in range(0, count, _ROWS_AT_ONCE):
            try:
                part = scan.slice(start, _ROWS_AT_ONCE).collect()
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
                raise unreadable(file, "Parquet", error) from None
            yield from part.iter_rows(named=True)

    return HeavyRows(tuple(schema.names()), count, read, schema)


def whole_rows(source: str | Path) -> HeavyRows:
    """The rows of any source, all held in memory."""
    frame = read_frame(source).frame
    return HeavyRows(tuple(frame.columns), frame.height, lambda: frame.iter_rows(named=True), frame.schema)
