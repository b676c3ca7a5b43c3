"""CSV, TSV and their kin, read whole: the separator, the header and what quotes mean are found by looking."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tagsmith.data.dialects import (
    Quotes,
    RaggedError,
    asked_delimiter,
    csv_rows,
    distinct_names,
    find_delimiter,
    has_header,
    numbered,
    require_width,
    sample_rows,
    wide_cells,
    word_of_delimiter,
)
from tagsmith.data.files import File, Layout, Raw, first_line, listed, mapped
from tagsmith.errors import DataError

_ROWS_AT_ONCE = 100_000
_END_MARK = "\N{SYMBOL FOR END OF TRANSMISSION}"


def read_delimited(file: File, layout: Layout) -> Raw:
    """The rows of a text file in UTF-8; DataError for rows with more cells than the first one has."""
    with mapped(file.path) as data:
        delimiter = asked_delimiter(layout.delimiter) or find_delimiter(data, quoted=layout.quoting != "none")
        require_width(file, data, delimiter)
        quotes = Quotes(data, file.path, delimiter)
        ways = quotes.ways() if layout.quoting == "auto" else [layout.quoting == "standard"]
        problem: RaggedError | None = None
        for quoted in ways:
            header = has_header(sample_rows(data, delimiter, quoted=quoted), asked=layout.header)
            try:
                frame = _parse(file, quotes, quoted=quoted, header=header)
            except RaggedError as error:
                problem = problem or error
                continue
            return Raw(frame, _told(layout, delimiter, header=header, quoted=quoted, quotes=quotes.present))
    raise DataError(
        f"'{file.name}' was read as {word_of_delimiter(delimiter)}, but {problem}. Expected as many "
        "cells in each row; put texts that hold the separator in double quotes, or try --set data.quoting=standard "
        "or --set data.quoting=none."
    )


def _told(layout: Layout, delimiter: str, *, header: bool, quoted: bool, quotes: bool) -> str:
    words = [
        word_of_delimiter(delimiter) + (" (asked for)" if layout.delimiter else ""),
        ("with a header" if header else "no header") + (" (asked for)" if layout.header != "auto" else ""),
    ]
    if quotes:
        words.append("quotes as in RFC 4180" if quoted else "quotes taken as text")
    return "read as " + ", ".join(words)


# --- the rows -------------------------------------------------------------------------------------------------------


def _parse(file: File, quotes: Quotes, *, quoted: bool, header: bool) -> pl.DataFrame:
    if quoted and quotes.present and not quotes.plain:
        return _parse_slowly(file.path, quotes.delimiter, header=header)
    quoted = quoted and quotes.present
    try:
        frame = pl.read_csv(
            file.path,
            separator=quotes.delimiter,
            quote_char='"' if quoted else None,
            has_header=header,
            infer_schema=False,
            glob=False,
        )
    except pl.exceptions.PolarsError as error:
        if quoted:
            return _parse_slowly(file.path, quotes.delimiter, header=header)
        raise RaggedError(_ragged_line(file.path, quotes.delimiter) or first_line(error)) from None
    if quoted:
        frame = frame.with_columns(pl.all().replace("", None))
    return frame if header else frame.rename(dict(zip(frame.columns, numbered(frame.width), strict=True)))


def _parse_slowly(path: Path, delimiter: str, *, header: bool) -> pl.DataFrame:
    """Quotes as the csv module and pandas take them.

    Polars 2.1 stumbles over a lone quote within a cell (seen on SMS texts) and refuses quotes that do not close.
    """
    with wide_cells():
        # A quote that is still open at the end swallows this last line of our own.
        rows = csv_rows(path, delimiter, end=[_END_MARK])
        first = next(rows)
        names = distinct_names(first) if header else numbered(len(first))
        rows = rows if header else itertools.chain([first], rows)
        parts = []
        while part := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            parts.append(_part_frame(part, names))
    frame = pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    if not frame.height or frame.row(-1)[0] != _END_MARK:
        raise RaggedError("a double quote opens a cell and never closes")
    return frame.head(-1)


def _part_frame(rows: Sequence[Sequence[str]], names: Sequence[str]) -> pl.DataFrame:
    width = len(names)
    wide = next((row for row in rows if len(row) > width), None)
    if wide is not None:
        raise RaggedError(f"the row {listed(wide, 3)} has {len(wide)} cells and the first row {width}")
    columns = [[(row[i] or None) if i < len(row) else None for row in rows] for i in range(width)]
    return pl.DataFrame(dict(zip(names, columns, strict=True)), schema=dict.fromkeys(names, pl.String))


def _ragged_line(path: Path, delimiter: str) -> str | None:
    width = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            cells = line.count(delimiter.encode()) + 1
            width = width or cells
            if cells > width:
                return f"line {number} has {cells} cells and the first one {width}"
    return None
