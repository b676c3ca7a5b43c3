"""From any source to a table, with every guess told in the history: the door of this stage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import polars as pl

from tagsmith.config import DataConfig
from tagsmith.data.archives import unpacked
from tagsmith.data.columnar import read_arrow, read_excel, read_parquet
from tagsmith.data.columns import Columns, find_columns, slice_columns, texts_of
from tagsmith.data.database_rows import is_url, redacted
from tagsmith.data.databases import read_database
from tagsmith.data.delimited import read_delimited
from tagsmith.data.encodings import as_utf8
from tagsmith.data.files import File, Header, Layout, Quoting, Raw, first_line, listed
from tagsmith.data.folders import read_folder
from tagsmith.data.hub import hub_files, is_hub
from tagsmith.data.labelling import labels_of, settle
from tagsmith.data.records import read_json
from tagsmith.data.sources import find_files, is_folder
from tagsmith.data.table import Change, Table
from tagsmith.errors import DataError

__all__ = ["Columns", "find_columns", "is_url", "read", "read_as", "read_frame", "redacted", "texts_of"]

ReadFiles = Callable[[Sequence[File], Layout, Path], list[Raw]]


def read(
    source: str | Path,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    group: str | None = None,
    time: str | None = None,
    part: str | None = None,
    merge_labels: Mapping[str, Sequence[str]] | None = None,
    drop_labels: Sequence[str] = (),
    quoting: Quoting = "auto",
    delimiter: str | None = None,
    encoding: str | None = None,
    header: Header = "auto",
    query: str | None = None,
    labelled: bool = True,
    slices: Sequence[str] = (),
    read_files: ReadFiles | None = None,
) -> Table:
    """The rows of a source that have a text and, where `labelled`, a label; the rest is counted in the history.

    Columns that are not named are found by their names, or else by their content. DataError for what cannot be read.

    Args:
        source: a table in a file (CSV, TSV, JSON, JSON lines, Parquet, Arrow, Excel, plain or in a zip, gz or zst), a
            glob of such files, `-` for standard input, a folder with a sub-folder of texts per label, a folder that
            Hugging Face's datasets saved, `hf:NAME` or `hf:NAME:SPLIT` from the hub, or the address of a database.
        text: the column of the text, or a template with several, such as "{title}. {body}".
        text_pair: the column of a second text; both are one string with `PAIR` between them.
        label: the column of the label, or the columns that say 0 or 1 of one label each.
        label_separator: what stands between several labels in a cell; `json` for cells such as ["a", "b"].
        group: the column whose equal values must stay in one split.
        time: a column that is kept as `time`, and
        part: one that is kept as `part`, for those who split.
        merge_labels: new names and, for each, the labels that become it.
        drop_labels: labels that are left out; in a single-label table with their rows.
        quoting: `standard` as RFC 4180, `none` takes quotes as text, `auto` decides.
        delimiter: what separates the cells of a text file, found by itself without.
        encoding: that of a text file, found by itself without.
        header: whether the first row of a text file names the columns.
        query: what a database is asked; without it, all rows of its only table.
        labelled: whether rows without a label are dropped, and a label column is looked for by its content.
        slices: columns that are kept as `slice:NAME`, for accuracy by their values.
        read_files: what reads several files, one after the other without.
    """
    raw = read_frame(
        source,
        quoting=quoting,
        delimiter=delimiter,
        encoding=encoding,
        header=header,
        query=query,
        read_files=read_files,
    )
    columns = find_columns(
        raw.frame,
        text=text,
        text_pair=text_pair,
        label=label,
        group=group,
        time=time,
        part=part,
        labelled=labelled,
    )
    frame, how = _frame_of(raw.frame, columns, label_separator)
    frame = frame.with_columns(slice_columns(raw.frame, slices))
    rows = frame.height
    table = Table(
        frame, (Change("read", rows, rows, raw.how), Change("columns", rows, rows, f"{columns.why}{how and '; '}{how}"))
    )
    table = settle(_without_missing(table, labelled=labelled), merge=merge_labels, drop=drop_labels)
    if not len(table):
        wanted = f"a text in column '{columns.text}'" + (
            f" and a label in column '{columns.label}'" if labelled else ""
        )
        raise DataError(
            f"None of the {rows} rows has {wanted}. Expected at least one; name the right columns with "
            "--set data.text=NAME and --set data.label=NAME."
        )
    return table


def read_as(
    source: str | Path,
    settings: DataConfig,
    *,
    labelled: bool = True,
    divided: bool = False,
    slices: Sequence[str] = (),
    read_files: ReadFiles | None = None,
) -> Table:
    """`read` with the settings of a run; the query is for a database, and other sources do without.

    `divided` rows have the columns by which they are split, which the user's own validation rows need not have.
    """
    return read(
        source,
        text=settings.text,
        text_pair=settings.text_pair,
        label=settings.label,
        label_separator=settings.label_separator,
        group=settings.group,
        time=settings.time if divided else None,
        part=settings.split_column if divided else None,
        merge_labels=settings.merge_labels,
        drop_labels=settings.drop_labels,
        quoting=settings.quoting,
        delimiter=settings.delimiter,
        encoding=settings.encoding,
        header=settings.header,
        query=settings.query if is_url(source) else None,
        labelled=labelled,
        slices=slices,
        read_files=read_files,
    )


def read_frame(
    source: str | Path,
    *,
    quoting: Quoting = "auto",
    delimiter: str | None = None,
    encoding: str | None = None,
    header: Header = "auto",
    query: str | None = None,
    read_files: ReadFiles | None = None,
) -> Raw:
    """Every row and column of a source, for those who give them back beside the answers; DataError as in `read`."""
    if is_url(source):
        return _filled(read_database(str(source), query), redacted(source))
    if query is not None:
        raise DataError(
            f"A query was given, and '{source}' is no database. Expected sqlite:///PATH or postgresql://...; leave the "
            "query out."
        )
    if is_folder(source):
        return _filled(read_folder(Path(source)), str(source))
    layout = Layout(quoting, delimiter, encoding, header)
    with tempfile.TemporaryDirectory(prefix="tagsmith-", ignore_cleanup_errors=True) as folder:
        files = hub_files(str(source)) if is_hub(source) else find_files(source, Path(folder))
        return _joined(files, (read_files or read_in_turn)(files, layout, Path(folder)))


def read_in_turn(files: Sequence[File], layout: Layout, scratch: Path) -> list[Raw]:
    """Every row and column of each file; what is unpacked on the way lies in the folder `scratch`."""
    return [_read_file(file, layout, scratch) for file in files]


def _filled(raw: Raw, name: str) -> Raw:
    if not raw.frame.height or not raw.frame.width:
        names = listed(raw.frame.columns) or "of nothing"
        raise DataError(f"'{name}' has a header ({names}) and no rows. Expected rows below it; add some.")
    return raw


def _joined(files: Sequence[File], raws: Sequence[Raw]) -> Raw:
    """The rows of all files below one another, in the order of their names."""
    if len(raws) == 1:
        return raws[0]
    first = raws[0].frame
    for file, raw in zip(files, raws, strict=True):
        if set(raw.frame.columns) != set(first.columns):
            raise DataError(
                f"'{files[0].name}' has the columns {listed(first.columns)}, and '{file.name}' has "
                f"{listed(raw.frame.columns)}. Expected the same in each of {len(files)} files; give those that agree."
            )
    try:
        frame = pl.concat([raw.frame.select(first.columns) for raw in raws])
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"The columns of {len(files)} files hold different things: {first_line(error)}. Give those that agree."
        ) from None
    counts = ", ".join(f"'{file.name}' {raw.frame.height:,}" for file, raw in zip(files[:5], raws, strict=False))
    more = f" and {len(files) - 5:,} more" if len(files) > 5 else ""
    ways = "; ".join(dict.fromkeys(raw.how for raw in raws[:5]))
    return Raw(frame, f"{len(files)} files, rows of each: {counts}{more}; {ways}")


# --- one file -------------------------------------------------------------------------------------------------------

_SUFFIXES = {".json": "json", ".jsonl": "json", ".ndjson": "json"}
_STARTS = {
    b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"PK\x03\x04": "excel",
    b"\xd0\xcf\x11\xe0": "excel",
}  # fmt: skip


def _read_file(file: File, layout: Layout, scratch: Path) -> Raw:
    file = unpacked(file, scratch)
    kind = _kind(file)
    if kind == "text":
        file = as_utf8(file, scratch, encoding=layout.encoding)
        raw = read_json(file) if _is_json(file) else read_delimited(file, layout)
    else:
        raw = {"parquet": read_parquet, "arrow": read_arrow, "excel": read_excel}[kind](file)
    return replace(_filled(raw, file.name), how="; ".join([*file.notes, raw.how]))


def _kind(file: File) -> str:
    with file.path.open("rb") as stream:
        start = stream.read(16)
    return next((kind for mark, kind in _STARTS.items() if start.startswith(mark)), "text")


def _is_json(file: File) -> bool:
    suffix = PurePosixPath(file.name).suffix.lower()
    with file.path.open("rb") as stream:
        start = stream.read(1024).lstrip()
    return suffix in _SUFFIXES or (start.startswith(b"{") and suffix not in (".csv", ".tsv", ".tab", ".txt"))


# --- from columns to rows -------------------------------------------------------------------------------------------


def _frame_of(frame: pl.DataFrame, columns: Columns, separator: str | None) -> tuple[pl.DataFrame, str]:
    """The frame of a table, and in words how its labels were taken."""
    row = pl.int_range(pl.len(), dtype=pl.UInt32)
    own = pl.lit("row ") + row.cast(pl.String)
    key = own if columns.group is None else pl.coalesce(pl.lit("group ") + pl.col(columns.group), own)
    group = row if columns.group is None else key.rank("dense").cast(pl.UInt32) - 1
    labels, how = labels_of(frame, columns, separator=separator)
    extra = {"time": columns.time, "part": columns.part}
    kept = frame.select(
        row.alias("row"),
        texts_of(frame, columns),
        labels,
        group.alias("group"),
        *(pl.col(name).alias(role) for role, name in extra.items() if name is not None),
    )
    return kept, how


def _without_missing(table: Table, *, labelled: bool) -> Table:
    table = _dropped(table, _is_empty("text"), reason="no text")
    missing = pl.col("label").is_null() if table.multi_label else _is_empty("label")
    return _dropped(table, missing, reason="no label") if labelled else table


def _is_empty(name: str) -> pl.Expr:
    return pl.col(name).is_null() | (pl.col(name).str.strip_chars() == "")


def _dropped(table: Table, missing: pl.Expr, *, reason: str) -> Table:
    rows = table.frame.filter(missing)["row"]
    if not len(rows):
        return table
    kept = table.frame.filter(~missing)
    return table.changed(kept, step="drop", reason=f"{reason}: {len(rows)} rows", rows=rows.to_list())
