"""How long texts are in a backbone's tokens, and how well its tokenizer knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tagsmith.data.languages import WORD
from tagsmith.data.pairs import PAIR

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_UNKNOWN = 0.05
"""Above this share of unknown tokens a backbone is not eligible for a table."""
MOST_ROWS, MOST_CHARACTERS = 20_000, 5_000_000


@dataclass(frozen=True)
class TokenLengths:
    """Tokens of `rows` texts, special tokens counted: `median`, `p95`, `longest`, and the share above `max_tokens`.

    `per_word` are tokens per word (in scripts without spaces, per sign), `unknown` is the share of unknown tokens, both
    without special tokens.
    """

    rows: int
    median: float
    p95: float
    longest: int
    max_tokens: int
    cut: float
    per_word: float
    unknown: float

    def as_dict(self) -> dict[str, Any]:
        """The shape of `data.tokens` in report.json."""
        return asdict(self)


def measure_tokens(tokenizer: Tokenizer, texts: pl.Series, *, max_tokens: int) -> TokenLengths:
    """The whole lengths of evenly spaced texts, at most 20,000 and 5 million characters.

    `tokenizer` is set to read whole texts and to take special tokens as text, and stays so.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = spaced(texts, most_rows=MOST_ROWS, most_characters=MOST_CHARACTERS)
    sides = [text.split(PAIR, 1) for text in texts.to_list()]
    whole: Sequence[Any] = [tuple(side) if len(side) == 2 else side[0] for side in sides]
    unknown, lengths, strange = _unknown_id(tokenizer), [], 0
    for encoding in tokenizer.encode_batch(whole, add_special_tokens=False):
        lengths.append(len(encoding.ids))
        strange += encoding.ids.count(unknown) if unknown is not None else 0
    own_N, total = np.array(lengths, dtype=np.int64), max(1, sum(lengths))
    added = np.array([tokenizer.num_special_tokens_to_add(is_pair=len(side) == 2) for side in sides], dtype=np.int64)
    words = int(texts.str.count_matches(WORD).sum() or 0)
    return TokenLengths(
        rows=len(texts),
        median=float(np.median(own_N + added)) if len(texts) else 0.0,
        p95=float(np.quantile(own_N + added, 0.95)) if len(texts) else 0.0,
        longest=int((own_N + added).max(initial=0)),
        max_tokens=max_tokens,
        cut=float((own_N + added > max_tokens).mean()) if len(texts) else 0.0,
        per_word=sum(lengths) / max(1, words),
        unknown=strange / total,
    )


def spaced(texts: pl.Series, *, most_rows: int, most_characters: int) -> pl.Series:
    """Every k-th text, with the least k that keeps within both limits."""
    characters = int(texts.str.len_chars().sum() or 0)
    return texts.gather_every(max(1, -(-len(texts) // most_rows), -(-characters // most_characters)))


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    token = getattr(tokenizer.model, "unk_token", None)
    return getattr(tokenizer.model, "unk_id", None) if token is None else tokenizer.token_to_id(token)
