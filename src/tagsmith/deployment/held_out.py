"""Held-out rows by which an export is judged: validation and calibration rows, and new ones; never test rows.

A bundle holds no texts, but it knows again those that it has seen: the hash of each folded text and its part. So rows
come from the source that the bundle was trained on, or from any other; where there is none, texts made of words alone
show that two engines compute the same, and nothing about how often a label changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.assets import dataset_file
from tagsmith.catalogue import ASSETS
from tagsmith.config import Config
from tagsmith.data.column_cleaning import clean_table
from tagsmith.data.earlier import NEW, SPLITS, Earlier
from tagsmith.data.folding import fold_all, hash_texts
from tagsmith.data.readers import is_url, read_as, redacted
from tagsmith.data.table import Table
from tagsmith.deployment.baselines import read_baselines
from tagsmith.deployment.recipe import labels_of
from tagsmith.deployment.saving import PROBES
from tagsmith.errors import AssetError, DataError
from tagsmith.events import Listener, silent

HELD_OUT = (1, 2, NEW)
"""The parts of a bundle's rows that count: validation, calibration, and none. The step was chosen on validation rows:
scores on them are too good, and two engines no more alike."""
MADE_TEXTS = 64
_MOST_WORDS = 24


@dataclass(frozen=True)
class HeldOut:
    """Texts `(N,)`, each once, and their labels: ids `(N,)` or sets `(N, C)`; None where the texts were made.

    `told` says in words where they come from, and `why` they had to be made.
    """

    texts: tuple[str, ...]
    truth: np.ndarray | None
    told: str
    why: str = ""


def held_out_rows(folder: Path, settings: Mapping[str, Any], rows: str | None, *, listen: Listener = silent) -> HeldOut:
    """The held-out rows in the source `rows`, or in the one that the bundle was trained on; else made texts.

    DataError where `rows` is given and holds none.
    """
    source = rows or settings.get("data", {}).get("source")
    if source is None:
        return _made(folder, settings, "the bundle names no source that its rows could be read from again")
    try:
        table = _read(source, settings, listen)
    except (DataError, AssetError) as error:
        if rows is not None:
            raise
        return _made(folder, settings, str(error))
    held = _kept(folder, table)
    if not len(held):
        if rows is not None:
            raise DataError(
                f"'{redacted(source)}' has {len(table)} rows, and each of them was trained or tested on. "
                "Expected rows that were held out, or that it never saw; give others with --rows."
            )
        return _made(folder, settings, f"'{redacted(source)}' holds no held-out rows of this bundle")
    labels = labels_of(settings)
    truth = labels.encode_sets(held.label_sets) if labels.multi_label else labels.encode(held.labels)
    return HeldOut(tuple(held.texts), truth, f"{len(held):,} held-out rows of '{redacted(source)}'")


def _read(source: str, settings: Mapping[str, Any], listen: Listener) -> Table:
    config = Config.of(settings["config"]).data
    asset = ASSETS.get(source)
    known = asset is not None and asset.kind == "dataset" and not Path(source).exists()
    path: str | Path = dataset_file(source, listen=listen).path if known else source
    if not is_url(source):
        config = config.model_copy(update={"query": None})
    return clean_table(read_as(path, config), config.clean)


def _kept(folder: Path, table: Table) -> Table:
    """The rows that were held out, each text once."""
    hashes = hash_texts(fold_all(table.frame["text"]))
    parts = np.full(len(table), NEW)
    if (folder / SPLITS).is_file():
        earlier = Earlier.read(folder)
        places = np.minimum(np.searchsorted(earlier.hashes, hashes), max(len(earlier.hashes) - 1, 0))
        seen = earlier.hashes[places] == hashes if len(earlier.hashes) else np.zeros(len(hashes), dtype=bool)
        parts[seen] = earlier.parts[places[seen]]
    _, first = np.unique(hashes, return_index=True)
    once = np.zeros(len(table), dtype=bool)
    once[first] = True
    return table.take(np.flatnonzero(once & np.isin(parts, HELD_OUT)))


def _made(folder: Path, settings: Mapping[str, Any], why: str) -> HeldOut:
    """The probe texts, and others of words of the TF-IDF vocabulary put together by chance."""
    words = sorted(read_baselines(folder).lexical.words) or list(" ".join(PROBES).split())
    random = np.random.default_rng(settings.get("config", {}).get("seed", 0))
    sizes = random.integers(1, _MOST_WORDS, size=MADE_TEXTS)
    texts = [" ".join(words[i] for i in random.integers(0, len(words), size=size)) for size in sizes]
    return HeldOut((*PROBES, *texts), None, f"{len(PROBES) + len(texts)} texts made of words", why)
