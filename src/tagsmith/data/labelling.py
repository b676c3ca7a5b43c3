"""From the cells of the label columns to one label a row, or a set of them; merges and drops by explicit rule."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

import polars as pl

from tagsmith.data.columns import Columns
from tagsmith.data.files import listed
from tagsmith.data.table import Table
from tagsmith.errors import DataError
from tagsmith.labels import Labels

JSON = "json"
SIMILAR = "similar labels"
"""The step of history that names labels which may be one and the same."""


def labels_of(frame: pl.DataFrame, columns: Columns, *, separator: str | None = None) -> tuple[pl.Series, str]:
    """The label of each row, String or List(String), null where none is given, and in words how cells were taken.

    Several labels a row come from a column of lists, from cells that `separator` cuts (`json`: cells such as
    ["a", "b"], which are also found by looking), or from several columns that each say 0 or 1. DataError names the row
    and the cell that is none of these.
    """
    name = columns.label
    if name is None:
        return pl.Series("label", [None] * frame.height, dtype=pl.String), ""
    if isinstance(name, tuple):
        if separator is not None:
            raise DataError(
                f"data.label_separator is {separator!r} and data.label names {len(name)} columns. Expected one of "
                "both: leave the separator out."
            )
        return _one_hot(frame, name), "several labels a row: columns of 0 and 1"
    column = frame[name].alias("label")
    if column.dtype == pl.List(pl.String) and separator is None:
        return column, "several labels a row: lists"
    if column.dtype != pl.String:
        _refuse_kind(column, name, separator)
    if separator == JSON or (separator is None and _look_like_lists(column)):
        return _parsed(column, name), "several labels a row: cells that hold lists"
    if separator:
        return column.str.split(separator), f"several labels a row: cells cut at {separator!r}"
    return column, ""


def settle(table: Table, *, merge: Mapping[str, Sequence[str]] | None = None, drop: Sequence[str] = ()) -> Table:
    """Labels trimmed, merged and dropped as asked, each counted in the history; similar names are told only."""
    table = _tidied(table) if table.multi_label else _trimmed(table)
    for new, old in (merge or {}).items():
        table = _merged(table, new, list(old))
    for name in drop:
        table = _dropped(table, name)
    return _with_similar_told(table)


# --- several labels a row -------------------------------------------------------------------------------------------


def _refuse_kind(column: pl.Series, name: str, separator: str | None) -> None:
    if column.dtype == pl.List(pl.String):
        raise DataError(
            f"The label column '{name}' holds lists already, and data.label_separator is {separator!r}. Leave it out."
        )
    raise DataError(
        f"The label column '{name}' holds lists or records ({column.dtype}). Expected one label per row, or a list "
        "of labels; write them so, or name another column with --set data.label=NAME."
    )


_FLAGS = {"1": True, "true": True, "0": False, "false": False}


def _one_hot(frame: pl.DataFrame, names: Sequence[str]) -> pl.Series:
    flags = {}
    for name in names:
        column = frame[name]
        if column.dtype != pl.String:
            _refuse_kind(column, name, None)
        flag = column.str.strip_chars().str.to_lowercase().replace_strict(_FLAGS, default=None, return_dtype=pl.Boolean)
        strange = (flag.is_null() & (column.str.strip_chars().fill_null("") != "")).arg_true()
        if len(strange):
            row = int(strange[0])
            raise DataError(
                f"Row {row + 1} has {column[row]!r} in the label column '{name}'. Expected 0, 1, true, false or an "
                "empty cell in each of several label columns; correct it, or name one column that holds the labels."
            )
        flags[name] = flag
    given = pl.DataFrame(flags)
    named = [pl.when(pl.col(name).fill_null(value=False)).then(pl.lit(name)) for name in names]
    sets = pl.concat_list(named).list.drop_nulls()
    none_given = pl.all_horizontal(pl.all().is_null())
    return given.select(pl.when(~none_given).then(sets).alias("label"))["label"]


def _look_like_lists(column: pl.Series) -> bool:
    """Whether every cell is written as a list, as `["a", "b"]` or `['a']`."""
    cells = column.drop_nulls().str.strip_chars()
    if not len(cells) or not (cells.str.starts_with("[") & cells.str.ends_with("]")).all():
        return False
    return all(_list_in(cell) is not None for cell in cells.unique().to_list())


def _parsed(column: pl.Series, name: str) -> pl.Series:
    cells = column.drop_nulls().unique()
    lists = {cell: _list_in(cell) for cell in cells.to_list()}
    for cell, found in lists.items():
        if found is None:
            row = int((column == cell).arg_true()[0])
            raise DataError(
                f"Row {row + 1} has {cell[:60]!r} in the label column '{name}'. Expected a list such as "
                '["a", "b"] in each cell; correct it, or give the separator with --set data.label_separator=",".'
            )
    known = pl.DataFrame({"label": list(lists), "set": list(lists.values())}, schema={"label": pl.String, "set": _SETS})
    return column.to_frame().join(known, on="label", how="left", maintain_order="left")["set"].alias("label")


_SETS = pl.List(pl.String)


def _list_in(cell: str) -> list[str] | None:
    """The labels in a cell such as `["a", 1]` or `['a']`; None for anything else, NumPy's `['a' 'b']` too."""
    if re.search(r"['\"]\s+['\"]", cell) or len(cell) > 100_000:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            values = parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(values, list) and all(isinstance(value, str | int | float | bool) for value in values):
            return [value if isinstance(value, str) else json.dumps(value) for value in values]
    return None


# --- rules ----------------------------------------------------------------------------------------------------------


def _trimmed(table: Table) -> Table:
    trimmed = table.frame.with_columns(pl.col("label").str.strip_chars())
    rows = table.frame.filter(pl.col("label").ne_missing(trimmed["label"]))["row"]
    if not len(rows):
        return table
    reason = f"white space around the label was removed in {len(rows)} rows"
    return table.changed(trimmed, step="trim labels", reason=reason, rows=rows.to_list())


def _tidied(table: Table) -> Table:
    """Each label of a row once, trimmed, and in natural order."""
    trimmed = pl.col("label").list.eval(pl.element().str.strip_chars()).list.drop_nulls()
    filled = table.frame.with_columns(trimmed.list.eval(pl.element().filter(pl.element() != "")).alias("label"))
    sets = filled.with_columns(_in_order(filled["label"]))
    twice = filled.filter(pl.col("label").list.len() != sets["label"].list.len())["row"]
    table = Table(sets, table.history)
    if len(twice):
        reason = f"a label named twice in a row counts once: {len(twice)} rows"
        table = table.changed(sets, step="trim labels", reason=reason, rows=twice.to_list())
    return table


def _in_order(sets: pl.Series) -> pl.Series:
    names = Labels.of(sets.explode(empty_as_null=True).drop_nulls().unique().to_list()).names
    order = pl.List(pl.Enum(names))
    return sets.cast(order).list.unique().list.sort().cast(_SETS)


def _merged(table: Table, new: str, old: Sequence[str]) -> Table:
    if table.multi_label:
        has = pl.any_horizontal(pl.col("label").list.contains(name) for name in old)
        value = pl.col("label").list.eval(pl.element().replace(list(old), new))
    else:
        has = pl.col("label").is_in(list(old))
        value = pl.col("label").replace(list(old), new)
    rows = table.frame.filter(has)["row"]
    frame = table.frame.with_columns(value)
    if table.multi_label:
        frame = frame.with_columns(_in_order(frame["label"]))
    reason = f"{listed(old)} became '{new}' in {len(rows):,} rows (data.merge_labels){_hint(table, old)}"
    return table.changed(frame, step="merge labels", reason=reason, rows=rows.to_list())


def _dropped(table: Table, name: str) -> Table:
    if not table.multi_label:
        has = pl.col("label").eq_missing(pl.lit(name))
        rows = table.frame.filter(has)["row"]
        reason = f"label '{name}': {len(rows):,} rows (data.drop_labels){_hint(table, [name])}"
        return table.changed(table.frame.filter(~has), step="drop labels", reason=reason, rows=rows.to_list())
    rows = table.frame.filter(pl.col("label").list.contains(name))["row"]
    frame = table.frame.with_columns(pl.col("label").list.eval(pl.element().filter(pl.element() != name)))
    reason = f"label '{name}' was taken from {len(rows):,} rows, which stay (data.drop_labels){_hint(table, [name])}"
    return table.changed(frame, step="drop labels", reason=reason, rows=rows.to_list())


def _hint(table: Table, names: Sequence[str]) -> str:
    known = _counts(table)
    absent = [name for name in names if name not in known]
    return f"; no row has {listed(absent)}" if absent else ""


def _with_similar_told(table: Table) -> Table:
    groups: dict[str, list[str]] = {}
    counts = _counts(table)
    for name in counts:
        groups.setdefault(_folded(name), []).append(name)
    similar = [names for names in groups.values() if len(names) > 1]
    if not similar:
        return table
    told = "; ".join(", ".join(f"'{name}' ({counts[name]:,})" for name in sorted(names)) for names in similar[:5])
    more = f" and {len(similar) - 5} more" if len(similar) > 5 else ""
    rule = f"data.merge_labels={{{json.dumps(similar[0][0])}={json.dumps(sorted(similar[0])[:3])}}}"
    reason = (
        f"labels that differ in case, blanks or signs only, taken as different: {told}{more}. If they are one, merge "
        f"them, as in --set '{rule}'."
    )
    return table.changed(table.frame, step=SIMILAR, reason=reason)


def _counts(table: Table) -> dict[str, int]:
    labels = table.frame["label"]
    flat = labels.explode(empty_as_null=True) if table.multi_label else labels
    return dict(flat.drop_nulls().value_counts(name="rows", sort=True).iter_rows())


def _folded(name: str) -> str:
    return re.sub(r"[\s_\-.]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()
