"""What readers hand to one another: a file that lies at hand, and a source as it stands."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from tagsmith.errors import DataError

if TYPE_CHECKING:
    import polars as pl

Quoting = Literal["auto", "standard", "none"]
Header = Literal["auto", "yes", "no"]

EXPECTED = (
    "Expected a table (CSV, TSV, JSON, JSON lines, Parquet, Arrow or Excel), as it is or in a zip, gz or zst, a folder "
    "per label, or a database"
)
MOST_BYTES = 4 * 2**30
MOST_COLUMNS = 10_000


@dataclass(frozen=True)
class Layout:
    """How a text file is laid out, as far as the user says so; None and `auto` are found by looking."""

    quoting: Quoting = "auto"
    delimiter: str | None = None
    encoding: str | None = None
    header: Header = "auto"


@dataclass(frozen=True)
class File:
    """Bytes to read at `path`; `name` is what the user calls them, `notes` tell how they came to lie there."""

    name: str
    path: Path
    notes: tuple[str, ...] = ()

    def moved(self, path: Path, note: str = "") -> File:
        """The same table, now in the bytes at `path`."""
        return replace(self, path=path, notes=(*self.notes, note) if note else self.notes)


@dataclass(frozen=True)
class Raw:
    """A source as it stands: all of its columns and rows, and in words how it was read.

    Every column is String (null where a cell is empty), but for lists and records, which keep their type.
    """

    frame: pl.DataFrame
    how: str


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file that is not empty, as if they were in memory."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def require_columns(name: str, count: int) -> None:
    """DataError for more columns than any table of texts has, before they fill the memory."""
    if count > MOST_COLUMNS:
        raise DataError(
            f"'{name}' has {count:,} columns. Expected at most {MOST_COLUMNS:,}; write the text and the label into a "
            "table of their own."
        )


def refuse_binary(name: str, found: str) -> NoReturn:
    """DataError for what is no text."""
    raise DataError(f"'{name}' is not a text file: found {found}. {EXPECTED}; export the table as CSV in UTF-8.")


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line and without a full stop."""
    return (str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__).rstrip(".")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names in quotes, the first of them and how many more there are."""
    plain = [re.sub(r"[\x00-\x1f\x7f]+", " ", name) for name in names[:most]]
    quoted = [f"'{name}'" if len(name) <= 80 else f"'{name[:77]}...'" for name in plain]
    return ", ".join(quoted) + (f" and {len(names) - most:,} more" if len(names) > most else "")
