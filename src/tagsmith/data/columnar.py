"""Parquet, Arrow and Excel: tables that come with types."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

import polars as pl

from tagsmith.data.archives import require_tame_zip
from tagsmith.data.files import File, Raw, first_line, listed, require_columns
from tagsmith.errors import DataError


def read_parquet(file: File) -> Raw:
    """The rows of a Parquet file."""
    try:
        require_columns(file.name, len(pl.read_parquet_schema(file.path)))
        frame = pl.read_parquet(file.path, glob=False)
        metadata = pl.read_parquet_metadata(file.path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise unreadable(file, "Parquet", error) from None
    frame, told = named_classes(as_words(frame), _features(metadata))
    return Raw(frame, f"read as Parquet with the columns {listed(frame.columns)}{told}")


def _features(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What Hugging Face's datasets notes about the columns of a Parquet file that it writes."""
    try:
        features = json.loads(metadata.get("huggingface", "{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def named_classes(frame: pl.DataFrame, features: Mapping[str, Any]) -> tuple[pl.DataFrame, str]:
    """Numbers of classes as the names that Hugging Face's `features` give them, and a remark that says so."""
    named = []
    for column, feature in features.items():
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and column in frame.columns and frame.schema[column] == pl.String:
            named.append(column)
            numbers = {str(number): str(name) for number, name in enumerate(names)}
            frame = frame.with_columns(pl.col(column).replace(numbers))
    return frame, f"; the names of the classes in {listed(named)} stand for their numbers" if named else ""


def read_arrow(file: File) -> Raw:
    """The rows of an Arrow file (Feather), or of an Arrow stream."""
    with file.path.open("rb") as stream:
        is_file = stream.read(6) == b"ARROW1"
    read = pl.read_ipc if is_file else pl.read_ipc_stream
    if not _is_survived(file, read.__name__):
        raise unreadable(file, "Arrow", ValueError("its compressed columns are damaged"))
    try:
        with file.path.open("rb") as stream:
            frame = read(stream)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise unreadable(file, "Arrow", error) from None
    require_columns(file.name, frame.width)
    return Raw(
        as_words(frame), f"read as {'an Arrow file' if is_file else 'an Arrow stream'} with {listed(frame.columns)}"
    )


def _is_survived(file: File, read: str) -> bool:
    """Whether another process reads the file and lives, which takes 0.3 s.

    Polars 2.1 asks for as much memory as a compressed column says that it needs. Where one byte of that is wrong, it
    aborts the process, which nobody can catch (found by mutating valid files).
    """
    code = f"import sys, polars; polars.{read}(open(sys.argv[1], 'rb'))"
    command = [sys.executable, "-I", "-c", code, str(file.path)]
    return subprocess.run(command, capture_output=True, check=False).returncode in (0, 1)


def read_excel(file: File) -> Raw:
    """The rows of the first sheet that has any; a formula gives the value that was saved with it."""
    import fastexcel

    # The library's log of each cell that it cannot read would land in the middle of our own lines.
    try:
        if zipfile.is_zipfile(file.path):
            require_tame_zip(file)
        book = fastexcel.read_excel(file.path)
        for name in book.sheet_names:
            sheet = book.load_sheet(name, header_row=None, dtypes="string")
            if sheet.width and sheet.height:
                require_columns(file.name, sheet.width)
                return _sheet(file, sheet.to_polars(), name, empty=book.sheet_names.index(name), of=book.sheet_names)
    except (fastexcel.FastExcelError, zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise unreadable(file, "Excel", error) from None
    raise DataError(
        f"'{file.name}' has no filled sheet among {listed(book.sheet_names)}. Expected a table with a header row."
    )


def _sheet(file: File, cells: pl.DataFrame, name: str, *, empty: int, of: list[str]) -> Raw:
    names = [str(cell) if cell is not None else f"column_{i + 1}" for i, cell in enumerate(cells.row(0))]
    if len(set(names)) < len(names):
        raise DataError(f"The sheet '{name}' of '{file.name}' has the columns {listed(names)}. Give each its own name.")
    midnight = pl.all().str.replace(r"^(\d{4}-\d\d-\d\d) 00:00:00$", "$1")
    frame = cells.rename(dict(zip(cells.columns, names, strict=True))).slice(1).with_columns(midnight)
    frame = frame.with_columns(pl.all().replace("", None))
    frame = frame.select(column for column in frame if column.name in names)
    others = [other for other in of if other != name]
    told = f"; {empty} empty sheets before it" if empty else ""
    beside = f"; not {listed(others, 3)}" if others else ""
    return Raw(frame, f"read as Excel, sheet '{name}'{told}{beside}, with the columns {listed(names)}")


def as_words(frame: pl.DataFrame) -> pl.DataFrame:
    """Values as words: 1 and 1.0 become "1", true becomes "true"; lists hold words; records stay."""
    frame = frame.with_columns(_decoded(column) for column in frame if column.dtype == pl.Binary)
    return frame.select(_words(pl.col(name), dtype).alias(name) for name, dtype in frame.schema.items())


def _decoded(column: pl.Series) -> pl.Series:
    """Bytes that are text after all, as some writers of Parquet store it."""
    try:
        return column.cast(pl.String)
    except pl.exceptions.PolarsError:
        return column


def _words(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.String:
        return column
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        if isinstance(inner, pl.DataType) and not inner.is_nested():
            lists = column.cast(pl.List(inner))
            return lists.list.eval(_words(pl.element(), inner))
        return column
    if dtype.is_nested() or dtype in (pl.Object, pl.Binary):
        return column
    if dtype.is_float():
        whole = column.is_finite() & (column == column.round()) & (column.abs() < 2**53)
        integral = pl.when(whole).then(column).cast(pl.Int64).cast(pl.String)
        known = pl.when(column.is_not_nan()).then(column.cast(pl.String))
        return pl.when(whole).then(integral).otherwise(known)
    return column.cast(pl.String, strict=False)


def unreadable(file: File, kind: str, error: BaseException) -> DataError:
    """What to say of a file that a library stumbles over."""
    return DataError(f"'{file.name}' could not be read as {kind}: {first_line(error)}. Write or fetch the file again.")
