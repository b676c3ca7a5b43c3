"""Stage 1 on a cluster: files read, texts cleaned and MinHash made by many, with the rows of one process.

What is decided is decided here, by the code of one process, so that groups and splits are the same row for row. What
is handed out is what takes the time: a file each, and blocks of texts. The band keys of MinHash go through a shuffle:
each block gives its keys band by band, whoever has a band and a range of keys finds those that are shared, and only
these come back. A text has so many bands whatever the rows are, so that what is sent grows with the rows alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tagsmith.config import DataConfig
from tagsmith.data.column_cleaning import Cleaned, clean
from tagsmith.data.files import File, Layout, Raw
from tagsmith.data.hands import Hands
from tagsmith.data.near_twins import Sketches, long_enough, shape_of, shared_keys, sketch
from tagsmith.data.readers import read_in_turn
from tagsmith.errors import ResourceError, SettingError, TagsmithError
from tagsmith.scale.cluster import first_line
from tagsmith.scale.nodes import Need, living, require_seen, workers_that_fit

_TEXTS_IN_A_BLOCK = 20_000
_KEYS_IN_A_RANGE = 20_000_000
_BYTES_OF_A_TASK = 1e9


def require_hash_splits(config: DataConfig) -> None:
    """SettingError unless rows are split by a hash, which is the same wherever they lie."""
    if config.split != "hash":
        raise SettingError(
            f"data.split is '{config.split}', and --on ray needs parts that do not depend on how rows lie on machines. "
            "Expected data.split = hash; give --set data.split=hash, here and for the same training without --on."
        )


@dataclass
class Traffic:
    """What near twins sent: keys to those who compare them, marks and shared keys back; in bytes, of so many texts."""

    keys: int = 0
    back: int = 0
    texts: int = 0

    @property
    def bytes_per_text(self) -> float:
        """What one text cost."""
        return (self.keys + self.back) / max(1, self.texts)


@dataclass
class Cluster:
    """The hands of a cluster that this process is connected to; `traffic` counts what near twins sent."""

    traffic: Traffic = field(default_factory=Traffic)

    def hands(self) -> Hands:
        """Hands that read, clean and sketch on the cluster; ResourceError where it has no room for a task."""
        workers_that_fit(Need("Preparing", workers=1, memory=_BYTES_OF_A_TASK), living())
        return Hands(self.read_files, self.clean, self.sketched)

    def read_files(self, files: Sequence[File], layout: Layout, scratch: Path) -> list[Raw]:
        """Files that all machines see, each by one of them; what only this one has, such as standard input, here."""
        if len(files) < 2 or any(file.path.is_relative_to(scratch) for file in files):
            return read_in_turn(files, layout, scratch)
        require_seen([file.path.resolve() for file in files], living())
        return _all_of(_read, [(file, layout) for file in files])

    def clean(self, texts: pl.Series, steps: Sequence[str]) -> Cleaned:
        """Blocks of a column, cleaned and put together again."""
        if len(texts) <= _TEXTS_IN_A_BLOCK:
            return clean(texts, steps)
        found = _all_of(clean, [(block, list(steps)) for block in _blocks(texts)])
        changed = {step: np.concatenate([each.changed[step] for each in found]) for step in found[0].changed}
        return Cleaned(pl.concat([each.texts for each in found], rechunk=True), changed)

    @contextmanager
    def sketched(self, texts: pl.Series, *, near: float) -> Iterator[Sketches]:
        """Sketches whose keys are those that texts share; they are found on the cluster, band by band."""
        import ray

        (rows, bands), ids = shape_of(near), long_enough(texts)
        ranges = 1 + len(ids) // _KEYS_IN_A_RANGE
        made = [_task(_sketch, results=1 + bands * ranges).remote(block, near, ranges) for block in _blocks(texts)]
        met = [
            [_task(_shared).remote(*(block[1 + band * ranges + part] for block in made)) for part in range(ranges)]
            for band in range(bands)
        ]
        marks = _results([block[0] for block in made])
        self.traffic.texts += len(texts)
        self.traffic.keys += len(ids) * bands * ids.itemsize
        self.traffic.back += sum(each.nbytes for each in marks)

        def keyed(band: int) -> tuple[np.ndarray, np.ndarray]:
            found = _results(met[band])
            places, keys = (np.concatenate(each) for each in zip(*found, strict=True))
            self.traffic.back += places.nbytes + keys.nbytes
            return ids[places], keys

        try:
            yield Sketches(texts, bands, rows, np.concatenate(marks), keyed)
        finally:
            for refs in met:
                for ref in refs:
                    ray.cancel(ref, force=False)


def _blocks(texts: pl.Series) -> list[pl.Series]:
    return [texts[start : start + _TEXTS_IN_A_BLOCK] for start in range(0, len(texts), _TEXTS_IN_A_BLOCK)] or [texts]


# --- what a machine does --------------------------------------------------------------------------------------------


def _read(file: File, layout: Layout) -> Raw:
    with tempfile.TemporaryDirectory(prefix="tagsmith-", ignore_cleanup_errors=True) as scratch:
        return read_in_turn([file], layout, Path(scratch))[0]


def _sketch(texts: pl.Series, near: float, ranges: int) -> Any:
    """The marks of a block, then for each band and each range of keys the places in the block and their keys."""
    keys_BM, marks = sketch(texts, near=near)
    results: list[Any] = [marks]
    for keys_M in keys_BM:
        part_M = (keys_M >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)
        for part in range(ranges):
            mine = np.flatnonzero(part_M == part) if ranges > 1 else None
            results.append((len(keys_M), mine, keys_M if mine is None else keys_M[mine]))
    return tuple(results)


def _shared(*blocks: tuple[int, np.ndarray | None, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Places among all texts that are long enough, in order, and their keys: those that another text has too."""
    ends = np.cumsum([count for count, _, _ in blocks])
    places = np.concatenate(
        [
            (np.arange(count) if mine is None else mine) + (end - count)
            for (count, mine, _), end in zip(blocks, ends, strict=True)
        ]
    )
    keys = np.concatenate([keys for _, _, keys in blocks])
    members = np.sort(shared_keys(keys)[0])
    return places[members], keys[members]


# --- tasks ----------------------------------------------------------------------------------------------------------


def _task(work: Callable[..., Any], *, results: int = 1) -> Any:
    import ray

    return ray.remote(work).options(num_cpus=1, num_returns=results)


def _all_of(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    return _results([_task(work).remote(*each) for each in arguments])


def _results(refs: Sequence[Any]) -> list[Any]:
    """What tasks gave; an error that the user can mend as it was raised there."""
    import ray

    try:
        return ray.get(list(refs))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, TagsmithError):
            raise type(cause)(str(cause)) from None
        if isinstance(error, ray.exceptions.RayTaskError):
            raise
        raise ResourceError(
            f"A machine of the cluster was lost while rows were prepared, again and again: {first_line(error)} "
            "Expected machines that stay, with memory for their part of the rows; take larger ones, or smaller files."
        ) from error
