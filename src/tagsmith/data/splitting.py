"""From one table to four parts: stratified by label, and no group of duplicates ever in two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from tagsmith.data.table import PARTS, Splits, Table
from tagsmith.errors import DataError, SettingError

CALIBRATION_ROWS = 200
"""Fewest rows worth setting apart for calibration (STATISTICS.md 10); with fewer, cross-fitted scores do better."""


def split(table: Table, *, validation_share: float, test_share: float, seed: int) -> Splits[Table]:
    """Four parts with nearly equal shares of each label; rows of one group stay together.

    Half of `validation_share` becomes calibration rows where that is at least 200 rows. Each label has training rows;
    a label with two groups has test rows too, and the history names labels that a part does not hold. DataError for
    fewer than two labels, and for labels with fewer than 2 rows.
    """
    require_labels(table)
    shares, told = _shares(len(table), validation_share=validation_share, test_share=test_share)
    parts_N = _assigned(table, shares, seed=seed)
    reason = ", ".join(f"{PARTS[i]} {int((parts_N == i).sum())}" for i in range(len(PARTS)))
    table = table.changed(table.frame, step="split", reason=f"{reason} rows; stratified by label, groups whole; {told}")
    for reason in _absent(table, parts_N, shares):
        table = table.changed(table.frame, step="split", reason=reason)
    return Splits(*(table.take(np.flatnonzero(parts_N == i)) for i in range(len(PARTS))))


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
    return np.asarray(_assigned(table, np.array([0.5, 0.0, 0.0, 0.5]), seed=seed) == 3)


def require_labels(table: Table) -> None:
    """DataError unless there are at least two labels with at least two rows each."""
    counts = table.frame["label"].value_counts().sort("label")
    if counts.height < 2:
        found = (
            f"Found one label only, '{counts['label'][0]}', in all {len(table)} rows" if len(table) else "Found no rows"
        )
        raise DataError(f"{found}. Expected at least two labels; name the right column with --set data.label=NAME.")
    rare = counts.filter(pl.col("count") < 2)["label"].to_list()
    if rare:
        some = ", ".join(f"'{label}'" for label in rare[:10]) + (
            f" and {len(rare) - 10} more" if len(rare) > 10 else ""
        )
        raise DataError(
            f"Found fewer than 2 rows of the label{'s' if len(rare) > 1 else ''} {some}. Expected at least 2 rows of "
            "each, one to learn from and one to measure on; merge rare labels, drop them, or add rows."
        )


# --- shares ---------------------------------------------------------------------------------------------------------


def _shares(rows: int, *, validation_share: float, test_share: float) -> tuple[np.ndarray, str]:
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


def _assigned(table: Table, shares: np.ndarray, *, seed: int) -> np.ndarray:
    """The part of each row `(N,)`, 0 to 3."""
    groups = _groups(table)
    random = np.random.default_rng(seed)
    parts_G = np.zeros(groups.height, dtype=np.int64)
    strata = groups["stratum"].to_numpy()
    sizes = groups["size"].to_numpy().astype(np.int64)
    before = 0
    for stratum in range(int(strata.max()) + 1):
        members = np.flatnonzero(strata == stratum)
        after = before + int(sizes[members].sum())
        targets = _targets(shares, before, after, groups=len(members))
        parts_G[members] = _fill(sizes[members], targets, random)
        before = after
    parts_N = parts_G[groups["group"].search_sorted(table.frame["group"]).to_numpy()]
    return _with_training_rows(table, parts_N)


def _groups(table: Table) -> pl.DataFrame:
    """One row per group, by `group`: its size, and its stratum, the number of its most frequent label."""
    counts = table.frame.group_by("group", "label").agg(pl.len().alias("count"))
    return (
        counts.sort("group", "count", "label", descending=[False, True, False])
        .group_by("group", maintain_order=True)
        .agg(pl.col("label").first(), pl.col("count").sum().alias("size"))
        .with_columns((pl.col("label").rank("dense") - 1).alias("stratum"))
    )


def _targets(shares: np.ndarray, before: int, after: int, *, groups: int) -> np.ndarray:
    """Rows per part `(4,)` for the rows from `before` to `after`.

    Rounded as a running sum over all labels, so that the parts' totals are right too, with many small labels as well.
    """
    ends, starts = np.floor(shares * after + 0.5), np.floor(shares * before + 0.5)
    targets = (ends - starts).astype(np.int64)
    for part, fewest in ((3, 2), (1, 3)):
        if groups >= fewest and shares[part] > 0:
            targets[part] = max(targets[part], 1)
    targets[0] = after - before - targets[1:].sum()
    for part in (2, 1, 3):
        lacking = max(0, 1 - int(targets[0]))
        taken = min(lacking, int(targets[part]))
        targets[part] -= taken
        targets[0] += taken
    return targets


def _fill(sizes: np.ndarray, targets: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The part of each group: large groups first, each by chance among the parts with room for it; single rows last."""
    parts = np.zeros(len(sizes), dtype=np.int64)
    room = targets.astype(np.int64).copy()
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    multiple = order[sizes[order] > 1]
    for group in multiple.tolist():
        part = _part_with_room(room, int(sizes[group]), random)
        parts[group] = part
        room[part] -= sizes[group]
    single = order[len(multiple) :]
    parts[single] = _fill_singles(len(single), room)
    return parts


def _part_with_room(room: np.ndarray, size: int, random: np.random.Generator) -> int:
    """A part chosen with its room as the odds, for always taking the emptiest would put all large groups into train."""
    fits = np.where(room >= size, room, 0)
    if fits.sum() == 0:
        return int(room.argmax())
    return int(random.choice(len(room), p=fits / fits.sum()))


def _fill_singles(count: int, room: np.ndarray) -> np.ndarray:
    """Parts for single rows that stand in random order already; what large groups took too much is taken from train."""
    wanted = np.maximum(room, 0)
    excess = int(wanted.sum()) - count
    for part in (0, 2, 1, 3):
        taken = min(max(excess, 0), int(wanted[part]))
        wanted[part] -= taken
        excess -= taken
    return np.repeat(np.arange(len(room)), wanted)


def _with_training_rows(table: Table, parts_N: np.ndarray) -> np.ndarray:
    """The parts, with one group moved to train for each label that would have no training row."""
    parts_N = parts_N.copy()
    labels = np.asarray(table.labels)
    for label in np.setdiff1d(labels, labels[parts_N == 0]):
        group = table.groups[labels == label].min()
        parts_N[table.groups == group] = 0
    return parts_N


def _absent(table: Table, parts_N: np.ndarray, shares: np.ndarray) -> list[str]:
    """For each part that lacks labels, a sentence that names them."""
    labels = np.asarray(table.labels)
    sentences = []
    for part, name in enumerate(PARTS):
        missing = np.setdiff1d(labels, labels[parts_N == part]).tolist() if shares[part] > 0 else []
        if missing:
            some = ", ".join(f"'{label}'" for label in missing[:10])
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            sentences.append(
                f"no {name} rows of the label{'s' if len(missing) > 1 else ''} {some}{more}: too few groups"
            )
    return sentences


# --- the book -------------------------------------------------------------------------------------------------------


def _two_labels(table: Table) -> tuple[str, str]:
    """The smaller label and the larger one."""
    require_labels(table)
    counts = table.frame["label"].value_counts().sort("count", "label", descending=[False, True])
    if counts.height != 2:
        raise SettingError(
            f"The book's split is for two labels; found {counts.height}: {_some(counts['label'].to_list())}. "
            "Leave out --preset book, or take --set data.split=group."
        )
    return str(counts["label"][0]), str(counts["label"][1])


def _some(labels: Sequence[str]) -> str:
    return ", ".join(f"'{label}'" for label in sorted(labels)[:10])


def _named_as_in_the_book(table: Table) -> Table:
    names: Mapping[str, str] = {"ham": "0", "spam": "1"}
    if set(table.labels) != set(names):
        return table
    frame = table.frame.with_columns(pl.col("label").replace_strict(names))
    return table.changed(frame, step="rename labels", reason="book: 'ham' is called '0' and 'spam' '1'")
