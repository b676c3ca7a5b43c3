"""Texts that begin alike: where no token sees what follows it, their common beginning is computed once.

The states of a token under a causal mask depend on the tokens before it alone, so that texts of one beginning form a
tree whose every node needs linear layers, norms and MLPs once (a cache of prompts in a server does the same between
requests; Kwon et al. 2023, section 4.4). Of short questions a fifth to a third of the tokens is saved.

Axes: T tokens of texts in a row, U of them computed, B texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tagsmith.data.batching import length_sorted
from tagsmith.data.encoding import Tokens

_WIDEST_BAND = 1.4
"""How many times as long as the shortest the longest text of a batch may be: attention pads lines to the longest."""
_MOST_CELLS = 4
"""Cells of the rectangle around a batch, in budgets of computed tokens."""


@dataclass(frozen=True)
class Tree:
    """Texts in a row without what they repeat: `kept (U,)` tokens of the row `(T,)`, and where each of the T now is."""

    kept: np.ndarray
    nodes: np.ndarray


def tree_of(ids_T: np.ndarray, lengths_B: np.ndarray) -> Tree | None:
    """What texts in a row share with the one before them; None where that is nothing.

    Sorted texts share most with their neighbour.
    """
    ends_B = np.cumsum(lengths_B)
    starts_B = ends_B - lengths_B
    nodes_T = np.arange(len(ids_T))
    is_kept_T = np.ones(len(nodes_T), dtype=bool)
    for before, start, end in zip(starts_B[:-1], starts_B[1:], ends_B[1:], strict=True):
        common = _common(ids_T[before:start], ids_T[start:end])
        is_kept_T[start : start + common] = False
        nodes_T[start : start + common] = nodes_T[before : before + common]
    if is_kept_T.all():
        return None
    return Tree(np.flatnonzero(is_kept_T), (np.cumsum(is_kept_T) - 1)[nodes_T])


def alike(tokens: Tokens, pieces: np.ndarray, *, tokens_per_batch: int, shares: bool) -> list[np.ndarray]:
    """Batches of `pieces` of like lengths, longest first, of at most so many tokens each (or one piece).

    Where beginnings are computed once (`shares`), those that begin alike come together, and a token counts once.
    """
    lengths = tokens.lengths[pieces]
    if not shares:
        return [pieces[own] for own in length_sorted(lengths, tokens_per_batch=tokens_per_batch)]
    bands = np.ceil(np.log(np.maximum(lengths, 1)) / math.log(_WIDEST_BAND)).astype(int)
    texts = [tokens.ids[tokens.offsets[piece] : tokens.offsets[piece + 1]] for piece in pieces]
    keys = [text.astype(">u4").tobytes() for text in texts]
    order = sorted(range(len(pieces)), key=lambda i: (-bands[i], keys[i]))
    batches: list[list[int]] = []
    computed = widest = 0
    for place, i in enumerate(order):
        own = int(lengths[i])
        added = own - (_common(texts[order[place - 1]], texts[i]) if place else 0)
        longest = max(widest, own)
        cells = longest * (len(batches[-1]) + 1 if batches else 0)
        if not cells or computed + added > tokens_per_batch or cells > _MOST_CELLS * tokens_per_batch:
            batches.append([])
            computed, longest, added = 0, own, own
        batches[-1].append(i)
        computed, widest = computed + added, longest
    return [pieces[batch] for batch in batches]


def computed_tokens(tokens: Tokens, batches: list[np.ndarray], *, shares: bool) -> int:
    """Tokens that a pass over such batches computes."""
    computed = int(sum(tokens.lengths[batch].sum() for batch in batches))
    if not shares:
        return computed
    texts = [[tokens.ids[tokens.offsets[piece] : tokens.offsets[piece + 1]] for piece in batch] for batch in batches]
    return computed - sum(_common(one, other) for own in texts for one, other in pairwise(own))


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    shortest = min(len(one), len(other))
    differ = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differ[0]) if len(differ) else shortest
