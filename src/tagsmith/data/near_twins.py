"""Pairs of texts that share most of their 5-grams: MinHash says which to compare, their shingles decide.

Legend: N texts, M of them long enough, B bands of R rows of MinHash, S shingles, E pairs of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Protocol

import numpy as np
import polars as pl
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

SHINGLE = 5
"""Characters per shingle; shorter texts are compared as wholes only."""

_PERMUTATIONS, _MISSED = 128, 1e-4
_CHARACTERS_AT_ONCE, _PAIRS_AT_ONCE, _TEXTS_AT_ONCE = 2_000_000, 50_000, 20_000
_PAIRS_PER_BUCKET, _PAIRS_PER_TEXT, _PAIRS_REMEMBERED = 1_000, 300, 4_000_000
_PAIRS_COMPARED, _PAIRS_COMPARED_PER_TEXT = 13_000_000, 50
_BYTES_IN_MEMORY = 64 * 2**20
_RANDOM = np.random.default_rng(5)
_MULTIPLIERS = _RANDOM.integers(2**62, 2**63, size=_PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
_FACTORS, _SUMMANDS = _RANDOM.integers(0, 2**32, size=(2, _PERMUTATIONS), dtype=np.uint32) | np.uint32(1)


class Components:
    """Texts joined so far: `of (N,)` is equal for those that are linked, over whatever chain."""

    def __init__(self, count: int) -> None:
        self.of = np.arange(count, dtype=np.int64)

    def join(self, links_E2: np.ndarray) -> None:
        """Link these pairs of texts."""
        if not len(links_E2):
            return
        met, ends = np.unique(self.of[links_E2], return_inverse=True)
        merged = connected(ends.reshape(-1, 2), len(met))
        first = np.full(len(met), len(self.of), dtype=np.int64)
        np.minimum.at(first, merged, met)
        renamed = np.arange(len(self.of), dtype=np.int64)
        renamed[met] = first[merged]
        self.of = renamed[self.of]


class Allowance:
    """How many more pairs of large buckets are compared, and which texts `skipped (N,)` were left when none were.

    Texts of one template resemble one another nearly as much as twins do, and their pairs grow with the square of their
    number. All pairs of 5,000 texts are always compared; beyond that so many for each text that time stays in bounds.
    """

    def __init__(self, texts: int) -> None:
        self.left = _PAIRS_COMPARED + _PAIRS_COMPARED_PER_TEXT * texts
        self.skipped = np.zeros(texts, dtype=bool)

    def spend(self, pairs_E2: np.ndarray) -> np.ndarray:
        """The pairs, counted."""
        self.left -= len(pairs_E2)
        return pairs_E2


def connected(links_E2: np.ndarray, count: int) -> np.ndarray:
    """The component of each of `count` things `(N,)`, numbered from 0."""
    ones = np.ones(len(links_E2), dtype=np.int8)
    graph = coo_array((ones, (links_E2[:, 0], links_E2[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


@dataclass(frozen=True)
class Sketches:
    """Distinct texts made ready to find near twins.

    The band keys (equal in one band: worth comparing) are asked for band by band, and shingles are made again when a
    pair asks for them: memory holds one band and one batch of pairs at a time. `keyed` gives texts `(M,)` in order and
    their keys in a band; texts whose key no other has may be left out. `marks` `(N, 2)` keep one bit of each row of
    MinHash, to turn away pairs that met by chance.
    """

    texts: pl.Series
    bands: int
    rows: int
    marks: np.ndarray
    keyed: Callable[[int], tuple[np.ndarray, np.ndarray]]

    def links(self, *, near: float, within: np.ndarray | None = None, allowance: Allowance | None = None) -> np.ndarray:
        """Components `(N,)` of the texts, linked where their Jaccard is at least `near`; every link was computed.

        With `within (N,)` only texts of the same number are compared.
        """
        components, refused = Components(len(self.texts)), np.empty(0, dtype=np.int64)
        for pairs_E2 in self.candidates(components, near=near, within=within, allowance=allowance):
            pairs_E2 = pairs_E2[components.of[pairs_E2[:, 0]] != components.of[pairs_E2[:, 1]]]
            pairs_E2 = self._plausible(_without(refused, pairs_E2), near=near)
            links_E2 = self._compared(pairs_E2, near=near)
            components.join(links_E2)
            # A pair just below the threshold meets in several bands, and is compared once.
            new = np.setdiff1d(_codes(pairs_E2), _codes(links_E2), assume_unique=True)
            refused = _merged(refused[-_PAIRS_REMEMBERED:], new)
        return components.of

    def candidates(
        self,
        components: Components,
        *,
        near: float,
        within: np.ndarray | None = None,
        allowance: Allowance | None = None,
    ) -> Iterator[np.ndarray]:
        """Pairs `(E, 2)` worth comparing, in parts; pairs of one component are left out, others may come again.

        In each bucket the first member comes against all others before all against all, so that a large cluster is
        joined by few comparisons.
        """
        allowance = Allowance(len(self.texts)) if allowance is None else allowance
        for band in range(self.bands):
            ids, keys_M = self.keyed(band)
            if within is not None:
                keys_M = _mixed(keys_M ^ _mixed(within[ids].astype(np.uint64)))
            members, buckets = shared_keys(keys_M)
            members = ids[members]
            yield from _with_first(members, buckets)
            members, buckets, large = _still_apart(members, buckets, components)
            yield from _across(members[~large], buckets[~large], components.of[members[~large]])
            yield from self._in_large_buckets(members[large], buckets[large], components, allowance, near=near)

    def near_twins(self, pairs_E2: np.ndarray, *, near: float) -> np.ndarray:
        """Those of the pairs whose shingle sets have a Jaccard of at least `near`."""
        return self._compared(self._plausible(pairs_E2, near=near), near=near)

    def _compared(self, pairs_E2: np.ndarray, *, near: float) -> np.ndarray:
        if not len(pairs_E2):
            return pairs_E2
        ids, places = np.unique(pairs_E2, return_inverse=True)
        sets, places_E2 = shingle_sets(self.texts[ids]), places.reshape(-1, 2)
        one_E, other_E = np.diff(sets.indptr)[places_E2.T]
        alike_E = np.minimum(one_E, other_E) >= near * np.maximum(one_E, other_E) - 1e-9
        pairs_E2, places_E2, sizes_E = pairs_E2[alike_E], places_E2[alike_E], (one_E + other_E)[alike_E]
        if not len(pairs_E2):
            return pairs_E2
        one_ES, other_ES = (csr_array(sets[place_E]) for place_E in places_E2.T)
        shared = np.asarray((one_ES * other_ES).sum(axis=1))
        return pairs_E2[shared >= near * (sizes_E - shared) - 1e-9]

    def _plausible(self, pairs_E2: np.ndarray, *, near: float) -> np.ndarray:
        """Those of the pairs that agree in nearly as many marks as a pair of similarity `near` does.

        A mark agrees with chance (1 + J) / 2. Pairs that meet by chance grow with the square of the rows, while to turn
        one away here costs a fiftieth of making its shingles; at 4.5 standard deviations, 1 of 300,000 is lost.
        """
        count, agree = self.bands * self.rows, (1 + near) / 2
        fewest = count * agree - 4.5 * np.sqrt(count * agree * (1 - agree)) - 1e-9
        differ_E2 = np.bitwise_count(self.marks[pairs_E2[:, 0]] ^ self.marks[pairs_E2[:, 1]]).astype(np.int64)
        differ_E = differ_E2[:, 0] + differ_E2[:, 1]
        return pairs_E2[count - differ_E >= fewest]

    def _in_large_buckets(
        self, members: np.ndarray, buckets: np.ndarray, components: Components, allowance: Allowance, *, near: float
    ) -> Iterator[np.ndarray]:
        """Pairs of large buckets but for those that cannot be near twins, some buckets at a time."""
        if not len(members):
            return
        if allowance.left <= 0:
            allowance.skipped[members] = True
            return
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        cuts = np.unique(starts[np.searchsorted(starts, np.arange(0, len(members), _TEXTS_AT_ONCE), side="right") - 1])
        for start, end in zip(cuts, [*cuts[1:], len(members)], strict=True):
            for pairs_E2 in self._joined(members[start:end], buckets[start:end], components, allowance, near=near):
                yield allowance.spend(pairs_E2)
                if allowance.left <= 0:
                    break
            if allowance.left <= 0:
                allowance.skipped[members[start:]] = True
                return

    def _joined(
        self, members: np.ndarray, buckets: np.ndarray, components: Components, allowance: Allowance, *, near: float
    ) -> Iterator[np.ndarray]:
        """Pairs whose shared shingles can be enough: rare ones are counted, of frequent ones at most all are shared.

        Texts of one template fall into one bucket by the thousands, most of them less alike than `near`. Two sets of x
        and y shingles need near / (1 + near) * (x + y) in common. Which shingles of a bucket are rare is decided so
        that pairs that share one are few.
        """
        sets = shingle_sets(self.texts[members])
        order = np.lexsort((np.diff(sets.indptr), buckets))
        members, sets = members[order], csr_array(sets[order])
        places, sizes = np.unique(buckets[order], return_inverse=True)[1], np.diff(sets.indptr).astype(np.int64)
        rows = np.repeat(np.arange(len(members)), sizes)
        shingles = np.unique(sets.indices, return_inverse=True)[1]
        numbers, counts = np.unique(
            places[rows] * (shingles.max() + 1) + shingles, return_inverse=True, return_counts=True
        )[1:]
        rare = counts[numbers] <= _most_common(counts, pairs=_PAIRS_PER_TEXT * len(members))
        frequent = np.bincount(rows[~rare], minlength=len(members))
        most = (1 + near) / near + 1e-9
        own = components.of[members]
        sharing_E2, seen = _sharing_rare(rows[rare], numbers[rare], own, frequent, sizes, most=most)
        allowance.left -= seen // 8  # to make a pair costs about an eighth of comparing it
        yield from _parts(members, sharing_E2)
        # The pairs found so far are joined by now, so that one component may hold most of a bucket: it is left out.
        outside = np.flatnonzero(~_in_largest(places, components.of[members]))
        room, span = np.minimum(most * frequent - sizes, sizes.max()), sizes.max() + 1
        starts = np.searchsorted(places, places[outside])
        ends = np.searchsorted(places * span + sizes, places[outside] * span + room[outside], side="right")
        for left, right in _ranges(starts, np.maximum(ends - starts, 0)):
            fits = (sizes[outside[left]] <= room[right]) & (outside[left] != right)
            yield np.stack([members[outside[left[fits]]], members[right[fits]]], axis=1)


class Sketched(Protocol):
    """What makes distinct folded texts ready for a search at `near` or above."""

    def __call__(self, texts: pl.Series, *, near: float) -> AbstractContextManager[Sketches]:
        """Sketches of them, for as long as the block lasts."""
        ...


@contextmanager
def sketched(texts: pl.Series, *, near: float) -> Iterator[Sketches]:
    """Sketches of distinct folded texts for a search at `near` or above; their keys are on disk when they are many."""
    ids = long_enough(texts)
    rows, bands = shape_of(near)
    marks = np.zeros((len(texts), 2), dtype=np.uint64)
    with SpooledTemporaryFile(max_size=_BYTES_IN_MEMORY) as spool:

        def keyed(band: int) -> tuple[np.ndarray, np.ndarray]:
            spool.seek(band * len(ids) * 8)
            return ids, np.frombuffer(spool.read(len(ids) * 8), dtype=np.uint64)

        start = 0
        for chunk in _chunks(texts, ids):
            for band, keys_m in enumerate(_keys_of(texts, chunk, rows=rows, bands=bands, marks=marks)):
                spool.seek((band * len(ids) + start) * 8)
                spool.write(keys_m.tobytes())
            start += len(chunk)
        yield Sketches(texts, bands, rows, marks, keyed)


def sketch(texts: pl.Series, *, near: float) -> tuple[np.ndarray, np.ndarray]:
    """The keys `(B, M)` of the texts that are `long_enough`, and the marks `(N, 2)` of all."""
    rows, bands = shape_of(near)
    marks = np.zeros((len(texts), 2), dtype=np.uint64)
    found = [
        np.stack(list(_keys_of(texts, chunk, rows=rows, bands=bands, marks=marks)))
        for chunk in _chunks(texts, long_enough(texts))
    ]
    return np.concatenate(found, axis=1) if found else np.empty((bands, 0), dtype=np.uint64), marks


def long_enough(texts: pl.Series) -> np.ndarray:
    """Which texts `(M,)` have a shingle."""
    return np.flatnonzero(texts.str.len_chars().to_numpy() >= SHINGLE)


def shape_of(near: float) -> tuple[int, int]:
    """Rows of MinHash in a band, and bands, for a search at `near`."""
    rows = _rows_per_band(near)
    return rows, _PERMUTATIONS // rows


def _keys_of(texts: pl.Series, chunk: np.ndarray, *, rows: int, bands: int, marks: np.ndarray) -> Iterator[np.ndarray]:
    """The keys of some texts, band by band; their marks are written on the way."""
    key_m = np.zeros(len(chunk), dtype=np.uint64)
    for i, least_m in enumerate(_least(texts[chunk].to_list(), count=bands * rows)):
        # The lowest bits of a product depend on too few bits of the hash, the highest are 0 in all minima.
        marks[chunk, i // 64] |= (least_m >> np.uint64(9) & np.uint64(1)) << np.uint64(i % 64)
        row = i % rows
        key_m = least_m * _MULTIPLIERS[row] + (key_m if row else np.uint64(0))
        if row == rows - 1:
            yield _mixed(key_m)


def shingle_sets(texts: pl.Series) -> csr_array:
    """The set of 62-bit shingle hashes of each text, `(N, S)` with ones.

    A false match of two different shingles within one pair of texts has a chance under 1e-12.
    """
    values, counts = [np.empty(0, dtype=np.int64)], np.zeros(len(texts), dtype=np.int64)
    for chunk in _chunks(texts, np.arange(len(texts))):
        hashes, offsets = _shingles(texts[chunk].to_list())
        ones = np.ones(len(hashes), dtype=np.int32)
        sets = csr_array((ones, hashes.astype(np.int64), offsets), shape=(len(chunk), 2**62))
        sets.sum_duplicates()
        values.append(sets.indices.astype(np.int64))
        counts[chunk] = np.diff(sets.indptr)
    indices = np.concatenate(values)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return csr_array((np.ones(len(indices), dtype=np.int32), indices, offsets), shape=(len(texts), 2**62))


# --- MinHash --------------------------------------------------------------------------------------------------------


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


def _least(texts: Sequence[str], *, count: int) -> Iterator[np.ndarray]:
    """For one permutation of the shingles after the other, the least shingle of each text `(M,)`."""
    hashes, offsets = _shingles(texts)
    hashes_S = (hashes >> np.uint64(30)).astype(np.uint32)
    permuted_S = np.empty_like(hashes_S)
    for i in range(count):
        # A product with an odd number and a sum, modulo 2**32: a permutation of the hashes, which are mixed well.
        np.multiply(hashes_S, _FACTORS[i], out=permuted_S)
        np.add(permuted_S, _SUMMANDS[i], out=permuted_S)
        yield np.minimum.reduceat(permuted_S, offsets[:-1]).astype(np.uint64)


# --- pairs ----------------------------------------------------------------------------------------------------------


def shared_keys(keys_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions whose key another one has too, sorted by key, and the number of each one's bucket."""
    order = np.argsort(keys_M, kind="stable")
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = keys_M[order[1:]] != keys_M[order[:-1]]
    buckets = np.cumsum(starts) - 1
    shared = np.bincount(buckets)[buckets] > 1 if len(order) else starts
    return order[shared], buckets[shared]


def _with_first(members: np.ndarray, buckets: np.ndarray) -> Iterator[np.ndarray]:
    """The first member of each bucket with each of the others."""
    first = np.searchsorted(buckets, buckets)
    others = np.flatnonzero(first != np.arange(len(members)))
    for start in range(0, len(others), _PAIRS_AT_ONCE):
        some = others[start : start + _PAIRS_AT_ONCE]
        yield np.stack([members[first[some]], members[some]], axis=1)


def _still_apart(
    members: np.ndarray, buckets: np.ndarray, components: Components
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Members of buckets that hold more than one component, and whether their bucket has many such pairs."""
    numbers = components.of[members]
    pairs = _pairs_across(buckets, numbers)
    return members[pairs > 0], buckets[pairs > 0], pairs[pairs > 0] > _PAIRS_PER_BUCKET


def _pairs_across(buckets: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """For each member `(M,)` how many pairs of different components its bucket has."""
    if not len(buckets):
        return np.empty(0, dtype=np.int64)
    places = np.unique(buckets, return_inverse=True)[1]
    runs, counts = np.unique(places * (numbers.max() + 1) + numbers, return_counts=True)
    sizes = np.bincount(places)
    within = np.bincount(runs // (numbers.max() + 1), weights=counts.astype(np.float64) ** 2)
    return ((sizes.astype(np.float64) ** 2 - within) / 2).astype(np.int64)[places]


def _across(members: np.ndarray, buckets: np.ndarray, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """All pairs of a bucket's members that have different numbers, in parts."""
    order = np.lexsort((numbers, buckets))
    members, buckets, numbers = members[order], buckets[order], numbers[order]
    last = np.ones(len(members), dtype=bool)
    last[:-1] = (buckets[1:] != buckets[:-1]) | (numbers[1:] != numbers[:-1])
    ends = np.flatnonzero(last)
    next_run = ends[np.searchsorted(ends, np.arange(len(members)))] + 1
    bucket_end = np.searchsorted(buckets, buckets, side="right")
    for left, right in _ranges(next_run, bucket_end - next_run):
        yield np.stack([members[left], members[right]], axis=1)


def _in_largest(places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """For each member whether its number is the commonest in its bucket; of several as common, the last."""
    runs, run_of, sizes = np.unique(places * (numbers.max() + 1) + numbers, return_inverse=True, return_counts=True)
    bucket_of = runs // (numbers.max() + 1)
    order = np.lexsort((sizes, bucket_of))
    last = order[np.append(np.flatnonzero(np.diff(bucket_of[order])), len(order) - 1)]
    return np.isin(run_of, last)


def _most_common(counts: np.ndarray, *, pairs: int) -> int:
    """In how many texts a shingle may stand so that all that stand in no more give at most so many pairs of texts."""
    texts, times = np.unique(counts, return_counts=True)
    fits = np.cumsum(times * texts * (texts - 1) // 2) <= pairs
    return int(texts[fits].max(initial=1))


def _sharing_rare(
    rows: np.ndarray, numbers: np.ndarray, own: np.ndarray, frequent: np.ndarray, sizes: np.ndarray, *, most: float
) -> tuple[np.ndarray, int]:
    """Pairs `(E, 2)` of positions that share rare shingles, and may share enough of all; `most` is (1 + J) / J.

    And how many share any.
    """
    found = [_codes(pairs_E2) for pairs_E2 in _across(rows, numbers, own[rows])]
    codes, shared = np.unique(np.concatenate(found or [np.empty(0, dtype=np.int64)]), return_counts=True)
    one, other = codes >> 32, codes & 0xFFFFFFFF
    enough = sizes[one] + sizes[other] <= most * (np.minimum(frequent[one], frequent[other]) + shared)
    return np.stack([one[enough], other[enough]], axis=1), len(codes)


def _parts(members: np.ndarray, pairs_E2: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(pairs_E2), _PAIRS_AT_ONCE):
        yield members[pairs_E2[start : start + _PAIRS_AT_ONCE]]


def _codes(pairs_E2: np.ndarray) -> np.ndarray:
    """A number for each pair, whichever comes first."""
    one, other = pairs_E2.T  # by column: to reduce along an axis of two is many times as slow
    return np.minimum(one, other) << 32 | np.maximum(one, other)


def _without(refused: np.ndarray, pairs_E2: np.ndarray) -> np.ndarray:
    """Each pair once, and none that was refused; codes are in order."""
    codes = _sorted_once(_codes(pairs_E2))
    if len(refused):
        known = refused[np.minimum(np.searchsorted(refused, codes), len(refused) - 1)]
        codes = codes[known != codes]
    return np.stack([codes >> 32, codes & 0xFFFFFFFF], axis=1)


def _sorted_once(values: np.ndarray) -> np.ndarray:
    """The distinct values in order; NumPy's own hashing is several times as slow on millions."""
    values = np.sort(values)
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]


def _merged(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Both in one order; a stable sort finds the two runs and merges them."""
    return np.sort(np.concatenate([ordered, np.sort(values)]), kind="stable")


def _ranges(starts: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each position `i` the pairs `(i, starts[i])`, `(i, starts[i] + 1)` ..., `counts[i]` of them, in parts."""
    done = np.concatenate([[0], np.cumsum(counts)])
    if not done[-1]:
        return
    cuts = np.unique(np.searchsorted(done, np.arange(0, done[-1], _PAIRS_AT_ONCE)))
    for start, end in zip(cuts, [*cuts[1:], len(counts)], strict=True):
        left = np.repeat(np.arange(start, end), counts[start:end])
        gap = np.arange(len(left)) - np.repeat(done[start:end] - done[start], counts[start:end])
        yield left, starts[left] + gap
