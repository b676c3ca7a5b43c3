"""Rows that say the same: exact duplicates after folding, near duplicates by shared 5-grams, and the groups they form.

Legend: N texts, P permutations of MinHash, S distinct shingles (5-grams), E pairs of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import rensa
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from tagsmith.data.table import Table

SHINGLE = 5
"""Characters per shingle; shorter texts are compared as wholes only."""


@dataclass(frozen=True)
class Grouped:
    """A table whose groups join duplicates, and what was found.

    `exact_rows` repeat an earlier row, `near_rows` have a near twin that is not an exact one, `conflicting_rows` hold
    `conflicting_texts` that stand in the table with different labels; `largest` is the size in rows of the largest
    group of duplicates, `lowest` the least similarity of two texts within it (1.0 where all are exact), `threshold`
    the similarity that was used.
    """

    table: Table
    exact_rows: int
    near_rows: int
    conflicting_rows: int
    conflicting_texts: int
    largest: int
    lowest: float
    threshold: float


@dataclass(frozen=True)
class Leak:
    """Which test rows have a twin in the training rows: `exact (N,)` after folding, `near (N,)` at `threshold`.

    Every exact twin is a near one too.
    """

    exact: np.ndarray
    near: np.ndarray
    threshold: float

    @property
    def exact_rows(self) -> int:
        """How many test rows stand word for word in the training rows."""
        return int(self.exact.sum())

    @property
    def near_rows(self) -> int:
        """How many test rows have a near twin in the training rows."""
        return int(self.near.sum())


def fold(text: str) -> str:
    """The text in lower case, with each run of white space as one space and none at the ends."""
    return fold_all([text])[0]


def fold_all(texts: Sequence[str] | pl.Series) -> pl.Series:
    """`fold` for a column `(N,)`."""
    column = texts if isinstance(texts, pl.Series) else pl.Series(list(texts), dtype=pl.String)
    return column.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def group_duplicates(table: Table, *, near: float) -> Grouped:
    """The table with one group for all rows that are linked by exact twins, near twins or the group they already had.

    `near` is the Jaccard of 5-grams from which on two texts are near twins; every link is computed, none estimated.
    Links can chain: while a chain of near twins holds more than 5 % of the rows, the threshold rises by 0.05.
    """
    texts = fold_all(table.frame["text"])
    unique, text_ids = _distinct(texts)
    rows_per_text = np.bincount(text_ids, minlength=len(unique))
    links, threshold = _unchained(_Sketches.of(unique, near=near), rows_per_text, near=near)
    components = _components(links, len(unique))
    duplicates = components[text_ids]
    sizes = np.bincount(duplicates, minlength=1)
    conflicts = _conflicts(table, text_ids)
    result = Grouped(
        table=_joined(table, duplicates, near=near, threshold=threshold),
        exact_rows=len(table) - len(unique),
        near_rows=int(np.isin(text_ids, links).sum()),
        conflicting_rows=len(conflicts),
        conflicting_texts=len(np.unique(text_ids[conflicts])),
        largest=int(sizes.max()) if len(table) else 0,
        lowest=_lowest(unique, np.flatnonzero(components == sizes.argmax())) if len(table) else 1.0,
        threshold=threshold,
    )
    return _told(result, conflicts)


def leak(train_texts: Sequence[str] | pl.Series, test_texts: Sequence[str] | pl.Series, *, near: float) -> Leak:
    """Which of the test texts have a twin among the training texts."""
    train, test = fold_all(train_texts), fold_all(test_texts)
    unique, ids = _distinct(pl.concat([test, train], rechunk=True))
    in_test, in_train = np.zeros(len(unique), dtype=bool), np.zeros(len(unique), dtype=bool)
    in_test[ids[: len(test)]] = True
    in_train[ids[len(test) :]] = True
    exact = in_test & in_train
    close = exact.copy()
    sketches = _Sketches.of(unique, near=near)
    for pairs_E2 in sketches.candidates():
        both_ways_E2 = np.concatenate([pairs_E2, pairs_E2[:, ::-1]])
        test_ids, train_ids = both_ways_E2.T
        open_E = in_test[test_ids] & in_train[train_ids] & ~close[test_ids]
        close[sketches.near_twins(both_ways_E2[open_E], near=near)[:, 0]] = True
    return Leak(exact[ids[: len(test)]], close[ids[: len(test)]], near)


# --- groups ---------------------------------------------------------------------------------------------------------

_CHAIN_SHARE, _CHAIN_TEXTS, _STEP = 0.05, 10, 0.05


def _distinct(texts: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The distinct texts in the order of their first row, and for each row the position of its text `(N,)`."""
    unique = texts.unique(maintain_order=True)
    numbers = pl.DataFrame({"text": unique, "id": np.arange(len(unique), dtype=np.int64)})
    joined = pl.DataFrame({"text": texts}).join(numbers, on="text", how="left", maintain_order="left")
    return unique, joined["id"].to_numpy()


def _components(links_E2: np.ndarray, count: int) -> np.ndarray:
    ones = np.ones(len(links_E2), dtype=np.int8)
    graph = coo_array((ones, (links_E2[:, 0], links_E2[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _unchained(sketches: _Sketches, rows_per_text: np.ndarray, *, near: float) -> tuple[np.ndarray, float]:
    threshold = near
    links = _links(sketches, near=threshold)
    while threshold < 1.0 and _is_chain(_components(links, sketches.count), rows_per_text):
        threshold = min(1.0, round(threshold + _STEP, 4))
        links = _links(sketches, near=threshold)
    return links, threshold


def _links(sketches: _Sketches, *, near: float) -> np.ndarray:
    """Pairs of near twins `(E, 2)` that suffice to join all that are linked; pairs already joined are not compared."""
    links = np.empty((0, 2), dtype=np.int64)
    components = np.arange(sketches.count)
    for pairs_E2 in sketches.candidates():
        apart_E = components[pairs_E2[:, 0]] != components[pairs_E2[:, 1]]
        found_E2 = sketches.near_twins(pairs_E2[apart_E], near=near)
        if len(found_E2):
            links = np.concatenate([links, found_E2])
            components = _components(links, sketches.count)
    return links


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
    sets = [set(_shingles([text])[0].tolist()) for text in texts[members[:most]].to_list()]
    pairs = ((one, other) for i, one in enumerate(sets) for other in sets[:i])
    return min((len(one & other) / max(1, len(one | other)) for one, other in pairs), default=1.0)


def _joined(table: Table, duplicates: np.ndarray, *, near: float, threshold: float) -> Table:
    """The table whose groups are the duplicates and the groups that it had, joined."""
    own = table.frame["group"].rank("dense").to_numpy().astype(np.int64)
    both_E2 = np.stack([duplicates, duplicates.max(initial=-1) + own], axis=1)
    groups = _components(both_E2, int(both_E2.max(initial=-1)) + 1)[duplicates].astype(np.uint32)
    reason = f"duplicates share a group: equal after folding, or at least {threshold:g} of their 5-grams in common"
    if threshold > near:
        reason += f" (raised from {near:g}, where one chain held more than {_CHAIN_SHARE:.0%} of the rows)"
    return table.changed(table.frame.with_columns(pl.Series("group", groups)), step="group duplicates", reason=reason)


def _conflicts(table: Table, text_ids: np.ndarray) -> np.ndarray:
    """Positions of the rows whose text stands in the table with two labels."""
    labels = pl.col("label").drop_nulls().n_unique().over("text_id")
    frame = table.frame.select("label", pl.Series("text_id", text_ids))
    return np.flatnonzero(frame.select(labels > 1).to_series().to_numpy())


def _told(grouped: Grouped, conflicts: np.ndarray) -> Grouped:
    table = grouped.table
    reason = (
        f"{grouped.exact_rows} rows repeat an earlier one, {grouped.near_rows} have a near twin; the largest group has "
        f"{grouped.largest} rows, its least similar two share {grouped.lowest:.2f} of their 5-grams; all rows kept"
    )
    table = table.changed(table.frame, step="count duplicates", reason=reason)
    if len(conflicts):
        reason = f"{len(conflicts)} rows hold {grouped.conflicting_texts} texts that have different labels; kept"
        table = table.changed(
            table.frame, step="conflicting labels", reason=reason, rows=table.rows[conflicts].tolist()
        )
    return replace(grouped, table=table)


# --- near twins -----------------------------------------------------------------------------------------------------

_PERMUTATIONS, _MISSED = 128, 1e-4
_CHARACTERS_AT_ONCE, _PAIRS_AT_ONCE = 4_000_000, 200_000
_MULTIPLIERS = np.random.default_rng(5).integers(2**62, 2**63, size=_PERMUTATIONS, dtype=np.uint64) | np.uint64(1)


@dataclass(frozen=True)
class _Sketches:
    """Texts made ready to find near twins: MinHash says which pairs to compare, their shingles decide.

    `ids` are the texts of at least 5 characters, `keys (M, B)` their band keys (equal in one band: worth comparing),
    `shingles (N, S)` the sets of 62-bit shingle hashes of those worth comparing; a false match of two different
    shingles within one pair of texts has a chance under 1e-12.
    """

    ids: np.ndarray
    keys: np.ndarray
    shingles: csr_array

    @classmethod
    def of(cls, texts: pl.Series, *, near: float) -> _Sketches:
        """Sketches of distinct folded texts for a search at `near` or above."""
        ids = np.flatnonzero(texts.str.len_chars().to_numpy() >= SHINGLE)
        rows = _rows_per_band(near)
        chunks = [_band_keys(texts[chunk].to_list(), rows) for chunk in _chunks(texts, ids)]
        keys_MB = np.concatenate(chunks) if chunks else np.empty((0, 1), dtype=np.uint64)
        wanted = ids[_has_mate(keys_MB)]
        return cls(ids, keys_MB, _shingle_sets(texts, wanted))

    @property
    def count(self) -> int:
        """How many texts there are, short ones too."""
        return len(self.shingles.indptr) - 1

    def candidates(self) -> Iterator[np.ndarray]:
        """Pairs `(E, 2)` worth comparing, in parts; a pair may come again.

        In each bucket the first member comes against all others before all against all, so that a large cluster is
        joined by few comparisons.
        """
        for keys_M in self.keys.T:
            for pairs_E2 in _batched(_pairs_of(keys_M)):
                yield self.ids[pairs_E2]

    def near_twins(self, pairs_E2: np.ndarray, *, near: float) -> np.ndarray:
        """Those of the pairs whose shingle sets have a Jaccard of at least `near`."""
        sizes = np.diff(self.shingles.indptr)[pairs_E2]
        pairs_E2 = pairs_E2[sizes.min(axis=1) >= near * sizes.max(axis=1) - 1e-9]
        if not len(pairs_E2):
            return pairs_E2
        sizes = np.diff(self.shingles.indptr)[pairs_E2].sum(axis=1)
        one_ES, other_ES = (csr_array(self.shingles[ids]) for ids in pairs_E2.T)
        shared = np.asarray((one_ES * other_ES).sum(axis=1))
        return pairs_E2[shared >= near * (sizes - shared) - 1e-9]


def _rows_per_band(near: float) -> int:
    """The longest band at which a pair of similarity `near` is still missed with a chance under 1e-4."""
    fits = [rows for rows in range(1, 9) if (1 - near**rows) ** (_PERMUTATIONS // rows) < _MISSED]
    return max(fits)


def _chunks(texts: pl.Series, ids: np.ndarray) -> list[np.ndarray]:
    """`ids` in runs of some millions of characters, so that memory stays bounded."""
    if not len(ids):
        return []
    ends = np.cumsum(texts[ids].str.len_chars().to_numpy(), dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(_CHARACTERS_AT_ONCE, ends[-1], _CHARACTERS_AT_ONCE))
    return [chunk for chunk in np.split(ids, cuts) if len(chunk)]


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """62-bit hashes of all shingles in order, and offsets `(N+1,)`; a text under 5 characters has none."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    counts = np.maximum(lengths - SHINGLE + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    windows = max(len(codes) - SHINGLE + 1, 0)
    hashes = np.zeros(windows, dtype=np.uint64)
    for i in range(SHINGLE):
        hashes += codes[i : i + windows] * _MULTIPLIERS[i]
    hashes = _mixed(hashes) >> np.uint64(2)
    starts = np.cumsum(lengths) - lengths
    return hashes[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)], offsets


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each bit of the input moves half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _band_keys(texts: Sequence[str], rows: int) -> np.ndarray:
    hashes, offsets = _shingles(texts)
    # pyrefly: ignore[missing-attribute]  # rensa is compiled and brings no stubs
    digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, _PERMUTATIONS, 1)
    digests_NP = np.array(digests.to_rows(), dtype=np.uint64)
    bands = _PERMUTATIONS // rows
    bands_NBR = digests_NP[:, : bands * rows].reshape(len(texts), bands, rows)
    return _mixed((bands_NBR * _MULTIPLIERS[:rows]).sum(axis=2, dtype=np.uint64))


def _has_mate(keys_MB: np.ndarray) -> np.ndarray:
    mates = np.zeros(len(keys_MB), dtype=bool)
    for keys_M in keys_MB.T:
        order = np.argsort(keys_M)
        equal = keys_M[order][1:] == keys_M[order][:-1]
        mates[order[1:][equal]] = True
        mates[order[:-1][equal]] = True
    return mates


def _shingle_sets(texts: pl.Series, ids: np.ndarray) -> csr_array:
    values, counts = [np.empty(0, dtype=np.int64)], np.zeros(len(texts), dtype=np.int64)
    for chunk in _chunks(texts, ids):
        hashes, offsets = _shingles(texts[chunk].to_list())
        sets = csr_array((np.ones(len(hashes), dtype=np.int32), hashes.astype(np.int64), offsets))
        sets.sum_duplicates()
        values.append(sets.indices.astype(np.int64))
        counts[chunk] = np.diff(sets.indptr)
    indices = np.concatenate(values)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return csr_array((np.ones(len(indices), dtype=np.int32), indices, offsets), shape=(len(texts), 2**62))


def _pairs_of(keys_M: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of positions with equal keys, bucket by bucket of one size, the first member's pairs before the rest."""
    order = np.argsort(keys_M, kind="stable")
    starts = np.flatnonzero(np.diff(keys_M[order], prepend=~keys_M[order[:1]]) != 0)
    sizes = np.diff(starts, append=len(order))
    for size in np.unique(sizes[sizes > 1]).tolist():
        members = order[starts[sizes == size][:, None] + np.arange(size)]
        for i in range(1, size):
            yield np.stack([members[:, 0], members[:, i]], axis=1)
        for gap in range(1, size - 1):
            yield np.stack([members[:, 1:-gap].ravel(), members[:, 1 + gap :].ravel()], axis=1)


def _batched(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same pairs in parts of some hundred thousand."""
    waiting: list[np.ndarray] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= _PAIRS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)
