"""Rows into parts so that each part has its share of every label, and no group of rows is torn apart.

Legend: N rows, G groups, C labels, P parts.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.sparse import csc_array, csr_array

from tagsmith.data.folding import fold_all, hash_texts
from tagsmith.data.table import Table


def assigned(table: Table, shares: np.ndarray, *, seed: int) -> np.ndarray:
    """The part of each row `(N,)`, 0 to 3, for the four parts' shares; each label has a row in part 0.

    With one label a row, groups are drawn label by label; with several, by iterative stratification (Sechidis,
    Tsoumakas and Vlahavas 2011, algorithm 1), of groups instead of rows.
    """
    random = np.random.default_rng(seed)
    if table.multi_label:
        parts_N = _iteratively(table, lambda counts_C: _running_targets(shares, counts_C), shares, random)
    else:
        parts_N = _label_by_label(table, shares, random)
    return _with_training_rows(table, parts_N)


def in_folds(table: Table, count: int, *, seed: int) -> np.ndarray:
    """The fold of each row `(N,)`, 0 to `count` - 1, by iterative stratification; all folds of nearly equal size."""
    shares = np.full(count, 1 / count)
    return _iteratively(
        table, lambda counts_C: np.outer(counts_C, shares), shares, np.random.default_rng(seed), even=True
    )


def by_hash(table: Table, shares: np.ndarray, *, seed: int) -> np.ndarray:
    """The part of each row `(N,)`, 0 to 3, by where the hash of its group's smallest folded text falls.

    The hash is `hash_texts` of that text with the seed in decimals and a line feed before it, as a share of 2**64: up
    to the test share it tests, then come calibration and validation, and the rest trains.
    """
    texts = table.frame.select("group", fold_all(table.frame["text"]).alias("text"))
    smallest = texts.group_by("group").agg(pl.col("text").min()).sort("group")
    at_G = hash_texts(smallest["text"], salt=f"{seed}\n").astype(np.float64) / 2.0**64
    places, ends = (3, 2, 1, 0), np.cumsum(shares[[3, 2, 1]])
    parts_G = np.array(places)[np.searchsorted(ends, at_G, side="right")]
    return parts_G[smallest["group"].search_sorted(table.frame["group"]).to_numpy()]


@dataclass(frozen=True)
class Members:
    """Which rows have which label: names in order, `rows` and `labels` of each such pair, row after row."""

    names: list[str]
    rows: np.ndarray
    labels: np.ndarray

    def counts(self, rows_N: np.ndarray) -> np.ndarray:
        """How many of the rows marked have each label `(C,)`."""
        return np.bincount(self.labels[rows_N[self.rows]], minlength=len(self.names))

    def rows_of(self, names: Sequence[str]) -> np.ndarray:
        """The rows that have any of these labels."""
        wanted_C = np.isin(np.asarray(self.names, dtype=object), np.asarray(names, dtype=object))
        return np.unique(self.rows[wanted_C[self.labels]])


def membership(table: Table) -> Members:
    """Which rows of the table have which label."""
    if table.multi_label:
        lists = table.frame["label"].list.unique()
        sizes = lists.list.len().fill_null(0).to_numpy()
        flat = lists.list.explode().drop_nulls()
    else:
        flat, sizes = table.frame["label"], np.ones(len(table), dtype=np.int64)
    codes = (flat.rank("dense") - 1).to_numpy().astype(np.int64)
    return Members(flat.unique().sort().to_list(), np.repeat(np.arange(len(table)), sizes), codes)


# --- one label a row ------------------------------------------------------------------------------------------------


def _label_by_label(table: Table, shares: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The part of each row `(N,)`: the groups of each most frequent label are drawn among themselves."""
    groups = _groups(table)
    parts_G = np.zeros(groups.height, dtype=np.int64)
    sizes_G = groups["size"].to_numpy().astype(np.int64)
    strata_G = groups["stratum"].to_numpy()
    order = np.argsort(strata_G, kind="stable")
    before = 0
    for members in np.split(order, np.flatnonzero(np.diff(strata_G[order])) + 1):
        after = before + int(sizes_G[members].sum())
        targets = _targets(shares, before, after, groups=len(members))
        parts_G[members] = _fill(sizes_G[members], targets, random)
        before = after
    return parts_G[groups["group"].search_sorted(table.frame["group"]).to_numpy()]


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
    parts[multiple] = _fill_multiples(sizes[multiple].tolist(), room, _Draws(random))
    single = order[len(multiple) :]
    parts[single] = _fill_singles(len(single), room)
    return parts


def _fill_multiples(sizes: Sequence[int], room: np.ndarray, draws: _Draws) -> list[int]:
    """Parts chosen with their room as the odds, for always taking the emptiest would put all large groups into train.

    `room (P,)` is what remains of it afterwards.
    """
    left, parts = room.tolist(), []
    for size in sizes:
        fits = [rows if rows >= size else 0 for rows in left]
        part = draws.choice(fits) if any(fits) else left.index(max(left))
        left[part] -= size
        parts.append(part)
    room[:] = left
    return parts


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
    members = membership(table)
    for label in np.flatnonzero(members.counts(parts_N == 0) == 0).tolist():
        groups = table.groups[members.rows[members.labels == label]]
        parts_N[table.groups == groups.min()] = 0
    return parts_N


# --- several labels a row -------------------------------------------------------------------------------------------


def _running_targets(shares: np.ndarray, counts_C: np.ndarray) -> np.ndarray:
    """Rows per label and part `(C, P)`: `_targets` for one label after the other."""
    ends = np.cumsum(counts_C)
    targets = [
        _targets(shares, int(end - count), int(end), groups=int(count))
        for end, count in zip(ends, counts_C, strict=True)
    ]
    return np.array(targets, dtype=np.float64).reshape(len(counts_C), len(shares))


def _iteratively(
    table: Table,
    targets_of: Callable[[np.ndarray], np.ndarray],
    shares: np.ndarray,
    random: np.random.Generator,
    *,
    even: bool = False,
) -> np.ndarray:
    """The part of each row `(N,)`: the label with the fewest rows left is dealt out first, large groups before small.

    A group goes where most rows of that label are wanted; with `even` unset, a group of several rows goes there by
    odds, for the largest part would else get all large groups.
    """
    groups, group_N = np.unique(table.groups, return_inverse=True)
    counts_GC = _counts_by_group(table, group_N, len(groups))
    sizes_G = np.bincount(group_N, minlength=len(groups))
    left_C = np.asarray(counts_GC.sum(axis=0)).ravel()
    wanted = _Wanted(targets_of(left_C), shares * len(table))
    parts = [-1] * len(groups)
    order = random.permutation(len(groups))
    order = order[np.argsort(-sizes_G[order], kind="stable")]
    by_label = csc_array(counts_GC[order])
    starts, columns, values = (part.tolist() for part in (counts_GC.indptr, counts_GC.indices, counts_GC.data))
    sizes, left, draws = sizes_G.tolist(), left_C.astype(np.float64), _Draws(random)
    for _ in range(len(left)):
        label = int(np.where(left > 0, left, np.inf).argmin())
        for group in order[by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]].tolist():
            if parts[group] >= 0:
                continue
            span = slice(starts[group], starts[group + 1])
            odds = draws if sizes[group] > 1 and not even else None
            parts[group] = part = wanted.part(label, sizes[group], odds)
            for other, count in zip(columns[span], values[span], strict=True):
                wanted.rows[other][part] -= count
                left[other] -= count
            wanted.all[part] -= sizes[group]
        left[label] = 0
    return np.array(parts, dtype=np.int64)[group_N]


def _counts_by_group(table: Table, group_N: np.ndarray, groups: int) -> csr_array:
    """How many rows of each group have each label `(G, C + 1)`; those without any label stand in the last column."""
    members = membership(table)
    none = np.setdiff1d(np.arange(len(table)), members.rows)
    rows = np.concatenate([members.rows, none])
    labels = np.concatenate([members.labels, np.full(len(none), len(members.names))])
    ones = np.ones(len(rows), dtype=np.int64)
    return csr_array((ones, (group_N[rows], labels)), shape=(groups, len(members.names) + 1))


class _Wanted:
    """How many rows each part still wants: `rows` per label and part, `all` per part."""

    def __init__(self, rows_CP: np.ndarray, all_P: np.ndarray) -> None:
        self.rows: list[list[float]] = rows_CP.tolist()
        self.all: list[float] = all_P.tolist()

    def part(self, label: int, size: int, draws: _Draws | None) -> int:
        """Where a group of this label goes: by odds where there are `draws` and a part that can hold it."""
        wanted, room = self.rows[label], self.all
        if draws is not None:
            odds = [w if w > 0 and r >= size else 0.0 for w, r in zip(wanted, room, strict=True)]
            if any(odds):
                return draws.choice(odds)
        return max(range(len(room)), key=lambda part: (wanted[part], room[part]))


class _Draws:
    """Draws from a generator, by odds; the same as its `choice`, which takes twenty times as long for four odds."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def choice(self, odds: Sequence[float]) -> int:
        """The position of one of the odds, all of which may be anything but negative, and not all zero."""
        total = sum(odds)
        ends = list(itertools.accumulate(odd / total for odd in odds))
        return bisect.bisect_right([end / ends[-1] for end in ends], self.random.random())
