"""TF-IDF and a linear model with a Classifier's face: the baseline that an LLM has to beat.

A term is one number. A character n-gram packs up to five letters of 12 bits, so that equal numbers mean equal n-grams
(no hashing, no collisions); a word 1- or 2-gram carries the flag `_WORD` and two word numbers of 31 bits. Terms are
therefore counted by sorting arrays, and predicting needs numpy alone; `lexical_fitting` fits.

Axes: N rows, V terms of the vocabulary, C labels, M pairs of a row and a term in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

_MOST_LETTERS = 4094  # 12 bits, less 0 for "no letter" and `_RARE`
_RARE = 4095
_WORD = np.uint64(1 << 62)
_LENGTHS = (2, 3, 4, 5)
_CHUNK_LETTERS = 1_000_000
LETTERS_FOR_N_GRAMS = 10_000_000  # above it words alone: n-grams of 33M letters (IMDB) would take 2 GiB


@dataclass(frozen=True)
class Lexical:
    """A fitted TF-IDF classifier: plain arrays, no library.

    `letters` are the known letters, sorted by code point; `words` maps a word to its number; `terms (V,)` uint64 are
    sorted; `weights (V, C)` float32, `bias (C,)` float64, -inf for a label that training did not see. `scale`
    multiplies the scores before the softmax (1 for logistic regression). `regularisation` is the chosen C, None where
    there was nothing to fit. With `multi_label` the scores are log-odds of each label by itself.
    """

    letters: np.ndarray
    words: dict[str, int]
    terms: np.ndarray
    idf: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    scale: float = 1.0
    n_grams: bool = True
    regularisation: float | None = None
    multi_label: bool = False

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities `(N, C)` float64 of the labels; each row's answer is independent of its neighbours."""
        return self.probabilities_of(self.scores_of(self.known_terms(texts)))

    def known_terms(self, texts: Sequence[str]) -> Terms:
        """The terms of texts that stand in the vocabulary."""
        vectoriser = Vectoriser(self.letters, self.words, n_grams=self.n_grams)
        parts = [known_terms(vectoriser.count(chunk), self.terms) for chunk in chunks_of(texts)]
        return joined_terms(parts)

    def scores_of(self, terms: Terms) -> np.ndarray:
        """Scores `(N, C)` float64, of each label the higher the likelier."""
        scores_NC = np.tile(self.bias, (len(terms), 1))
        values = terms.values(self.terms, self.idf)
        for row, (start, end) in enumerate(zip(terms.bounds[:-1], terms.bounds[1:], strict=True)):
            scores_NC[row] += values[start:end] @ self.weights[terms.places[start:end]]
        return scores_NC

    def probabilities_of(self, scores_NC: np.ndarray) -> np.ndarray:
        """Probabilities `(N, C)` float64 of scores."""
        return np.exp(-np.logaddexp(0.0, -scores_NC)) if self.multi_label else softmax(scores_NC * self.scale)


@dataclass(frozen=True)
class Terms:
    """Known terms of texts: text r has those at `places[bounds[r]:bounds[r + 1]]` of the vocabulary, so many `times`.

    `bounds (N+1,)`, `places (M,)` int32, `times (M,)` float32.
    """

    bounds: np.ndarray
    places: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def values(self, terms: np.ndarray, idf: np.ndarray) -> np.ndarray:
        """TF-IDF values `(M,)` float32 with sublinear counts; a text's words and n-grams each of length 1."""
        if not len(self.places):
            return np.empty(0, dtype=np.float32)
        values = (1 + np.log(self.times)) * idf[self.places]
        rows = np.repeat(np.arange(len(self)), np.diff(self.bounds))
        blocks = 2 * rows + (terms[self.places] >= _WORD)
        lengths = np.sqrt(np.bincount(blocks, weights=values.astype(np.float64) ** 2, minlength=2 * len(self.bounds)))
        return (values / lengths[blocks]).astype(np.float32)


def joined_terms(parts: Sequence[Terms]) -> Terms:
    """The terms of texts one part after the other."""
    sizes = np.concatenate([np.empty(0, dtype=np.int64), *(np.diff(part.bounds) for part in parts)])
    return Terms(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([np.empty(0, dtype=np.int32), *(part.places for part in parts)]),
        np.concatenate([np.empty(0, dtype=np.float32), *(part.times for part in parts)]),
    )


@dataclass(frozen=True)
class Counts:
    """Which terms stand in which rows: row r has the terms `distinct[local[bounds[r]:bounds[r + 1]]]`."""

    bounds: np.ndarray
    local: np.ndarray
    times: np.ndarray
    distinct: np.ndarray


@dataclass(frozen=True)
class Vectoriser:
    """What counts the terms of texts: known letters and words, and whether n-grams of letters count."""

    letters: np.ndarray
    words: dict[str, int]
    n_grams: bool

    @classmethod
    def of(cls, texts: Sequence[str], *, least: int) -> Vectoriser:
        """The most frequent letters, and the words that stand in at least `least` texts."""
        seen, words, total = Counter[str](), Counter[str](), 0
        for text in texts:
            folded = _fold(text)
            total += len(folded)
            seen.update(folded)
            words.update(set(_split(folded)))
        common = [letter for letter, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:_MOST_LETTERS]]
        letters = np.array(sorted({ord(letter) for letter in common} | {32}), dtype=np.uint32)
        kept = sorted(word for word, rows in words.items() if rows >= least)
        return cls(letters, {word: i for i, word in enumerate(kept, start=1)}, total <= LETTERS_FOR_N_GRAMS)

    def count(self, texts: Sequence[str]) -> Counts:
        """All terms of texts, known or not."""
        folded = [_fold(text) for text in texts]
        rows, terms = self._words(folded)
        if self.n_grams:
            found = [(rows, terms), *self._n_grams(folded)]
            rows, terms = (np.concatenate(column) for column in zip(*found, strict=True))
        distinct, local = np.unique(terms, return_inverse=True)
        pairs, times = np.unique(rows * max(len(distinct), 1) + local, return_counts=True)
        rows, local = np.divmod(pairs, max(len(distinct), 1))
        bounds = np.searchsorted(rows, np.arange(len(texts) + 1))
        return Counts(bounds, local.astype(np.int32), times.astype(np.float32), distinct)

    def _words(self, folded: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        split = [_split(text) for text in folded]
        sizes = [len(words) for words in split]
        flat = (self.words.get(word, 0) for word in chain.from_iterable(split))
        words = np.fromiter(flat, dtype=np.uint64, count=sum(sizes))
        rows = np.repeat(np.arange(len(split)), sizes)
        first, second = words[:-1], words[1:]
        # A pair with a word below the least number of rows is itself below it, so nothing is lost by leaving it out.
        paired = (first > 0) & (second > 0) & (rows[:-1] == rows[1:])
        single = words > 0
        terms = np.concatenate([_WORD | words[single], _WORD | (second[paired] << np.uint64(31)) | first[paired]])
        return np.concatenate([rows[single], rows[:-1][paired]]), terms

    def _n_grams(self, folded: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and terms of each length: windows inside ` word `, as scikit-learn's `char_wb`."""
        padded = [f" {text} " for text in folded]
        points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        rows = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
        places = np.minimum(np.searchsorted(self.letters, points), len(self.letters) - 1)
        letters = np.where(self.letters[places] == points, places + 1, _RARE).astype(np.uint64)
        space = points == 32
        terms, inside = letters, np.ones(len(points), dtype=bool)
        for length in range(2, max(_LENGTHS) + 1):
            if len(points) < length:
                return
            terms = (terms[:-1] << np.uint64(12)) | letters[length - 1 :]
            inside = inside[:-1] & ~space[length - 2 : -1] if length > 2 else ~(space[:-1] & space[1:])
            yield rows[: len(terms)][inside], terms[inside]


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


_split = re.compile(r"\w+").findall


def chunks_of(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in parts of so many letters that counting one takes little memory."""
    letters, chunk = 0, list[str]()
    for text in texts:
        chunk.append(text)
        letters += len(text)
        if letters >= _CHUNK_LETTERS:
            yield chunk
            letters, chunk = 0, []
    if chunk:
        yield chunk


def known_terms(counts: Counts, terms: np.ndarray) -> Terms:
    """Those of the counted terms that stand in the vocabulary `terms (V,)`."""
    if not len(terms):
        nothing = np.empty(0, dtype=np.float32)
        return Terms(np.zeros_like(counts.bounds), nothing.astype(np.int32), nothing)
    places = np.minimum(np.searchsorted(terms, counts.distinct), len(terms) - 1)
    kept = (terms[places] == counts.distinct)[counts.local]
    rows = np.repeat(np.arange(len(counts.bounds) - 1), np.diff(counts.bounds))[kept]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(counts.bounds) - 1))])
    return Terms(bounds, places[counts.local[kept]].astype(np.int32), counts.times[kept])


def softmax(scores_NC: np.ndarray) -> np.ndarray:
    """Shares `(N, C)` of each row that sum to 1."""
    odds_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return odds_NC / odds_NC.sum(axis=1, keepdims=True)
