"""The rows of a source one after the other, so that a table of any size takes little memory. No polars for text files.

CSV and its kin, JSON lines, Parquet, patterns of them and databases are streamed; whatever else the readers know is
read whole.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tagsmith.data.archives import unpacked
from tagsmith.data.database_rows import database_rows, is_url, redacted
from tagsmith.data.dialects import (
    Quotes,
    RaggedError,
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
from tagsmith.data.encodings import as_utf8
from tagsmith.data.files import File, listed, mapped
from tagsmith.data.pairs import PAIR
from tagsmith.data.sources import find_files, is_folder
from tagsmith.data.text_columns import columns_of_text, find_text, require_column, template_of
from tagsmith.data.words import mended, word_of
from tagsmith.errors import DataError

Record = dict[str, Any]
_END_MARK = "\N{SYMBOL FOR END OF TRANSMISSION}"
_SAMPLE = 10_000


@dataclass(frozen=True)
class Stream:
    """The rows of a source: their columns, how many there are (None where only reading tells), and how to begin.

    Cells of text files are words, None where they are empty; other sources give what they hold. `schema` are the
    types of the columns where the source has such, as polars names them.
    """

    columns: tuple[str, ...]
    count: int | None
    read: Callable[[], Iterator[Record]]
    schema: Mapping[str, Any] | None = None


@contextmanager
def opened(source: str | Path, *, query: str | None = None) -> Iterator[Stream]:
    """The rows of a source, named as for `read`; DataError for what cannot be read."""
    if is_url(source):
        with database_rows(str(source), query) as found:
            yield _once(found.names, found.rows)
        return
    if query is not None:
        raise DataError(
            f"A query was given, and '{source}' is no database. Expected sqlite:///PATH or postgresql://...; leave the "
            "query out."
        )
    if is_folder(source) or str(source).startswith("hf:"):
        yield _heavy("whole_rows", source)
        return
    with tempfile.TemporaryDirectory(prefix="tagsmith-", ignore_cleanup_errors=True) as scratch:
        files = find_files(source, Path(scratch))
        yield _joined(files, [_of_file(file, Path(scratch)) for file in files])


def _once(names: Sequence[str], rows: Iterator[Sequence[object]]) -> Stream:
    return Stream(tuple(names), None, lambda: (dict(zip(names, row, strict=True)) for row in rows))


def _heavy(name: str, argument: object) -> Stream:
    try:
        from tagsmith.data import heavy_rows
    except ImportError as error:
        raise DataError(
            f"Reading this source needs {error.name}, which is not installed. Expected CSV, JSON lines or "
            "SQLite, which need nothing; convert it, or install tagsmith with all that it depends on."
        ) from None
    found = getattr(heavy_rows, name)(argument)
    return Stream(found.columns, found.count, found.read, found.schema)


def _joined(files: Sequence[File], streams: Sequence[Stream]) -> Stream:
    """The rows of all files below one another, in the order of their names."""
    first = streams[0]
    for file, stream in zip(files, streams, strict=True):
        if set(stream.columns) != set(first.columns):
            raise DataError(
                f"'{files[0].name}' has the columns {listed(first.columns)}, and '{file.name}' has "
                f"{listed(stream.columns)}. Expected the same in each of {len(files)} files; give those that agree."
            )
    if not sum(stream.count or 0 for stream in streams):
        names = listed(first.columns) or "of nothing"
        raise DataError(f"'{files[0].name}' has a header ({names}) and no rows. Expected rows below it; add some.")
    schema = first.schema if all(stream.schema == first.schema for stream in streams) else None
    return Stream(
        first.columns,
        sum(stream.count or 0 for stream in streams),
        lambda: itertools.chain.from_iterable(stream.read() for stream in streams),
        schema,
    )


# --- one file -------------------------------------------------------------------------------------------------------


def _of_file(file: File, scratch: Path) -> Stream:
    file = unpacked(file, scratch)
    with file.path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(b"PAR1"):
        return _heavy("parquet_rows", file)
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff", b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return _heavy("whole_rows", file.path)
    tidy = as_utf8(file, scratch)
    kind = _json_kind(tidy)
    if kind == "whole":
        return _heavy("whole_rows", file.path)
    return _json_lines(tidy) if kind == "lines" else _delimited(tidy)


def _json_kind(file: File) -> str:
    """`lines`, `whole` for an array or a lone object, or nothing for what is no JSON."""
    with file.path.open("rb") as stream:
        first = stream.readline().strip()
        more = bool(stream.readline().strip())
    suffix = PurePosixPath(file.name).suffix.lower()
    is_json = suffix in (".json", ".jsonl", ".ndjson")
    if not is_json and not (first.startswith(b"{") and suffix not in (".csv", ".tsv", ".tab", ".txt")):
        return ""
    try:
        is_record = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        is_record = False
    return "lines" if is_record and (more or suffix != ".json") else "whole"


def _json_lines(file: File) -> Stream:
    names: dict[str, None] = {}
    count = 0
    for count, record in enumerate(_records(file), start=1):
        names.update(dict.fromkeys(record))
    return Stream(tuple(names), count, lambda: ({name: r.get(name) for name in names} for r in _records(file)))


def _records(file: File) -> Iterator[Record]:
    with file.path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                said = line[:60].decode(errors="replace").strip()
                raise DataError(
                    f"'{file.name}' could not be read as JSON lines: line {number} is no JSON object: {said!r}. "
                    'Expected one object like {"text": "..."} in each line; mend or remove what is wrong.'
                )
            yield {mended(name): mended(v) if isinstance(v, str) else v for name, v in record.items()}


def _delimited(file: File) -> Stream:
    problem: RaggedError | None = None
    with mapped(file.path) as data:
        delimiter = find_delimiter(data, quoted=True)
        require_width(file, data, delimiter)
        quotes = Quotes(data, file.path, delimiter)
        for quoted in quotes.ways():
            sample = sample_rows(data, delimiter, quoted=quoted)
            way = _Way(file, delimiter, quoted=quoted and quotes.present, header=has_header(sample, asked="auto"))
            try:
                return way.stream()
            except RaggedError as error:
                problem = problem or error
    raise DataError(
        f"'{file.name}' was read as {word_of_delimiter(delimiter)}, but {problem}. Expected as many cells in each row; "
        "put texts that hold the separator in double quotes."
    )


@dataclass(frozen=True)
class _Way:
    """One way to take a text file."""

    file: File
    delimiter: str
    quoted: bool
    header: bool

    def stream(self) -> Stream:
        """Its rows, after all of them were looked at once: RaggedError for one with more cells than the first."""
        width, count = 0, 0
        first: list[str] = []
        for cells in self._rows():
            if not count:
                first, width = cells, len(cells)
            if len(cells) > width:
                raise RaggedError(f"the row {listed(cells, 3)} has {len(cells)} cells and the first row {width}")
            count += 1
        names = distinct_names(first) if self.header else numbered(width)
        return Stream(tuple(names), count - self.header, lambda: self._records(names))

    def _records(self, names: Sequence[str]) -> Iterator[Record]:
        rows = itertools.islice(self._rows(), int(self.header), None)
        for cells in rows:
            yield dict(itertools.zip_longest(names, [cell or None for cell in cells]))

    def _rows(self) -> Iterator[list[str]]:
        return self._quoted_rows() if self.quoted else self._plain_rows()

    def _plain_rows(self) -> Iterator[list[str]]:
        with self.file.path.open(encoding="utf-8", newline="\n") as stream:
            for line in stream:
                yield line.removesuffix("\n").removesuffix("\r").split(self.delimiter)

    def _quoted_rows(self) -> Iterator[list[str]]:
        with wide_cells():
            last: list[str] | None = None
            # A quote that is still open at the end swallows this last line of our own.
            for cells in csv_rows(self.file.path, self.delimiter, end=[_END_MARK]):
                if last is not None:
                    yield last
                last = cells
        if last != [_END_MARK]:
            raise RaggedError("a double quote opens a cell and never closes")


# --- the text of a row ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextOf:
    """How the text of a row is made: of a column, a template of several, or two of which the second is the pair."""

    text: str
    pair: str | None
    columns: tuple[str, ...]

    @classmethod
    def find(cls, stream: Stream, *, text: str | None, pair: str | None) -> TextOf:
        """As asked, or by the names of the columns, or by the longest of the first cells; DataError in doubt."""
        for name in [*columns_of_text(stream.columns, text), *([pair] if pair else [])]:
            require_column(stream.columns, name)
        taken = [] if pair is None else [pair]
        found, _ = find_text(stream.columns, text, taken, lambda names: _mean_lengths(stream, names))
        return cls(found, pair, stream.columns)

    def __call__(self, record: Record) -> str:
        """The text of a row, empty where every cell that it is made of is."""
        first = self._filled(record)
        if self.pair is None:
            return first or ""
        second = self._word(record, self.pair)
        return "" if first is None and second is None else f"{first or ''}{PAIR}{second or ''}"

    def _filled(self, record: Record) -> str | None:
        if self.text in self.columns:
            return self._word(record, self.text)
        pieces = template_of(self.text)
        words = {name: self._word(record, name) for _, name in pieces if name is not None}
        if not any(word and word.strip() for word in words.values()):
            return None
        return "".join(literal + (words[name] or "" if name is not None else "") for literal, name in pieces)

    def _word(self, record: Record, name: str) -> str | None:
        value = record.get(name)
        if isinstance(value, list | dict):
            raise DataError(
                f"The text column '{name}' holds lists or records. Expected one value per row; write one text into "
                "each row, or name another column with --text."
            )
        if isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        word = word_of(value)
        return None if word is None else mended(word).replace(PAIR, " ")


def _mean_lengths(stream: Stream, names: Sequence[str]) -> Mapping[str, float]:
    if stream.count is None:  # rows that come once are not read for a guess
        raise DataError(
            f"No column of {listed(stream.columns)} has a usual name for a text. Name it with --text COLUMN."
        )
    sums, counts = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for record in itertools.islice(stream.read(), _SAMPLE):
        for name in names:
            if isinstance(record[name], str):
                sums[name] += len(record[name])
                counts[name] += 1
    return {name: sums[name] / counts[name] for name in names if counts[name]}


def shown(source: str | Path) -> str:
    """The source as it may be shown."""
    return redacted(source)
