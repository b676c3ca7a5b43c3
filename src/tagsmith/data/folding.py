"""When two texts count as the same: case and white space folded; and a hash by which to know a text again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl


def fold(text: str) -> str:
    """The text in lower case, with each run of white space as one space and none at the ends."""
    return fold_all([text])[0]


def fold_all(texts: Sequence[str] | pl.Series) -> pl.Series:
    """`fold` for a column `(N,)`."""
    column = texts if isinstance(texts, pl.Series) else pl.Series(list(texts), dtype=pl.String)
    return column.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def distinct(texts: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The distinct texts in the order of their first row, and for each row the position of its text `(N,)`."""
    unique = texts.unique(maintain_order=True)
    numbers = pl.DataFrame({"text": unique, "id": np.arange(len(unique), dtype=np.int64)})
    joined = pl.DataFrame({"text": texts}).join(numbers, on="text", how="left", maintain_order="left")
    return unique, joined["id"].to_numpy()


def hash_texts(texts: pl.Series, *, salt: str = "") -> np.ndarray:
    """The first 8 bytes of the SHA-256 of `salt` and each text in UTF-8, as big-endian uint64 `(N,)`.

    The same on every machine and in every version, unlike the hashes of Python and Polars.
    """
    first, digests = hashlib.sha256(salt.encode()), bytearray()
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        for text in texts[start : start + _TEXTS_AT_ONCE].cast(pl.Binary).to_list():
            digest = first.copy()
            digest.update(text)
            digests += digest.digest()[:8]
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64)


_TEXTS_AT_ONCE = 100_000
