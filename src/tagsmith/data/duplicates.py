"""Rows that say the same: exact duplicates after folding, near duplicates by shared 5-grams, and the groups they form.

Legend: N rows or texts, E pairs of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from tagsmith.data.conflicts import conflicting_rows
from tagsmith.data.folding import distinct, fold_all
from tagsmith.data.near_twins import Allowance, Components, Sketched, Sketches, connected, shingle_sets, sketched
from tagsmith.data.table import Table


@dataclass(frozen=True)
class Grouped:
    """A table whose groups join duplicates, and what was found.

    `exact_rows` repeat an earlier row, `near_rows` have a near twin that is not an exact one, `conflicting_rows` hold
    `conflicting_texts` that stand in the table with different labels; `largest` is the size in rows of the largest
    group of duplicates, `lowest` the least similarity of two texts within it (1.0 where all are exact), `threshold`
    the similarity that was used. `not_compared` rows follow templates with more look-alikes than are compared one by
    one: near twins among them may have been missed.
    """

    table: Table
    exact_rows: int
    near_rows: int
    conflicting_rows: int
    conflicting_texts: int
    largest: int
    lowest: float
    threshold: float
    not_compared: int = 0


@dataclass(frozen=True)
class Leak:
    """Which test rows have a twin in the training rows: `exact (N,)` after folding, `near (N,)` at `threshold`.

    Every exact twin is a near one too. `not_compared` test rows may have near twins that were missed, as in `Grouped`.
    """

    exact: np.ndarray
    near: np.ndarray
    threshold: float
    not_compared: int = 0

    @property
    def exact_rows(self) -> int:
        """How many test rows stand word for word in the training rows."""
        return int(self.exact.sum())

    @property
    def near_rows(self) -> int:
        """How many test rows have a near twin in the training rows."""
        return int(self.near.sum())


def group_duplicates(table: Table, *, near: float, sketched: Sketched = sketched) -> Grouped:
    """The table with one group for all rows that are linked by exact twins, near twins or the group they already had.

    `near` is the Jaccard of 5-grams from which on two texts are near twins; every link is computed, none estimated.
    Links can chain: while a chain of near twins holds more than 5 % of the rows, the threshold rises by 0.05.
    `sketched` makes the texts ready to compare.
    """
    unique, text_ids = distinct(fold_all(table.frame["text"]))
    rows_per_text = np.bincount(text_ids, minlength=len(unique))
    with sketched(unique, near=near) as sketches:
        components, threshold, skipped = _unchained(sketches, rows_per_text, near=near)
    duplicates = components[text_ids]
    sizes, texts_joined = np.bincount(duplicates, minlength=1), np.bincount(components, minlength=1)
    conflicts = conflicting_rows(table, text_ids)
    result = Grouped(
        table=_joined(table, duplicates, near=near, threshold=threshold),
        exact_rows=len(table) - len(unique),
        near_rows=int((texts_joined[duplicates] > 1).sum()),
        conflicting_rows=len(conflicts),
        conflicting_texts=len(np.unique(text_ids[conflicts])),
        largest=int(sizes.max()) if len(table) else 0,
        lowest=_lowest(unique, np.flatnonzero(components == sizes.argmax())) if len(table) else 1.0,
        threshold=threshold,
        not_compared=int(skipped[text_ids].sum()),
    )
    return _told(result, conflicts)


def leak(train_texts: Sequence[str] | pl.Series, test_texts: Sequence[str] | pl.Series, *, near: float) -> Leak:
    """Which of the test texts have a twin among the training texts."""
    train, test = fold_all(train_texts), fold_all(test_texts)
    unique, ids = distinct(pl.concat([test, train], rechunk=True))
    in_test, in_train = np.zeros(len(unique), dtype=bool), np.zeros(len(unique), dtype=bool)
    in_test[ids[: len(test)]] = True
    in_train[ids[len(test) :]] = True
    exact = in_test & in_train
    close = exact.copy()
    allowance = Allowance(len(unique))
    with sketched(unique, near=near) as sketches:
        for pairs_E2 in sketches.candidates(Components(len(unique)), near=near, allowance=allowance):
            both_ways_E2 = np.concatenate([pairs_E2, pairs_E2[:, ::-1]])
            test_ids, train_ids = both_ways_E2.T
            open_E = in_test[test_ids] & in_train[train_ids] & ~close[test_ids]
            close[sketches.near_twins(both_ways_E2[open_E], near=near)[:, 0]] = True
    skipped = allowance.skipped & in_test & ~close
    return Leak(exact[ids[: len(test)]], close[ids[: len(test)]], near, int(skipped[ids[: len(test)]].sum()))


# --- groups ---------------------------------------------------------------------------------------------------------

_CHAIN_SHARE, _CHAIN_TEXTS, _STEP = 0.05, 10, 0.05


def _unchained(sketches: Sketches, rows_per_text: np.ndarray, *, near: float) -> tuple[np.ndarray, float, np.ndarray]:
    """The component of each text `(N,)`, the threshold at which no chain is too long, and texts not compared `(N,)`."""
    allowance = Allowance(len(rows_per_text))
    threshold, components = near, sketches.links(near=near, allowance=allowance)
    while threshold < 1.0 and _is_chain(components, rows_per_text):
        threshold = min(1.0, round(threshold + _STEP, 4))
        allowance = Allowance(len(rows_per_text))
        # A higher threshold only parts what was joined.
        components = sketches.links(near=threshold, within=components, allowance=allowance)
    return components, threshold, allowance.skipped


def _is_chain(components: np.ndarray, rows_per_text: np.ndarray) -> bool:
    """Whether one group holds too many rows, and not mostly because one and the same text repeats."""
    if not len(components):
        return False
    rows = np.bincount(components, weights=rows_per_text)
    members = components == rows.argmax()
    mostly_one_text = rows_per_text[members].max() > rows.max() / 2
    return bool(rows.max() > _CHAIN_SHARE * rows.sum() and members.sum() >= _CHAIN_TEXTS and not mostly_one_text)


def _lowest(texts: pl.Series, members: np.ndarray, most: int = 300) -> float:
    """The least similarity of two of these texts; of the first 300 where there are more."""
    shingles = shingle_sets(texts[members[:most]])
    sets = [set(part.tolist()) for part in np.split(shingles.indices, shingles.indptr[1:-1])]
    pairs = ((one, other) for i, one in enumerate(sets) for other in sets[:i])
    return min((len(one & other) / max(1, len(one | other)) for one, other in pairs), default=1.0)


def _joined(table: Table, duplicates: np.ndarray, *, near: float, threshold: float) -> Table:
    """The table whose groups are the duplicates and the groups that it had, joined."""
    own = table.frame["group"].rank("dense").to_numpy().astype(np.int64)
    both_E2 = np.stack([duplicates, duplicates.max(initial=-1) + own], axis=1)
    groups = connected(both_E2, int(both_E2.max(initial=-1)) + 1)[duplicates].astype(np.uint32)
    reason = f"duplicates share a group: equal after folding, or at least {threshold:g} of their 5-grams in common"
    if threshold > near:
        reason += f" (raised from {near:g}, where one chain held more than {_CHAIN_SHARE:.0%} of the rows)"
    return table.changed(table.frame.with_columns(pl.Series("group", groups)), step="group duplicates", reason=reason)


def _told(grouped: Grouped, conflicts: np.ndarray) -> Grouped:
    table = grouped.table
    reason = (
        f"{grouped.exact_rows} rows repeat an earlier one, {grouped.near_rows} have a near twin; the largest group has "
        f"{grouped.largest} rows, its least similar two share {grouped.lowest:.2f} of their 5-grams; all rows kept"
    )
    table = table.changed(table.frame, step="count duplicates", reason=reason)
    if grouped.not_compared:
        reason = (
            f"{grouped.not_compared} rows follow templates with more look-alikes than are compared one by one: of "
            "these, near twins may stand in different parts"
        )
        table = table.changed(table.frame, step="count duplicates", reason=reason)
    if len(conflicts):
        reason = f"{len(conflicts)} rows hold {grouped.conflicting_texts} texts that have different labels; kept"
        table = table.changed(
            table.frame, step="conflicting labels", reason=reason, rows=table.rows[conflicts].tolist()
        )
    return replace(grouped, table=table)
