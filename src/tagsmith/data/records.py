"""JSON lines, and JSON: an array of objects, an object of columns, or an object that holds one of them."""

from __future__ import annotations

import itertools
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tagsmith.data.cells import is_plain_list, joined, part_of
from tagsmith.data.files import File, Raw, listed, mapped, require_columns
from tagsmith.errors import DataError

_SAMPLE_LINES, _SAMPLE_PLACES = 1000, 200
_ROWS_AT_ONCE = 50_000
_PIECE = 1 << 20
_MOST_OF_ONE = 512 << 20
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)

Record = dict[str, Any]


class _JsonError(Exception):
    """What is wrong with the file, as the rest of a sentence."""


def read_json(file: File) -> Raw:
    """The records of a file in UTF-8, one row each; DataError for what is no JSON, or no table."""
    try:
        with mapped(file.path) as data:
            if data[:_PIECE].lstrip()[:1] == b"[":
                return _told(file, _frame_of(_elements(file.path)), "a JSON array of objects")
            if (columns := _columns(data)) is not None:
                return _told(file, _frame_of(columns), "one JSON object")
            frame = None if _has_half_characters(data) else _read_fast(file, data)
        return _told(file, _frame_of(_lines(file.path)) if frame is None else (frame, 0), "JSON lines")
    except _JsonError as error:
        raise DataError(
            f"'{file.name}' could not be read as JSON: {error}. Expected one object like "
            '{"text": "...", "label": "..."} in each line, or an array of such objects; mend or remove what is wrong.'
        ) from None


def _told(file: File, read: tuple[pl.DataFrame, int], kind: str) -> Raw:
    frame, mended = read
    require_columns(file.name, frame.width)
    surrogates = f"; halves of a character (lone surrogates) were replaced in {mended:,} cells" if mended else ""
    return Raw(frame, f"read as {kind} with the keys {listed(frame.columns)}{surrogates}")


def _has_half_characters(data: mmap.mmap) -> bool:
    """Whether an escape stands for one half of a character alone, of which Polars would make a zero byte."""
    return any(data.find(start) >= 0 for start in (rb"\ud", rb"\uD")) and _LONE_SURROGATE.search(data) is not None


# --- JSON lines, fast -----------------------------------------------------------------------------------------------


def _read_fast(file: File, data: mmap.mmap) -> pl.DataFrame | None:
    """What Polars makes of it; None where it stumbles, for which there is a slow way that names the line."""
    types: dict[str, pl.DataType | type[pl.DataType]] = {}
    for line in _sampled(data):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict):
            return None
        for key, value in record.items():
            types[key] = pl.List(pl.String) if is_plain_list(value) else types.get(key, pl.String)
    require_columns(file.name, len(types))
    try:
        frame = pl.read_ndjson(file.path, schema=types)
    except pl.exceptions.PolarsError:
        return None
    return None if any(_hides_lists(column) for column in frame if column.dtype == pl.String) else frame


def _hides_lists(column: pl.Series) -> bool:
    """Whether a list that no sample showed became a word such as `["a"]`; a text such as `[deleted]` is none."""
    cells = column.filter(column.str.starts_with("[") & column.str.ends_with("]")).unique()
    return any(is_plain_list(_parsed(cell)) for cell in cells.to_list())


def _parsed(cell: str) -> object:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return None


def _sampled(data: mmap.mmap) -> Iterator[bytes]:
    """The first lines, and some from all over the file, for keys and lists that come late."""
    position = 0
    for _ in range(_SAMPLE_LINES):
        end = data.find(b"\n", position)
        line = data[position : len(data) if end < 0 else end]
        if line.strip():
            yield line
        if end < 0:
            return
        position = end + 1
    for place in range(position, len(data), max(1, (len(data) - position) // _SAMPLE_PLACES)):
        start = data.find(b"\n", place) + 1
        end = data.find(b"\n", start)
        if 0 < start < end and data[start:end].strip():
            yield data[start:end]


# --- one record after the other -------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except RecursionError:
                raise _JsonError(f"line {number} is nested too deeply") from None
            except ValueError:
                record = None
            if not isinstance(record, dict):
                said = line[:60].decode(errors="replace").strip()
                raise _JsonError(f"line {number} is no JSON object: {said!r}")
            yield record


def _elements(path: Path) -> Iterator[Record]:
    """The objects of an array, of which only some are held at once."""
    decoder, number = json.JSONDecoder(), 0
    with path.open(encoding="utf-8") as stream:
        buffer = stream.read(_PIECE).lstrip()[1:]
        while True:
            buffer = buffer.lstrip(" \t\r\n,") or stream.read(_PIECE).lstrip(" \t\r\n,")
            if not buffer:
                raise _JsonError("the array does not end")
            if buffer[0] == "]":
                return
            start = 0
            while start < len(buffer) and buffer[start] != "]":
                try:
                    record, start = decoder.raw_decode(buffer, start)
                except RecursionError:
                    raise _JsonError(f"element {number + 1} is nested too deeply") from None
                except ValueError:
                    break
                number += 1
                if not isinstance(record, dict):
                    raise _JsonError(f"element {number} is no object: {json.dumps(record)[:60]}")
                yield record
                start = _next(buffer, start)
            more = stream.read(max(_PIECE, len(buffer) - start)) if buffer[start : start + 1] != "]" else ""
            if not more and buffer[start : start + 1] != "]":
                raise _JsonError(f"element {number + 1} is no JSON object: {buffer[start : start + 60].strip()!r}")
            buffer = buffer[start:] + more


def _next(buffer: str, start: int) -> int:
    """Where the next element may start."""
    while start < len(buffer) and buffer[start] in " \t\r\n,":
        start += 1
    return start


def _columns(data: mmap.mmap) -> Iterator[Record] | None:
    """The rows of a lone object that is a table; None where the file holds a row in each line."""
    end = data.find(b"\n")
    first = data[: len(data) if end < 0 else end]
    try:
        record, lone = json.loads(first), end < 0
    except RecursionError:
        raise _JsonError("line 1 is nested too deeply") from None
    except ValueError:
        record, lone = _whole(data), True
    return _rows(record) if lone and isinstance(record, dict) else None


def _whole(data: mmap.mmap) -> object:
    if len(data) > _MOST_OF_ONE:
        return None
    try:
        return json.loads(data[:])
    except RecursionError:
        raise _JsonError("it is nested too deeply") from None
    except ValueError:
        return None


def _rows(record: Record) -> Iterator[Record] | None:
    for value in record.values():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return iter(value)
    # pandas writes {"text": {"0": "...", "1": "..."}}.
    columns = {key: list(value.values()) if isinstance(value, dict) else value for key, value in record.items()}
    if not columns or not all(isinstance(value, list) for value in columns.values()):
        return None
    lengths = {len(value) for value in columns.values()}
    if len(lengths) > 1:
        told = ", ".join(f"'{key}' {len(value)}" for key, value in itertools.islice(columns.items(), 5))
        raise _JsonError(f"its columns have different lengths ({told})")
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


# --- from records to columns ----------------------------------------------------------------------------------------


def _frame_of(records: Iterator[Record]) -> tuple[pl.DataFrame, int]:
    """The frame, and in how many cells half a character was replaced."""
    parts, mended = [], 0
    while part := list(itertools.islice(records, _ROWS_AT_ONCE)):
        names = list(dict.fromkeys(itertools.chain.from_iterable(part)))
        frame, strange = part_of(names, ([record.get(name) for record in part] for name in names))
        parts.append(frame)
        mended += strange
    return (joined(parts) if parts else pl.DataFrame()), mended
