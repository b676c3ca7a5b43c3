"""A hybrid in any engine: what TF-IDF says travels with the tokens of a text, and is mixed with what the LLM says.

The last piece of each text holds the scores of TF-IDF instead of tokens, one number for each label, as the bits of a
float32; a text without any letter or sign has none. So nothing between a text and its engine must know of hybrids.
Where a cascade does not ask the LLM about a text, its other pieces are empty.

Axes: N texts, P pieces, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.data.encoding import Tokens
from tagsmith.deployment.baselines import read_baselines
from tagsmith.model.hybrid import Mixing, lexical_logits
from tagsmith.model.lexical import Lexical


@dataclass(frozen=True)
class Mixer:
    """TF-IDF of a bundle, and how its scores are mixed with those of the LLM."""

    lexical: Lexical
    mixing: Mixing

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any]) -> Mixer | None:
        """That of a bundle; None where the LLM answers alone."""
        plain = settings.get("hybrid")  # bundles of earlier releases have none
        return None if plain is None else cls(read_baselines(folder).lexical, Mixing.from_dict(plain))

    def encode(self, tokens: Tokens, cleaned: Sequence[str]) -> Tokens:
        """The tokens of cleaned texts with the scores of TF-IDF behind them."""
        if not len(tokens):
            return tokens
        scores_NC = lexical_logits(self.lexical, cleaned)
        blank_N = tokens.sizes == 0
        asked = (
            tokens.emptied(np.flatnonzero(self.mixing.is_sure(scores_NC))) if self.mixing.sure is not None else tokens
        )
        scores = Tokens(
            ids=np.ascontiguousarray(scores_NC[~blank_N]).view(np.int32).ravel(),
            offsets=np.concatenate([[0], np.cumsum(np.where(blank_N, 0, scores_NC.shape[1]))]).astype(np.int64),
            rows=np.arange(len(tokens), dtype=np.int64),
            truncated=np.zeros(len(tokens), dtype=bool),
        )
        return _side_by_side(asked, scores)

    def logits(self, tokens: Tokens, llm: Callable[[Tokens], np.ndarray]) -> np.ndarray:
        """Logits `(N, C)` float64 of what `encode` gave; `llm` gives those of tokens alone. NaN for blank texts."""
        neural, scores_NC = self.apart(tokens)
        asked = np.flatnonzero(neural.sizes)
        llm_NC = np.zeros(scores_NC.shape, dtype=np.float32)
        if len(asked):
            llm_NC[asked] = llm(neural.of_texts(asked))
        return self.mixing.mixed(llm_NC, scores_NC)

    def apart(self, tokens: Tokens) -> tuple[Tokens, np.ndarray]:
        """The tokens alone, and the scores of TF-IDF `(N, C)`, NaN for blank texts."""
        lasts = np.searchsorted(tokens.rows, np.arange(len(tokens)), side="right") - 1
        classes = self.lexical.bias.shape[0]
        scores_NC = np.full((len(tokens), classes), np.nan, dtype=np.float32)
        answered = lasts[tokens.lengths[lasts] > 0]
        bits = tokens.ids[tokens.places(answered)].astype(np.int32)
        scores_NC[tokens.rows[answered]] = bits.view(np.float32).reshape(-1, classes)
        kept = np.ones(len(tokens.rows), dtype=bool)
        kept[lasts] = False
        pieces = np.flatnonzero(kept)
        offsets = np.concatenate([[0], np.cumsum(tokens.lengths[pieces])]).astype(np.int64)
        neural = Tokens(tokens.ids[tokens.places(pieces)], offsets, tokens.rows[pieces], tokens.truncated)
        return neural, scores_NC


def _side_by_side(first: Tokens, second: Tokens) -> Tokens:
    """The pieces of each text in `first`, then those in `second`."""
    both = Tokens.joined([first, second])
    rows = np.concatenate([first.rows, second.rows])
    pieces = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(both.lengths[pieces])]).astype(np.int64)
    return Tokens(both.ids[both.places(pieces)], offsets, rows[pieces], first.truncated)
