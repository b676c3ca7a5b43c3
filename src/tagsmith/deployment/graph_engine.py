"""An engine around a graph that some runtime computes: rectangles of like lengths in, logits out.

Axes: N texts, P pieces, B texts of a batch, L positions, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from tagsmith.data.batching import length_sorted
from tagsmith.data.encoding import Tokens, mean_of_pieces
from tagsmith.deployment.engine import Answer, answers
from tagsmith.deployment.recipe import Recipe
from tagsmith.model.decision import Rule

Rectangle = tuple[np.ndarray, np.ndarray]
"""Token ids `(B, L)` int64, padded on the right, and lengths `(B,)` int64."""
Run = Callable[[Iterable[Rectangle]], Iterator[np.ndarray]]
"""Gives logits `(B, C)` for each rectangle, in order."""


class GraphEngine:
    """A bundle's recipe around a runtime; padding is left to masks, so that neighbours change nothing."""

    def __init__(self, name: str, recipe: Recipe, run: Run) -> None:
        self.name = name
        self.labels = recipe.labels
        self.tokens_per_batch = recipe.tokens_per_batch
        self._recipe = recipe
        self._run = run

    @property
    def thresholds(self) -> Rule:
        """What `Engine.thresholds` says."""
        return self._recipe.thresholds

    @property
    def sureties(self) -> np.ndarray | None:
        """From which surety labels `(C,)` are answered; what is proven of that is so for the reference engine."""
        return self._recipe.sureties

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.labels.multi_label

    @property
    def max_tokens(self) -> int:
        """How many tokens are read of a text."""
        return self._recipe.encoder.max_tokens

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """The tokens of cleaned texts, none for one without any letter or sign."""
        return self._recipe.encode(texts, pairs)

    def logits_of(self, tokens: Tokens) -> np.ndarray:
        """Logits `(N, C)`; NaN for a text without tokens. Equal texts are computed once."""
        mixer = self._recipe.mixer
        return self._computed(tokens) if mixer is None else mixer.logits(tokens, self._computed)

    def _computed(self, tokens: Tokens) -> np.ndarray:
        """Logits of the graph `(N, C)` float32."""
        firsts, twins = tokens.distinct()
        lengths = tokens.lengths[firsts]
        answerable = np.flatnonzero(lengths)
        batches = [
            answerable[places] for places in length_sorted(lengths[answerable], tokens_per_batch=self.tokens_per_batch)
        ]
        logits_MC = np.full((len(firsts), len(self.labels)), np.nan, dtype=np.float32)
        computed = self._run(tokens.padded(firsts[places]) for places in batches)
        for places, logits_BC in zip(batches, computed, strict=True):
            logits_MC[places] = logits_BC
        return mean_of_pieces(logits_MC[twins], tokens.rows, texts=len(tokens))

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities `(N, C)` float64."""
        return self._recipe.calibration.probabilities(logits)

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
        """An answer for each text, in order."""
        return answers(self, texts, pairs)
