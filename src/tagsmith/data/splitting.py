"""From one table to four parts: stratified by label, and no group of duplicates ever in two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import polars as pl

from tagsmith.data.chronology import by_time
from tagsmith.data.earlier import ASIDE, NEW, Earlier
from tagsmith.data.rare import label_counts, some, too_rare
from tagsmith.data.stratifying import assigned, by_hash, in_folds, membership
from tagsmith.data.table import PARTS, Splits, Table
from tagsmith.errors import DataError, SettingError

CALIBRATION_ROWS = 200
"""Fewest rows worth setting apart for calibration (STATISTICS.md 10); with fewer, cross-fitted scores do better."""


Kind = Literal["group", "hash", "time"]


def split(
    table: Table, *, validation_share: float, test_share: float, seed: int, fewest_rows: int = 2
) -> Splits[Table]:
    """Four parts with nearly equal shares of each label; rows of one group stay together.

    Half of `validation_share` becomes calibration rows where that is at least 200 rows. Each label has training rows;
    a label with two groups has test rows too, and the history names labels that a part does not hold. DataError for
    fewer than two labels, and for labels with fewer than `fewest_rows`.
    """
    require_labels(table, fewest=fewest_rows)
    return split_by("group", table, validation_share=validation_share, test_share=test_share, seed=seed)


def split_by(
    kind: Kind,
    table: Table,
    *,
    validation_share: float,
    test_share: float,
    seed: int,
    earlier: Earlier | None = None,
) -> Splits[Table]:
    """Four parts, groups whole: `group` evens out the labels as `split` does, the others are stable in their own way.

    `hash` goes by a hash of each group's smallest text (`by_hash`), so that a group keeps its part while the table
    grows; shares are those of chance, and half of the validation rows calibrate from the day on when they are at least
    200. `time` puts train, validation, calibration and test one after the other (`by_time`). With `earlier`, texts seen
    then keep their part, new groups fill the shares, and new rows that bridge two parts are set aside. Rows of labels
    without training rows are set aside too.
    """
    shares, told = shares_of(len(table), validation_share=validation_share, test_share=test_share)
    divide = _DIVIDE[kind]
    if earlier is None:
        parts_N, how = divide(table, shares, seed)
    else:
        table, parts_N, how = _beside(earlier, table, shares, lambda new, left: divide(new, left, seed), kind=kind)
    splits = parted(table, parts_N, shares, how=f"{how}; {told}")
    return splits if kind == "group" and earlier is None else with_known_labels(splits)


def _by_label(table: Table, shares: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    return assigned(table, shares, seed=seed), "stratified by label, groups whole"


def _by_hash(table: Table, shares: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    return by_hash(table, shares, seed=seed), f"by a hash of each group's smallest text with seed {seed}"


def _by_time(table: Table, shares: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    timed = by_time(table, shares)
    return timed.parts, f"in order of time, groups whole; {timed.told}"


_DIVIDE = {"group": _by_label, "hash": _by_hash, "time": _by_time}


def _beside(
    earlier: Earlier,
    table: Table,
    shares: np.ndarray,
    divide: Callable[[Table, np.ndarray], tuple[np.ndarray, str]],
    *,
    kind: Kind,
) -> tuple[Table, np.ndarray, str]:
    """The table without rows set aside, the part of each of its rows, and in words how it came about."""
    held_N = earlier.parts_of(table)
    table, held_N = _without_bridges(table, held_N)
    new = np.flatnonzero(held_N == NEW)
    told = f"{len(table) - len(new)} rows keep the part that their text or group had before, {len(new)} are new"
    if len(new):
        # A hash is as stable as the shares it is cut by; the other kinds make up for what the old rows lack or exceed.
        held = np.bincount(held_N[held_N != NEW], minlength=len(PARTS))
        lacking = shares if kind == "hash" else np.maximum(shares * len(table) - held, 0)
        held_N[new], how = divide(table.take(new), lacking / lacking.sum())
        told += f", {how}"
    return _apart(table, held_N), held_N, told


def _without_bridges(table: Table, held_N: np.ndarray) -> tuple[Table, np.ndarray]:
    bridges = np.flatnonzero(held_N == ASIDE)
    if not len(bridges):
        return table, held_N
    kept = np.flatnonzero(held_N != ASIDE)
    reason = f"{len(bridges)} new rows set aside: their group holds rows that an earlier run had in different parts"
    rows = table.rows[bridges]
    return table.changed(table.take(kept).frame, step="set aside", reason=reason, rows=rows), held_N[kept]


def _apart(table: Table, parts_N: np.ndarray) -> Table:
    """The table with groups that end at a part's border, now that nothing links them across it any more."""
    groups = (table.groups.astype(np.int64) * len(PARTS) + parts_N).astype(np.int64)
    numbers = np.unique(groups, return_inverse=True)[1].astype(np.uint32)
    return replace(table, frame=table.frame.with_columns(pl.Series("group", numbers)))


def folds(table: Table, k: int, seed: int, *, validation_share: float = 0.1) -> list[Splits[Table]]:
    """`k` ways to split, each row in the test part of exactly one of them: `fold` for each number."""
    return [fold(table, k, number, seed=seed, validation_share=validation_share) for number in range(1, k + 1)]


def fold(table: Table, k: int, number: int, *, seed: int, validation_share: float) -> Splits[Table]:
    """The split that tests on fold `number` of `k`, from 1; groups stay together, labels are evened out.

    The other folds become training, validation and calibration rows as `split` does it. DataError for fewer than two
    labels, and for fewer than `k` groups.
    """
    require_labels(table, fewest=1)
    groups = table.frame["group"].n_unique()
    if groups < k:
        raise DataError(
            f"Found {groups} groups of rows for {k} folds. Expected at least as many groups as folds; lower data.folds."
        )
    shares, told = shares_of(len(table), validation_share=validation_share, test_share=1 / k)
    rest = np.flatnonzero(in_folds(table, k, seed=seed) != number - 1)
    parts_N = np.full(len(table), PARTS.index("test"))
    parts_N[rest] = assigned(table.take(rest), np.append(shares[:3], 0.0) / shares[:3].sum(), seed=seed)
    return parted(table, parts_N, shares, how=f"fold {number} of {k} is tested; stratified, groups whole; {told}")


def parted(table: Table, parts_N: np.ndarray, shares: np.ndarray, *, how: str) -> Splits[Table]:
    """The rows by their part `(N,)`, 0 to 3, with lines of history for what was done and for labels that parts lack."""
    reason = ", ".join(f"{PARTS[i]} {int((parts_N == i).sum())}" for i in range(len(PARTS)))
    table = table.changed(table.frame, step="split", reason=f"{reason} rows; {how}")
    for reason in _absent(table, parts_N, shares):
        table = table.changed(table.frame, step="split", reason=reason)
    return Splits(*(table.take(np.flatnonzero(parts_N == i)) for i in range(len(PARTS))))


def with_known_labels(splits: Splits[Table]) -> Splits[Table]:
    """The splits without rows of labels that no training row has; these are set aside, counted and listed.

    DataError where fewer than two labels are left to learn.
    """
    known = label_counts(splits.train)["label"].to_list()
    everywhere = {label for _, part in splits.items() for label in label_counts(part)["label"].to_list()}
    unknown = sorted(everywhere - set(known))
    if len(known) < 2:
        found = f"'{known[0]}' alone" if known else "no label"
        raise DataError(
            f"The training rows of this split have {found}; {some(unknown) or 'nothing'} stands in the other parts. "
            "Expected at least two labels to learn from; add rows, or take --set data.split=group, which sees to it."
        )
    return splits.map(lambda part: _without_labels(part, unknown)) if unknown else splits


def _without_labels(part: Table, unknown: Sequence[str]) -> Table:
    aside = membership(part).rows_of(unknown)
    if not len(aside):
        return part
    kept = np.setdiff1d(np.arange(len(part)), aside)
    reason = f"{len(aside)} rows set aside: no training row has the label{'s' if len(unknown) > 1 else ''} "
    return part.changed(part.take(kept).frame, step="set aside", reason=reason + some(unknown), rows=part.rows[aside])


def book_split(table: Table, *, seed: int = 123) -> Splits[Table]:
    """The split of chapter 6 of "Build a Large Language Model (From Scratch)" (Raschka 2024), step by step.

    The larger label is cut to the size of the smaller one, all is shuffled, and the first 70 % train, the next 10 %
    validate, the rest test; row for row as pandas' `sample` does it. `ham` and `spam` become `0` and `1`, as there.
    SettingError unless there are two labels. Duplicates are not kept together; `leak` counts what that costs.
    """
    smaller, larger = _two_labels(table)
    labels = np.asarray(table.labels)
    small, large = np.flatnonzero(labels == smaller), np.flatnonzero(labels == larger)
    # DataFrame.sample(n, random_state=seed) is RandomState(seed).choice(rows, size=n, replace=False).
    kept = large[np.random.RandomState(seed).choice(len(large), size=len(small), replace=False)]
    balanced = table.take(np.concatenate([kept, small]))
    reason = f"book: {len(large)} rows '{larger}' undersampled to the {len(small)} of '{smaller}', before the split"
    table = table.changed(balanced.frame, step="undersample", reason=reason)
    shuffled = table.take(np.random.RandomState(seed).choice(len(table), size=len(table), replace=False))
    table = table.changed(shuffled.frame, step="shuffle", reason=f"book: all rows shuffled with seed {seed}")
    table = _named_as_in_the_book(table)
    train_end = int(len(table) * 0.7)
    validation_end = train_end + int(len(table) * 0.1)
    reason = (
        "book: first 70 % train, next 10 % validation, rest test; no calibration rows; duplicates not kept together"
    )
    table = table.changed(table.frame, step="split", reason=reason)
    cuts = [range(train_end), range(train_end, validation_end), range(0), range(validation_end, len(table))]
    return Splits(*(table.take(np.asarray(cut, dtype=np.int64)) for cut in cuts))


def second_half(table: Table, *, seed: int) -> np.ndarray:
    """Which rows `(N,)` make up one half of the table, stratified by label, with groups whole."""
    return np.asarray(assigned(table, np.array([0.5, 0.0, 0.0, 0.5]), seed=seed) == 3)


def require_labels(table: Table, *, fewest: int = 2) -> None:
    """DataError unless there are at least two labels with at least `fewest` rows each."""
    counts = label_counts(table)
    if counts.height < 2:
        found = f"Found one label only, '{counts['label'][0]}', in all {len(table)} rows" if counts.height else ""
        found = found or ("Found no labels" if len(table) else "Found no rows")
        raise DataError(f"{found}. Expected at least two labels; name the right column with --set data.label=NAME.")
    rare = counts.filter(pl.col("count") < fewest)["label"].to_list()
    if rare:
        raise too_rare(rare, fewest=fewest)


# --- shares ---------------------------------------------------------------------------------------------------------


def shares_of(rows: int, *, validation_share: float, test_share: float) -> tuple[np.ndarray, str]:
    """The four parts' shares `(4,)`, and in words what became of the calibration rows."""
    if validation_share + test_share >= 1:
        raise SettingError(
            f"data.validation_share {validation_share:g} and data.test_share {test_share:g} leave no rows to train on. "
            "Expected a sum below 1; lower one of them."
        )
    train = 1 - validation_share - test_share
    if int(rows * validation_share / 2) < CALIBRATION_ROWS:
        told = (
            f"no calibration rows: fewer than {CALIBRATION_ROWS}" if validation_share else "validation rows were given"
        )
        return np.array([train, validation_share, 0.0, test_share]), told
    half = validation_share / 2
    return np.array([train, half, half, test_share]), "half of the validation share calibrates"


def _absent(table: Table, parts_N: np.ndarray, shares: np.ndarray) -> list[str]:
    """For each part that lacks labels, a sentence that names them."""
    members = membership(table)
    sentences = []
    for part, name in enumerate(PARTS):
        if shares[part] > 0:
            missing = [members.names[i] for i in np.flatnonzero(members.counts(parts_N == part) == 0)]
            if missing:
                plural = "s" if len(missing) > 1 else ""
                sentences.append(f"no {name} rows of the label{plural} {some(missing)}: too few groups")
    return sentences


# --- the book -------------------------------------------------------------------------------------------------------


def _two_labels(table: Table) -> tuple[str, str]:
    """The smaller label and the larger one."""
    if table.multi_label:
        raise SettingError("The book's split is for two labels, one a row. Take --set data.split=group.")
    require_labels(table)
    counts = label_counts(table).sort("count", "label", descending=[False, True])
    if counts.height != 2:
        raise SettingError(
            f"The book's split is for two labels; found {counts.height}: {some(sorted(counts['label']))}. "
            "Leave out --preset book, or take --set data.split=group."
        )
    return str(counts["label"][0]), str(counts["label"][1])


def _named_as_in_the_book(table: Table) -> Table:
    names: Mapping[str, str] = {"ham": "0", "spam": "1"}
    if set(table.labels) != set(names):
        return table
    frame = table.frame.with_columns(pl.col("label").replace_strict(names))
    return table.changed(frame, step="rename labels", reason="book: 'ham' is called '0' and 'spam' '1'")
