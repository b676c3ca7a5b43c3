"""How a text file lays out its rows: the separator, the header and what quotes mean, found by looking. No polars."""

from __future__ import annotations

import csv
import io
import itertools
import mmap
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from tagsmith.data.files import File, require_columns
from tagsmith.data.text_columns import LABEL_NAMES, TEXT_NAMES
from tagsmith.errors import SettingError

DELIMITERS = {"\t": "tab-separated", ",": "comma-separated", ";": "semicolon-separated", "|": "bar-separated"}
NO_DELIMITER = "\x1f"
_SAMPLE_CHARACTERS, _SAMPLE_ROWS = 256 * 1024, 200


class RaggedError(Exception):
    """A row with more cells than the first one."""


def word_of_delimiter(delimiter: str) -> str:
    """The separator in words."""
    if delimiter == NO_DELIMITER:
        return "one text per line"
    return DELIMITERS.get(delimiter) or f"separated by {delimiter!r}"


# --- the separator and the header -----------------------------------------------------------------------------------


def asked_delimiter(delimiter: str | None) -> str | None:
    """The separator that a user asked for, `tab` by its sign; SettingError for what separates nothing."""
    if delimiter is None:
        return None
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if len(delimiter.encode()) != 1 or delimiter in '"\r\n':
        raise SettingError(
            f"data.delimiter cannot be {delimiter!r}. Expected one plain character such as ',' or ';', or 'tab'."
        )
    return delimiter


def find_delimiter(data: mmap.mmap, *, quoted: bool) -> str:
    """The separator that cuts most of the first rows into as many cells as the first one; none if no one does."""
    best, best_share = NO_DELIMITER, 0.5
    for delimiter in DELIMITERS:
        rows = sample_rows(data, delimiter, quoted=quoted and delimiter != "\t")
        if not rows or len(rows[0]) < 2:
            continue
        named = any(_is_known(cell) for cell in rows[0])
        share = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if share > best_share or (named and best == NO_DELIMITER):
            best, best_share = delimiter, share
    return best


def sample_rows(data: mmap.mmap, delimiter: str, *, quoted: bool) -> list[list[str]]:
    """The first rows that are whole."""
    text = data[:_SAMPLE_CHARACTERS].decode("utf-8", errors="ignore")
    quotes: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with wide_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quotes)
        rows = [row for row in itertools.islice(reader, _SAMPLE_ROWS) if row]
    return rows[:-1] if len(data) > _SAMPLE_CHARACTERS and 1 < len(rows) < _SAMPLE_ROWS else rows


def require_width(file: File, data: mmap.mmap, delimiter: str) -> None:
    """DataError where the first row has more cells than any table of texts."""
    end = data.find(b"\n")
    require_columns(file.name, data[: len(data) if end < 0 else end].count(delimiter.encode()) + 1)


def _is_known(cell: str) -> bool:
    return cell.strip().casefold() in (*TEXT_NAMES, *LABEL_NAMES)


def has_header(rows: Sequence[Sequence[str]], *, asked: str) -> bool:
    """Whether the first row names the columns: it looks like names, and no column repeats its cell further down."""
    if asked != "auto":
        return asked == "yes"
    first, later = rows[0], [row for row in rows[1:] if row != rows[0]]
    if any(cell.strip() and any(row[i : i + 1] == [cell] for row in later) for i, cell in enumerate(first)):
        return False
    if any(_is_known(cell) for cell in first):
        return True
    named = [cell for cell in first if cell.strip()]
    return bool(named) and len(set(named)) == len(named) and all(_is_name(cell) for cell in named)


def _is_name(cell: str) -> bool:
    """A few words; one that starts with digits (`2nd_text`) has no blanks, or "3 apples" would be a name too."""
    words = r"[^\W\d][\w .:/#()\-]*"
    return (
        len(cell) <= 40
        and len(cell.split()) <= 3
        and bool(re.fullmatch(rf"{words}|\d[\w\-]*[^\W\d][\w\-]*", cell.strip()))
    )


# --- what quotes mean -----------------------------------------------------------------------------------------------


class Quotes:
    """The double quotes of a file: are there any, do they hold cells together, and do all of them close?"""

    def __init__(self, data: mmap.mmap, path: Path, delimiter: str) -> None:
        self.data, self.path, self.delimiter = data, path, delimiter
        self.present = data.find(b'"') >= 0
        old_ends = data.find(b'"\r') >= 0 and re.search(rb'"\r(?!\n)', data) is not None
        self.plain = self.present and not old_ends and _are_paired(data, delimiter)

    def ways(self) -> list[bool]:
        """The ways to take quotes, in the order in which they are tried."""
        if not self.present:
            return [True]
        if not self.plain and not _is_strict(self.path, self.delimiter):
            return [False, True]
        return [self.delimiter in ",;|" or self._matter()]

    def _matter(self) -> bool:
        """Whether the quotes of a properly quoted TSV do something: hold the first cell, a quote, a line end, a tab."""
        doubled, broken = rb'(?:^|[\t\n])"[^"]*""', rb'(?:^|[\t\n])"[^"\t\n]*[\t\n]'
        if self.data[:1] == b'"' or re.search(doubled, self.data):
            return True
        if self.plain:
            return bool(re.search(broken, self.data))
        with wide_cells():
            return any("\n" in cell or "\t" in cell for row in csv_rows(self.path, self.delimiter) for cell in row)


def _are_paired(data: mmap.mmap, delimiter: str) -> bool:
    """Whether each quote in the file opens a cell, closes one, or is one of two that stand for a quote (RFC 4180).

    A file of which this holds is read by the fast reader; Python's csv module takes 20 times as long. Quotes number
    0, 2, 4 ... open, and the others close: each must have a cell's end beside it, or another quote.
    """
    array = np.frombuffer(data, dtype=np.uint8)
    before, after = np.zeros(256, dtype=bool), np.zeros(256, dtype=bool)
    before[[ord(delimiter), 10, 34]] = True
    after[[ord(delimiter), 10, 13, 34]] = True
    count, paired = 0, True
    for start in range(0, len(array), _QUOTES_AT_ONCE):
        places = np.flatnonzero(array[start : start + _QUOTES_AT_ONCE] == 34) + start
        opens, closes = places[count % 2 :: 2], places[1 - count % 2 :: 2]
        count += len(places)
        paired = (
            bool(before[array[opens[opens > 0] - 1]].all())
            and bool(after[array[closes[closes < len(array) - 1] + 1]].all())
        )  # fmt: skip
        if not paired:
            break
    del array
    return paired and count % 2 == 0


_QUOTES_AT_ONCE = 16 << 20


def _is_strict(path: Path, delimiter: str) -> bool:
    """Whether each cell that opens with a quote also closes with one, whatever quotes stand within other cells."""
    with wide_cells():
        try:
            deque(csv_rows(path, delimiter, strict=True), maxlen=0)
        except csv.Error:
            return False
    return True


def csv_rows(path: Path, delimiter: str, *, strict: bool = False, end: Sequence[str] = ()) -> Iterator[list[str]]:
    """Rows as the csv module takes them, `end` behind the last line."""
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.reader(itertools.chain(stream, end), delimiter=delimiter, strict=strict)


@contextmanager
def wide_cells() -> Iterator[None]:
    """Cells of more than the csv module's 128 KiB, for long documents."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def numbered(width: int) -> list[str]:
    """Names for columns that have none."""
    return [f"column_{i + 1}" for i in range(width)]


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names of which each stands once."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        result.append(name if name not in seen else f"{name}_duplicated_{seen[name] - 1}")
        seen[name] = seen.get(name, 0) + 1
    return result
