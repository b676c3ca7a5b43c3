"""Which column holds what: as the user says, or by the columns' names, or else by their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tagsmith.data.files import listed
from tagsmith.data.pairs import PAIR
from tagsmith.data.table import SLICE
from tagsmith.data.text_columns import (
    LABEL_NAMES,
    TO_DO,
    by_name,
    columns_of_text,
    find_text,
    require_column,
    template_of,
)
from tagsmith.errors import DataError


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, and in words why; None where there is none.

    `text` is a column, or a template with several of them such as "{title}. {body}". Of several `label` columns each
    says of one label whether a row has it.
    """

    text: str
    label: str | tuple[str, ...] | None
    group: str | None
    why: str
    text_pair: str | None = None
    time: str | None = None
    part: str | None = None


def find_columns(
    frame: pl.DataFrame,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | Sequence[str] | None = None,
    group: str | None = None,
    time: str | None = None,
    part: str | None = None,
    labelled: bool = True,
) -> Columns:
    """The columns asked for, or found by name, or else by content; DataError where there is none or more than one.

    Without `labelled` a label column is taken only when it is named or has a usual name.
    """
    label = (label,) if isinstance(label, str) else tuple(label or ())
    asked = {"text_pair": text_pair, "group": group, "time": time, "part": part}
    given = [*columns_of_text(frame.columns, text), *label, *(name for name in asked.values() if name is not None)]
    for name in given:
        require_column(frame.columns, name)
    if len(set(given)) < len(given):
        raise DataError(f"The columns {listed(given)} were named; expected a different one for each role.")
    text_found, text_why = find_text(frame.columns, text, given, lambda names: _mean_lengths(frame, names))
    taken = {*given, *columns_of_text(frame.columns, text_found)}
    label_found, label_why = _find_label(frame, label, [n for n in frame.columns if n not in taken], labelled=labelled)
    for role, name in [*(("text", n) for n in columns_of_text(frame.columns, text_found)), *asked.items()]:
        _require_plain(frame, role, name)
    whys = [text_why, label_why, *(f"{role} = '{name}' (asked for)" for role, name in asked.items() if name)]
    return Columns(text_found, label_found, group, "; ".join(why for why in whys if why), text_pair, time, part)


def texts_of(frame: pl.DataFrame, columns: Columns) -> pl.Series:
    """The text of each row `(N,)`, null where every cell that it is made of is empty.

    A pair of texts is one string with `PAIR` between them; that character is a blank wherever else it stands.
    """
    first = _filled(frame, columns.text)
    if columns.text_pair is None:
        return frame.select(first.alias("text"))["text"]
    second = _clean(columns.text_pair)
    pair = pl.concat_str(first.fill_null(""), pl.lit(PAIR), second.fill_null(""))
    return frame.select(pl.when(first.is_not_null() | second.is_not_null()).then(pair).alias("text"))["text"]


def slice_columns(frame: pl.DataFrame, names: Sequence[str]) -> list[pl.Series]:
    """The columns of these names as strings called `slice:NAME`; DataError for one that is not there."""
    for name in names:
        require_column(frame.columns, name)
        _require_plain(frame, "slice", name)
    return [frame[name].cast(pl.String).alias(f"{SLICE}{name}") for name in dict.fromkeys(names)]


# --- templates ------------------------------------------------------------------------------------------------------


def _filled(frame: pl.DataFrame, text: str) -> pl.Expr:
    if text in frame.columns:
        return _clean(text)
    pieces: list[pl.Expr] = []
    for literal, name, *_ in template_of(text):
        pieces += [pl.lit(literal)] if literal else []
        pieces += [_clean(name).fill_null("")] if name is not None else []
    names = columns_of_text(frame.columns, text)
    return pl.when(pl.any_horizontal(_clean(name).str.strip_chars() != "" for name in names)).then(
        pl.concat_str(pieces)
    )


def _clean(name: str) -> pl.Expr:
    return pl.col(name).str.replace_all(PAIR, " ", literal=True)


# --- asked for ------------------------------------------------------------------------------------------------------


def _require_plain(frame: pl.DataFrame, role: str, name: str | None) -> None:
    if name is not None and frame.schema[name] != pl.String:
        raise DataError(
            f"The {role} column '{name}' holds lists or records ({frame.schema[name]}). Expected one value per row; "
            f"write one {role} into each row, or {TO_DO[role]}."
        )


# --- found ----------------------------------------------------------------------------------------------------------


def _find_label(
    frame: pl.DataFrame, asked: tuple[str, ...], free: Sequence[str], *, labelled: bool
) -> tuple[str | tuple[str, ...] | None, str]:
    if len(asked) > 1:
        return asked, f"labels = {listed(asked)}, one column each (asked for)"
    if asked:
        return asked[0], f"label = '{asked[0]}' (asked for)"
    if named := by_name(free, LABEL_NAMES, role="label", strict=labelled):
        return named, f"label = '{named}' (by its name)"
    if not labelled:
        return None, ""
    likely = [name for name in free if _is_label_like(frame[name])]
    if len(likely) != 1:
        found = f"The columns {listed(likely)} all look like labels" if likely else "No column looks like labels"
        raise DataError(
            f"{found} among {listed(frame.columns)}. Expected one with few, short values; {TO_DO['label']}"
            f"{_one_hot_hint(frame, likely)}."
        )
    return likely[0], f"label = '{likely[0]}' (few, short values)"


def _one_hot_hint(frame: pl.DataFrame, likely: Sequence[str]) -> str:
    flags = [name for name in likely if frame.schema[name] == pl.String and set(frame[name].unique()) <= _FLAGS]
    named = ",".join(f'"{name}"' for name in flags[:3]) + (",..." if len(flags) > 3 else "")
    return f", or name all columns of one label each with --set data.label='[{named}]'" if len(flags) > 1 else ""


_FLAGS = {"0", "1", "true", "false", "True", "False", None}


def _mean_lengths(frame: pl.DataFrame, names: Sequence[str]) -> dict[str, float]:
    plain = [name for name in names if frame.schema[name] == pl.String]
    if not plain:
        return {}
    means = frame.head(10_000).select(pl.col(name).str.len_chars().mean() for name in plain).row(0)
    return {name: mean or 0.0 for name, mean in zip(plain, means, strict=True)}


def _is_label_like(column: pl.Series) -> bool:
    if column.dtype == pl.List(pl.String):
        return True
    if column.dtype != pl.String:
        return False
    values = column.drop_nulls()
    distinct = values.n_unique()
    length = values.str.len_chars().mean() or 0
    return 1 <= distinct <= max(2, min(len(values) // 2, 1000)) and float(str(length)) <= 50
