"""From a file to a table: CSV, TSV, JSON lines and Parquet, plain or zipped, with every guess told in the history."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import itertools
import json
import re
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import charset_normalizer
import polars as pl

from tagsmith.data.table import Change, Table
from tagsmith.errors import DataError

Quoting = Literal["auto", "standard", "none"]

TEXT_NAMES = (
    "text", "texts", "message", "sentence", "review", "content", "body", "tweet", "comment", "description",
    "utterance", "question", "query", "document", "sms", "post", "headline",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "tag", "polarity", "y",
)  # fmt: skip


@dataclass(frozen=True)
class Raw:
    """A source as it stands: all of its columns and rows, and in words how it was read.

    Every column is String (null where a cell is empty), but for lists and records, which keep their type.
    """

    frame: pl.DataFrame
    how: str


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, and in words why; `label` and `group` are None where there is none."""

    text: str
    label: str | None
    group: str | None
    why: str


def read(
    source: str | Path,
    *,
    text: str | None = None,
    label: str | None = None,
    group: str | None = None,
    quoting: Quoting = "auto",
    labelled: bool = True,
) -> Table:
    """The rows of a source that have a text and, where `labelled`, a label; the rest is counted in the history.

    `source` is a CSV, TSV, JSON-lines or Parquet file, a zip that holds one, or `-` for standard input. Columns that
    are not named are found by their names, or else by their content. DataError for whatever cannot be read.
    """
    raw = read_frame(source, quoting=quoting)
    columns = find_columns(raw.frame, text=text, label=label, group=group, labelled=labelled)
    rows = raw.frame.height
    history = (Change("read", rows, rows, raw.how), Change("columns", rows, rows, columns.why))
    table = _without_missing(_trim_labels(Table(_frame_of(raw.frame, columns), history)), labelled=labelled)
    if not len(table):
        wanted = f"a text in column '{columns.text}'" + (
            f" and a label in column '{columns.label}'" if labelled else ""
        )
        raise DataError(
            f"None of the {rows} rows has {wanted}. Expected at least one; name the right columns with "
            "--set data.text=NAME and --set data.label=NAME."
        )
    return table


def read_frame(source: str | Path, *, quoting: Quoting = "auto") -> Raw:
    """Every row and column of a source, for those who give them back beside the answers; DataError as in `read`."""
    file = _unzipped(_load(source))
    kind = _kind(file)
    if kind == "parquet":
        raw = _read_parquet(file)
    else:
        file = _as_utf8(file)
        raw = _read_json_lines(file) if kind == "json" else _read_delimited(file, quoting=quoting)
    if not raw.frame.height:
        raise DataError(
            f"'{file.name}' has a header ({_listed(raw.frame.columns)}) and no rows. Expected rows below it; add some."
        )
    return replace(raw, how="; ".join([*file.notes, raw.how]))


def find_columns(
    frame: pl.DataFrame,
    *,
    text: str | None = None,
    label: str | None = None,
    group: str | None = None,
    labelled: bool = True,
) -> Columns:
    """The columns asked for, or found by name, or else by content; DataError where there is none or more than one.

    Without `labelled` a label column is taken only when it is named or has a usual name.
    """
    for name in (text, label, group):
        if name is not None:
            _require(frame, name)
    given = [name for name in (text, label, group) if name is not None]
    if len(set(given)) < len(given):
        raise DataError(f"The columns {_listed(given)} were named; expected a different one for text, label and group.")
    text_column, text_why = _find_text(frame, text, [name for name in (label, group) if name])
    taken = [name for name in (text_column, group) if name]
    label_column, label_why = _find_label(frame, label, taken, labelled=labelled)
    for role, name in (("text", text_column), ("label", label_column), ("group", group)):
        _require_plain(frame, role, name)
    whys = [text_why, label_why, f"group = '{group}' (asked for)" if group else ""]
    return Columns(text_column, label_column, group, "; ".join(why for why in whys if why))


# --- from the source to bytes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    name: str
    data: bytes
    notes: tuple[str, ...] = ()


_MOST_BYTES = 4 * 2**30
_MOST_RATIO, _RATIO_FROM_BYTES = 200, 64 * 2**20
_SUFFIXES = {
    ".csv": "delimited", ".tsv": "delimited", ".tab": "delimited", ".txt": "delimited",
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_EXPECTED = "Expected a CSV, TSV, JSON-lines or Parquet file, or a zip that holds one"


def _load(source: str | Path) -> _File:
    if str(source) == "-":
        return _nonempty(_File("standard input", sys.stdin.buffer.read()))
    path = Path(source)
    try:
        return _nonempty(_File(path.name, path.read_bytes()))
    except FileNotFoundError:
        raise DataError(f"No file at '{path}'.{_nearest_file(path)} {_EXPECTED}; check the path.") from None
    except IsADirectoryError:
        raise DataError(f"'{path}' is a folder. {_EXPECTED}; name one file in it.") from None
    except OSError as error:
        raise DataError(f"'{path}' could not be read: {error.strerror}. {_EXPECTED}; check the file.") from None


def _nonempty(file: _File) -> _File:
    if not file.data.strip():
        raise DataError(f"'{file.name}' is empty. {_EXPECTED}, with a text and a label in each row.")
    return file


def _nearest_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f" There is no folder '{path.parent}' either." if not path.parent.exists() else ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _kind(file: _File) -> str:
    start = file.data[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    by_suffix = _SUFFIXES.get(PurePosixPath(file.name).suffix.lower())
    return by_suffix or ("json" if start.startswith(b"{") else "delimited")


def _unzipped(file: _File) -> _File:
    if not file.data.startswith(b"PK\x03\x04"):
        return file
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            entry = _table_in(archive, file.name)
            data = archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise DataError(
            f"The zip '{file.name}' is damaged or of an unknown kind: {error}. Pack or fetch it again."
        ) from None
    name = PurePosixPath(entry.filename).name
    return _nonempty(_File(name, data, (f"'{entry.filename}' from the zip '{file.name}'",)))


def _table_in(archive: zipfile.ZipFile, zip_name: str) -> zipfile.ZipInfo:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
        if ".." in parts or entry.filename.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", entry.filename):
            raise DataError(
                f"The zip '{zip_name}' holds '{entry.filename}', a path that leads out of it. Expected plain names; "
                "such a zip is not read: unpack it with care and give the table itself."
            )
    ranked = sorted((rank, i) for i, entry in enumerate(entries) if (rank := _rank(entry.filename)) is not None)
    if not ranked:
        found = _listed([entry.filename for entry in entries]) or "nothing"
        raise DataError(f"The zip '{zip_name}' holds no table, but {found}. {_EXPECTED}.")
    return _safe(entries[ranked[0][1]], zip_name)


def _rank(path: str) -> int | None:
    """Tables by their suffix come first; a plain name without one may be a table too (UCI's `SMSSpamCollection`)."""
    name = PurePosixPath(path).name.lower()
    suffix = PurePosixPath(name).suffix
    if path.startswith("__MACOSX/") or name.startswith((".", "readme", "license", "licence", "copying", "changelog")):
        return None
    if suffix in (".txt", ""):
        return 1
    return 0 if suffix in _SUFFIXES else None


def _safe(entry: zipfile.ZipInfo, zip_name: str) -> zipfile.ZipInfo:
    if entry.flag_bits & 1:
        raise DataError(
            f"'{entry.filename}' in the zip '{zip_name}' is encrypted. Unpack it and give the table itself."
        )
    ratio = entry.file_size / max(1, entry.compress_size)
    if entry.file_size > _MOST_BYTES or (entry.file_size > _RATIO_FROM_BYTES and ratio > _MOST_RATIO):
        raise DataError(
            f"'{entry.filename}' in the zip '{zip_name}' would unpack to {entry.file_size:,} bytes, {ratio:.0f} times "
            f"its packed size. Expected at most {_MOST_BYTES:,} bytes and {_MOST_RATIO} times; if you trust it, unpack "
            "it and give the table itself."
        )
    return entry


# --- from bytes to UTF-8 --------------------------------------------------------------------------------------------

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


# Of the hundred that could be meant, those in which tables are still written; a rare one would win by chance.
_ENCODINGS = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "iso8859_2", "mac_roman", "koi8_r"),
    *("gb18030", "big5", "cp932", "euc_jp", "cp949"),
]


def _as_utf8(file: _File) -> _File:
    encoding = _encoding(file)
    if encoding != "utf-8":
        try:
            data = file.data.decode(encoding).encode("utf-8")
        except UnicodeError:
            raise _binary(file.name, f"not valid {encoding}") from None
        file = replace(file, data=data, notes=(*file.notes, f"decoded from {encoding}"))
    file = replace(file, data=file.data.removeprefix(codecs.BOM_UTF8))
    if (position := file.data.find(b"\0")) >= 0:
        raise _binary(file.name, f"a zero byte at position {position}")
    if b"\r" in file.data and b"\n" not in file.data:
        file = replace(file, data=file.data.replace(b"\r", b"\n"))
    return _nonempty(replace(file, data=file.data.strip(b"\r\n")))


def _encoding(file: _File) -> str:
    for bom, encoding in _BOMS:
        if file.data.startswith(bom):
            return encoding
    try:
        file.data.decode("utf-8")
    except UnicodeDecodeError:
        return _guessed_encoding(file)
    return "utf-8"


def _guessed_encoding(file: _File) -> str:
    if b"\0" in file.data:
        raise _binary(file.name, f"a zero byte at position {file.data.find(0)}")
    # Only lines with bytes above 127 tell encodings apart; a long start in plain ASCII would tell nothing.
    lines = (match[0] for match in re.finditer(rb"[^\n]*[\x80-\xff][^\n]*\n?", file.data))
    sample = b"".join(itertools.islice(lines, 2000))[: 256 * 1024]
    controls = len(re.findall(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]", sample))
    matches = charset_normalizer.from_bytes(sample, cp_isolation=_ENCODINGS)
    best = matches.best() if controls * 100 <= len(sample) else None
    if best is None:
        raise _binary(file.name, "bytes that are text in no known encoding")
    # By far the most common of them, where the bytes are alike in it or too few to tell a language by (a pound sign).
    few = len(re.findall(rb"[\x80-\xff]", sample)) * 10 < len(sample)
    western = [match.coherence for match in matches if "cp1252" in match.could_be_from_charset]
    alike = max(western, default=-1) >= best.coherence - 0.05 or (few and best.coherence == 0)
    return "cp1252" if alike else best.encoding


def _binary(name: str, found: str) -> DataError:
    return DataError(f"'{name}' is not a text file: found {found}. {_EXPECTED}; export the table as CSV in UTF-8.")


# --- CSV, TSV and their kin -----------------------------------------------------------------------------------------

_DELIMITERS = {"\t": "tab-separated", ",": "comma-separated", ";": "semicolon-separated", "|": "bar-separated"}
_NO_DELIMITER = "\x1f"
_SAMPLE_CHARACTERS, _SAMPLE_ROWS = 256 * 1024, 200
_ROWS_AT_ONCE = 100_000
_END_MARK = "\N{SYMBOL FOR END OF TRANSMISSION}"


class _RaggedError(Exception):
    """A row with more cells than the first one."""


def _read_delimited(file: _File, *, quoting: Quoting) -> Raw:
    delimiter = _delimiter(file.data, quoting=quoting)
    valid = b'"' not in file.data or _strictly_quoted(file.data, delimiter)
    problem: _RaggedError | None = None
    for quoted in _quotings(file.data, delimiter, quoting=quoting, valid=valid):
        header = _has_header(_sample(file.data, delimiter, quoted=quoted))
        try:
            frame = _parse(file, delimiter, quoted=quoted, header=header)
        except _RaggedError as error:
            problem = problem or error
            continue
        return Raw(frame, _told(delimiter, header=header, quoted=quoted, quotes=b'"' in file.data))
    raise DataError(
        f"'{file.name}' was read as {_DELIMITERS.get(delimiter, 'one text per line')}, but {problem}. Expected as many "
        "cells in each row; put texts that hold the separator in double quotes, or try --set data.quoting=standard "
        "or --set data.quoting=none."
    )


def _told(delimiter: str, *, header: bool, quoted: bool, quotes: bool) -> str:
    words = [_DELIMITERS.get(delimiter, "one text per line"), "with a header" if header else "no header"]
    if quotes:
        words.append("quotes as in RFC 4180" if quoted else "quotes taken as text")
    return "read as " + ", ".join(words)


def _quotings(data: bytes, delimiter: str, *, quoting: Quoting, valid: bool) -> list[bool]:
    """The ways to take quotes, in the order in which they are tried."""
    if quoting != "auto" or b'"' not in data:
        return [quoting != "none"]
    if not valid:
        return [False, True]
    return [delimiter in ",;|" or _needs_quotes(data, delimiter)]


def _needs_quotes(data: bytes, delimiter: str) -> bool:
    """Whether the quotes of a properly quoted TSV do something: hold the first cell, a quote, a line end, a tab."""
    if data.startswith(b'"') or re.search(rb'(?:^|[\t\n])"[^"]*""', data):
        return True
    with _wide_cells():
        return any("\n" in cell or "\t" in cell for row in _csv_rows(data, delimiter) for cell in row)


def _strictly_quoted(data: bytes, delimiter: str) -> bool:
    """Whether each cell that opens with a quote also closes with one, as RFC 4180 wants."""
    with _wide_cells():
        try:
            deque(_csv_rows(data, delimiter, strict=True), maxlen=0)
        except csv.Error:
            return False
    return True


def _csv_rows(data: bytes, delimiter: str, *, strict: bool = False) -> Iterator[list[str]]:
    stream = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")
    return csv.reader(stream, delimiter=delimiter, strict=strict)


@contextmanager
def _wide_cells() -> Iterator[None]:
    """Cells of more than the csv module's 128 KiB, for long documents."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _sample(data: bytes, delimiter: str, *, quoted: bool) -> list[list[str]]:
    text = data[:_SAMPLE_CHARACTERS].decode("utf-8", errors="ignore")
    quotes: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with _wide_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quotes)
        rows = [row for row in itertools.islice(reader, _SAMPLE_ROWS) if row]
    return rows[:-1] if len(data) > _SAMPLE_CHARACTERS and 1 < len(rows) < _SAMPLE_ROWS else rows


def _delimiter(data: bytes, *, quoting: Quoting) -> str:
    """The separator that cuts most of the first rows into as many cells as the first one; none if no one does."""
    best, best_share = _NO_DELIMITER, 0.5
    for delimiter in _DELIMITERS:
        rows = _sample(data, delimiter, quoted=quoting != "none" and delimiter != "\t")
        if not rows or len(rows[0]) < 2:
            continue
        named = any(_is_known(cell) for cell in rows[0])
        share = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if share > best_share or (named and best == _NO_DELIMITER):
            best, best_share = delimiter, share
    return best


def _is_known(cell: str) -> bool:
    return cell.strip().casefold() in (*TEXT_NAMES, *LABEL_NAMES)


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: it looks like names, and no column repeats its cell further down."""
    first, later = rows[0], [row for row in rows[1:] if row != rows[0]]
    if any(cell.strip() and any(row[i : i + 1] == [cell] for row in later) for i, cell in enumerate(first)):
        return False
    if any(_is_known(cell) for cell in first):
        return True
    named = [cell for cell in first if cell.strip()]
    return bool(named) and len(set(named)) == len(named) and all(_is_name(cell) for cell in named)


def _is_name(cell: str) -> bool:
    return len(cell) <= 40 and len(cell.split()) <= 3 and bool(re.fullmatch(r"[^\W\d][\w .:/#()\-]*", cell.strip()))


def _parse(file: _File, delimiter: str, *, quoted: bool, header: bool) -> pl.DataFrame:
    if quoted and b'"' in file.data:
        return _parse_quoted(file.data, delimiter, header=header)
    try:
        frame = pl.read_csv(file.data, separator=delimiter, quote_char=None, has_header=header, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise _RaggedError(_ragged_line(file.data, delimiter) or str(error).splitlines()[0]) from None
    return frame if header else frame.rename(dict(zip(frame.columns, _numbered(frame.width), strict=True)))


def _parse_quoted(data: bytes, delimiter: str, *, header: bool) -> pl.DataFrame:
    """Quotes as the csv module and pandas take them.

    Polars 2.1 stumbles over a lone quote within a cell (seen on SMS texts) and refuses quotes that do not close.
    """
    with _wide_cells():
        # A quote that is still open at the end swallows this last line of our own.
        rows = _csv_rows(data + f"\n{_END_MARK}".encode(), delimiter)
        first = next(rows)
        names = _distinct(first) if header else _numbered(len(first))
        rows = rows if header else itertools.chain([first], rows)
        parts = []
        while part := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            parts.append(_part_frame(part, names))
    frame = pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    if not frame.height or frame.row(-1)[0] != _END_MARK:
        raise _RaggedError("a double quote opens a cell and never closes")
    return frame.head(-1)


def _part_frame(rows: Sequence[Sequence[str]], names: Sequence[str]) -> pl.DataFrame:
    width = len(names)
    wide = next((row for row in rows if len(row) > width), None)
    if wide is not None:
        raise _RaggedError(f"the row {_listed(wide, 3)} has {len(wide)} cells and the first row {width}")
    columns = [[(row[i] or None) if i < len(row) else None for row in rows] for i in range(width)]
    return pl.DataFrame(dict(zip(names, columns, strict=True)), schema=dict.fromkeys(names, pl.String))


def _numbered(width: int) -> list[str]:
    return [f"column_{i + 1}" for i in range(width)]


def _distinct(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        result.append(name if name not in seen else f"{name}_duplicated_{seen[name] - 1}")
        seen[name] = seen.get(name, 0) + 1
    return result


def _ragged_line(data: bytes, delimiter: str) -> str | None:
    width = 0
    for number, line in enumerate(io.BytesIO(data), start=1):
        cells = line.count(delimiter.encode()) + 1
        width = width or cells
        if cells > width:
            return f"line {number} has {cells} cells and the first one {width}"
    return None


# --- JSON lines and Parquet -----------------------------------------------------------------------------------------

_JSON_SAMPLE = 1000


def _read_json_lines(file: _File) -> Raw:
    if file.data.lstrip().startswith(b"["):
        raise DataError(
            f"'{file.name}' is one JSON array. Expected JSON lines, one object per line; convert it with jq -c '.[]'."
        )
    lines = (line for line in io.BytesIO(file.data) if line.strip())
    types: dict[str, pl.DataType | type[pl.DataType]] = {}
    for line in itertools.islice(lines, _JSON_SAMPLE):
        record = _json_object(line)
        if record is None:
            break
        for key, value in record.items():
            is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
            types[key] = pl.List(pl.String) if is_list else types.get(key, pl.String)
    try:
        frame = pl.read_ndjson(file.data, schema=types)
    except pl.exceptions.PolarsError as error:
        raise _json_error(file, str(error).splitlines()[0]) from None
    return Raw(_strings(frame), f"read as JSON lines with the keys {_listed(frame.columns)}")


def _json_object(line: bytes) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _json_error(file: _File, reason: str) -> DataError:
    for number, line in enumerate(io.BytesIO(file.data), start=1):
        if line.strip() and _json_object(line) is None:
            reason = f"line {number} is no JSON object: {line[:60].decode(errors='replace').strip()!r}"
            break
    return DataError(
        f"'{file.name}' could not be read as JSON lines: {reason}. Expected one object like "
        '{"text": "...", "label": "..."} in each line; mend or remove that line.'
    )


def _read_parquet(file: _File) -> Raw:
    try:
        frame = pl.read_parquet(io.BytesIO(file.data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"'{file.name}' could not be read as Parquet: {str(error).splitlines()[0]}. Write or fetch the file again."
        ) from None
    return Raw(_strings(frame), f"read as Parquet with the columns {_listed(frame.columns)}")


def _strings(frame: pl.DataFrame) -> pl.DataFrame:
    """Values as words: 1 and 1.0 become "1", true becomes "true"; lists and records stay."""
    return frame.select(_string(pl.col(name), dtype).alias(name) for name, dtype in frame.schema.items())


def _string(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_nested() or dtype == pl.String:
        return column
    if dtype.is_float():
        whole = column.is_finite() & (column == column.round()) & (column.abs() < 2**53)
        integral = pl.when(whole).then(column).cast(pl.Int64).cast(pl.String)
        return pl.when(whole).then(integral).otherwise(column.cast(pl.String))
    return column.cast(pl.String, strict=False)


# --- columns --------------------------------------------------------------------------------------------------------

_TO_DO = {role: f"name it with --set data.{role}=NAME" for role in ("text", "label", "group")}


def _require(frame: pl.DataFrame, name: str) -> None:
    if name in frame.columns:
        return
    folded = {column.casefold(): column for column in frame.columns}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    hint = f" Did you mean '{folded[near[0]]}'?" if near else ""
    raise DataError(f"No column '{name}'.{hint} Found the columns {_listed(frame.columns)}; name one of them.")


def _require_plain(frame: pl.DataFrame, role: str, name: str | None) -> None:
    if name is not None and frame.schema[name] != pl.String:
        raise DataError(
            f"The {role} column '{name}' holds lists or records ({frame.schema[name]}). Expected one value per row; "
            f"write one {role} into each row, or {_TO_DO[role]}."
        )


def _find_text(frame: pl.DataFrame, asked: str | None, taken: Sequence[str]) -> tuple[str, str]:
    if asked is not None:
        return asked, f"text = '{asked}' (asked for)"
    free = [name for name in frame.columns if name not in taken]
    if named := _by_name(free, TEXT_NAMES, role="text"):
        return named, f"text = '{named}' (by its name)"
    lengths = _mean_lengths(frame, free)
    ranked = sorted(lengths, key=lambda name: -lengths[name])
    if not ranked or lengths[ranked[0]] == 0:
        raise DataError(f"Found no column with text among {_listed(frame.columns)}. Expected one; {_TO_DO['text']}.")
    # Two columns of prose, say a question and its answer: a guess would be wrong half the time.
    rivals = [name for name in ranked[1:] if lengths[name] > 20 and lengths[name] > lengths[ranked[0]] / 2]
    if rivals:
        raise DataError(
            f"The columns {_listed([ranked[0], *rivals])} all look like text. Expected one; {_TO_DO['text']}."
        )
    return ranked[0], f"text = '{ranked[0]}' (the longest cells)"


def _find_label(
    frame: pl.DataFrame, asked: str | None, taken: Sequence[str], *, labelled: bool
) -> tuple[str | None, str]:
    if asked is not None:
        return asked, f"label = '{asked}' (asked for)"
    free = [name for name in frame.columns if name not in taken]
    if named := _by_name(free, LABEL_NAMES, role="label", strict=labelled):
        return named, f"label = '{named}' (by its name)"
    if not labelled:
        return None, ""
    likely = [name for name in free if _is_label_like(frame[name])]
    if len(likely) != 1:
        found = f"The columns {_listed(likely)} all look like labels" if likely else "No column looks like labels"
        raise DataError(
            f"{found} among {_listed(frame.columns)}. Expected one with few, short values; {_TO_DO['label']}."
        )
    return likely[0], f"label = '{likely[0]}' (few, short values)"


def _by_name(columns: Sequence[str], names: Sequence[str], *, role: str, strict: bool = True) -> str | None:
    """The one column with a usual name; the plainest name (`text`, `label`) wins over all others."""
    matches = [column for column in columns if column.strip().casefold() in names]
    plain = [column for column in matches if column.strip().casefold() == names[0]]
    if len(plain) == 1:
        return plain[0]
    if len(matches) > 1 and strict:
        raise DataError(f"The columns {_listed(matches)} could all be the {role}. Expected one; {_TO_DO[role]}.")
    return matches[0] if len(matches) == 1 else None


def _mean_lengths(frame: pl.DataFrame, names: Sequence[str]) -> dict[str, float]:
    plain = [name for name in names if frame.schema[name] == pl.String]
    if not plain:
        return {}
    means = frame.head(10_000).select(pl.col(name).str.len_chars().mean() for name in plain).row(0)
    return {name: mean or 0.0 for name, mean in zip(plain, means, strict=True)}


def _is_label_like(column: pl.Series) -> bool:
    if column.dtype != pl.String:
        return False
    values = column.drop_nulls()
    distinct = values.n_unique()
    length = values.str.len_chars().mean() or 0
    return 1 <= distinct <= max(2, min(len(values) // 2, 1000)) and float(str(length)) <= 50


# --- from columns to rows -------------------------------------------------------------------------------------------


def _frame_of(frame: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    row = pl.int_range(pl.len(), dtype=pl.UInt32)
    own = pl.lit("row ") + row.cast(pl.String)
    key = own if columns.group is None else pl.coalesce(pl.lit("group ") + pl.col(columns.group), own)
    group = row if columns.group is None else key.rank("dense").cast(pl.UInt32) - 1
    label = pl.lit(None, dtype=pl.String) if columns.label is None else pl.col(columns.label)
    return frame.select(
        row.alias("row"), pl.col(columns.text).alias("text"), label.alias("label"), group.alias("group")
    )


def _trim_labels(table: Table) -> Table:
    trimmed = table.frame.with_columns(pl.col("label").str.strip_chars())
    rows = table.frame.filter(pl.col("label").ne_missing(trimmed["label"]))["row"].to_list()
    if not rows:
        return table
    reason = f"white space around the label was removed in {len(rows)} rows"
    return table.changed(trimmed, step="trim labels", reason=reason, rows=rows)


def _without_missing(table: Table, *, labelled: bool) -> Table:
    table = _dropped(table, pl.col("text").is_null() | (pl.col("text").str.strip_chars() == ""), reason="no text")
    if not labelled:
        return table
    return _dropped(table, pl.col("label").is_null() | (pl.col("label") == ""), reason="no label")


def _dropped(table: Table, missing: pl.Expr, *, reason: str) -> Table:
    rows = table.frame.filter(missing)["row"].to_list()
    if not rows:
        return table
    return table.changed(table.frame.filter(~missing), step="drop", reason=f"{reason}: {len(rows)} rows", rows=rows)


def _listed(names: Sequence[str], most: int = 12) -> str:
    quoted = [f"'{name}'" for name in names[:most]]
    return ", ".join(quoted) + (f" and {len(names) - most} more" if len(names) > most else "")
