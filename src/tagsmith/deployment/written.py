"""Labelled rows in a file: CSV, TSV, JSON lines or Parquet, in parts that join without a seam."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagsmith.data.words import word_of
from tagsmith.errors import SettingError

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
BETWEEN = ";"
"""What joins the labels of a row in a CSV."""
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


@dataclass(frozen=True)
class Format:
    """How rows are written: the ending of the file, its columns, and whether cells are kept from being formulas.

    `schema` are the types that polars knows the columns by, where they are known; it is needed for Parquet alone.
    """

    ending: str
    columns: Sequence[str]
    safe: bool = False
    schema: Mapping[str, Any] = field(default_factory=dict)

    def write_part(self, rows: Iterable[Mapping[str, Any]], path: Path) -> None:
        """Write some rows."""
        if self.ending == ".parquet":
            _frame(rows, self).write_parquet(path)
            return
        with path.open("w", encoding="utf-8", newline="") as file:
            for row in rows:
                file.write(self._line(row))

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Write all parts below one another, the names of the columns above them."""
        if self.ending == ".parquet":
            import polars as pl

            pl.scan_parquet(list(parts)).sink_parquet(path)
            return
        with path.open("wb") as file:
            if self.ending != ".jsonl":
                file.write(self._cells(self.columns).encode())
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, file, 1 << 20)

    def _line(self, row: Mapping[str, Any]) -> str:
        if self.ending == ".jsonl":
            return json.dumps(row, ensure_ascii=False, default=str) + "\n"
        return self._cells([self._word(row[name]) for name in self.columns])

    def _word(self, value: object) -> str:
        if isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        return word_of(value) or ""

    def _cells(self, cells: Iterable[str]) -> str:
        separator = "\t" if self.ending == ".tsv" else ","
        special = (separator, '"', "\n", "\r")
        made = []
        for cell in cells:
            text = f"'{cell}" if self.safe and cell.startswith(_FORMULA) else cell
            quoted = any(sign in text for sign in special)
            made.append('"' + text.replace('"', '""') + '"' if quoted else text)
        return separator.join(made) + "\n"


def require_format(path: Path, *, safe: bool) -> str:
    """The ending of a file to write; SettingError for one that is not known, or where no spreadsheet opens it."""
    if path.suffix not in FORMATS:
        raise SettingError(f"'{path.name}' ends in '{path.suffix}'; expected one of {', '.join(FORMATS)}.")
    if safe and path.suffix not in (".csv", ".tsv"):
        raise SettingError(
            f"--spreadsheet-safe was given for '{path.name}', which no spreadsheet opens. Expected a .csv or .tsv; "
            "leave the option out."
        )
    return path.suffix


def _frame(rows: Iterable[Mapping[str, Any]], form: Format) -> Any:
    import polars as pl

    kept = {name: form.schema.get(name, pl.String) for name in form.columns}
    columns: dict[str, list[Any]] = {name: [] for name in form.columns}
    for row in rows:
        for name, values in columns.items():
            values.append(row[name] if name in form.schema else word_of(row[name]))
    return pl.DataFrame(columns, schema=kept)
