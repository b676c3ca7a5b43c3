"""The words that mattered: an answer's log-odds, less what they are without those words.

Any classifier can be asked: all that is needed is a function from texts to probabilities. Axes: N texts, C labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

MOST_QUESTIONS = 64
"""Shortened texts that are asked about for each text, unless the caller says otherwise."""
_PARTS = 8
"""Into how many parts the span that mattered most is divided."""
_SIDES = re.compile("[^\x1c-\x1f]+")  # \x1e stands between the two texts of a pair, and is no word of either
_SPACE = " \t\r\n"
WRITTEN_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters that are words of their own, as the inside of a character class."""
_WORD = re.compile(rf"[{WRITTEN_WITHOUT_SPACES}]|[^\s{WRITTEN_WITHOUT_SPACES}]+")
_LONGEST_WORD = 24
_SUREST = 1e-9


@dataclass(frozen=True)
class Span:
    """`text[start:end]`, one word or several, and its `weight`: by how much it raises the log-odds of the answer."""

    start: int
    end: int
    weight: float


def explain(
    texts: Sequence[str],
    targets: Sequence[int],
    probabilities_of: Callable[[Sequence[str]], np.ndarray],
    *,
    most: int = MOST_QUESTIONS,
) -> list[tuple[Span, ...]]:
    """For each text the spans that cover its words, in order, with their weights for the label `targets (N,)`.

    `probabilities_of` gives probabilities `(N, C)`, NaN for an empty text. It is asked about each text and at most
    `most` shortened ones, those of all texts together, for it to batch. Where a text has more words than that,
    neighbours share a span, and those that mattered most are divided.
    """
    asking = [occlusion(text, target, most=most) for text, target in zip(texts, targets, strict=True)]
    found: list[tuple[Span, ...]] = [()] * len(texts)
    questions = {i: next(each) for i, each in enumerate(asking)}
    while questions:
        probs_NC = probabilities_of([text for asked in questions.values() for text in asked])
        start, further = 0, {}
        for i, asked in questions.items():
            try:
                further[i] = asking[i].send(probs_NC[start : start + len(asked)])
            except StopIteration as ended:
                found[i] = ended.value
            start += len(asked)
        questions = further
    return found


def occlusion(
    text: str, target: int, *, most: int = MOST_QUESTIONS
) -> Generator[list[str], np.ndarray, tuple[Span, ...]]:
    """The questions of one text: yields texts, is sent their probabilities `(N, C)`, and returns the spans.

    For callers that answer in their own time, as a server does.
    """
    words = words_of(text)
    groups = _in_parts(words, most if len(words) <= most else most // 2)
    probs_NC = yield [text, *(_without(text, group) for group in groups)]
    whole, *shortened = _log_odds(probs_NC, target).tolist()
    weights, left = [whole - odds for odds in shortened], most - len(groups)
    while left >= _PARTS and any(len(group) > 1 for group in groups):
        widest = max((i for i, group in enumerate(groups) if len(group) > 1), key=lambda i: abs(weights[i]))
        parts = _in_parts(groups[widest], _PARTS)
        probs_NC = yield [_without(text, part) for part in parts]
        groups[widest : widest + 1] = parts
        weights[widest : widest + 1] = (whole - _log_odds(probs_NC, target)).tolist()
        left -= len(parts)
    return tuple(Span(group[0][0], group[-1][1], weight) for group, weight in zip(groups, weights, strict=True))


def strongest(spans: Sequence[Span]) -> list[Span]:
    """The spans that mattered, those that speak for the answer most first."""
    return sorted(spans, key=lambda span: (-span.weight, span.start))


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end; of scripts without spaces, each sign, and of endless words, pieces."""
    return [
        piece
        for side in _SIDES.finditer(text)
        for found in _WORD.finditer(side[0])
        for piece in _pieces(text, side.start() + found.start(), side.start() + found.end())
    ]


def pieces_of(text: str, spans: Sequence[Span]) -> list[tuple[str, float]]:
    """The whole text cut at the spans, each piece with its weight; what lies between words has none."""
    pieces, at = [], 0
    for span in spans:
        pieces += [(text[at : span.start], 0.0), (text[span.start : span.end], span.weight)]
        at = span.end
    return [piece for piece in [*pieces, (text[at:], 0.0)] if piece[0]]


def scaled(spans: Sequence[Span]) -> list[Span]:
    """The same spans with weights from -1 to 1, 1 being the strongest; faint ones beside it stay faint."""
    most = max((abs(span.weight) for span in spans), default=0.0)
    return [replace(span, weight=span.weight / most if most else 0.0) for span in spans]


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A word, or where it is longer than any word is, pieces of it that part no letter from its accents."""
    while end - start > _LONGEST_WORD:
        cut = start + _LONGEST_WORD // 2
        while cut < end and unicodedata.combining(text[cut]):
            cut += 1
        yield start, cut
        start = cut
    if start < end:
        yield start, end


def _in_parts(words: Sequence[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    """Neighbouring words in at most `most` groups of nearly equal size."""
    count = min(len(words), max(most, 1))
    bounds = [round(i * len(words) / count) for i in range(count + 1)] if count else [0]
    return [list(words[low:high]) for low, high in pairwise(bounds)]


def _without(text: str, words: Sequence[tuple[int, int]]) -> str:
    """The text without neighbouring words and the space between them; what parts a pair stays."""
    start, end = words[0][0], words[-1][1]
    before, after = text[:start] + _SIDES.sub("", text[start:end]), text[end:]
    if not after.strip(_SPACE):
        return before.rstrip(_SPACE)
    return before + (after.lstrip(_SPACE) if not before or before[-1].isspace() else after)


def _log_odds(probs_NC: np.ndarray, target: int) -> np.ndarray:
    """Log-odds `(N,)` of a label; where nothing is left to answer on, those of a label drawn by lot."""
    probs_N = np.where(np.isnan(probs_NC[:, target]), 1 / probs_NC.shape[1], probs_NC[:, target])
    probs_N = np.clip(probs_N, _SUREST, 1 - _SUREST)
    return np.log(probs_N) - np.log1p(-probs_N)
