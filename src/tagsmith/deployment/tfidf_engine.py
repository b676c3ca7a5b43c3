"""The TF-IDF baseline as an engine of its own; it needs numpy alone.

Its tokens are the known terms of a text, each as often as it occurs, behind one that stands for the bias: so a text
that holds no known term is still answered, and one without any letter or sign, which has no tokens, is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.data.cleaning import clean_texts
from tagsmith.data.encoding import Tokens
from tagsmith.deployment.baselines import read_baselines
from tagsmith.deployment.engine import Answer, answers
from tagsmith.deployment.recipe import cleaning_of, joined_pairs, labels_of, tokens_per_batch_of
from tagsmith.labels import Labels
from tagsmith.model.decision import Rule
from tagsmith.model.lexical import Lexical, Terms


class TfidfEngine:
    """TF-IDF with a linear model. Texts are cleaned by the steps of `cleaning` first."""

    name = "tfidf"
    max_tokens = None
    sureties = None  # what was proven of the LLM's answers does not hold for these

    def __init__(
        self,
        lexical: Lexical,
        labels: Labels,
        *,
        thresholds: Rule = None,
        cleaning: Sequence[str] = (),
        pairs: bool = False,
        tokens_per_batch: int = 512,
    ) -> None:
        self.labels = labels
        self.thresholds = thresholds
        self.cleaning = tuple(cleaning)
        self.tokens_per_batch = tokens_per_batch
        self._lexical = lexical
        self._pairs = pairs

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.labels.multi_label

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """The known terms of cleaned texts behind the bias; none for one without any letter or sign."""
        cleaned = clean_texts(joined_pairs(texts, pairs, known=self._pairs), self.cleaning)
        terms = self._lexical.known_terms(cleaned)
        found = np.repeat(terms.places, terms.times.astype(np.int64))
        counts = np.add.reduceat(np.append(terms.times, 0), terms.bounds[:-1]) if len(cleaned) else np.zeros(0)
        counts = np.where(np.diff(terms.bounds) > 0, counts, 0).astype(np.int64)
        starts = np.cumsum(counts) - counts
        tokens = Tokens(
            ids=np.insert(found, starts, self._bias).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(counts + 1)]).astype(np.int64),
            rows=np.arange(len(cleaned), dtype=np.int64),
            truncated=np.zeros(len(cleaned), dtype=bool),
        )
        blank = [i for i, text in enumerate(cleaned) if not text.strip()]
        return tokens.emptied(np.array(blank)) if blank else tokens

    def logits_of(self, tokens: Tokens) -> np.ndarray:
        """Scores `(N, C)` float64; NaN for a text without tokens."""
        kept = tokens.ids != self._bias
        rows = np.repeat(tokens.rows, tokens.lengths)[kept]
        pairs, times = np.unique(rows * (self._bias + 1) + tokens.ids[kept], return_counts=True)
        rows, places = np.divmod(pairs, self._bias + 1)
        bounds = np.searchsorted(rows, np.arange(len(tokens) + 1))
        scores_NC = self._lexical.scores_of(Terms(bounds, places.astype(np.int32), times.astype(np.float32)))
        scores_NC[tokens.sizes == 0] = np.nan
        return scores_NC

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities `(N, C)` float64."""
        return self._lexical.probabilities_of(logits)

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
        """An answer for each text, in order."""
        return answers(self, texts, pairs)

    @property
    def _bias(self) -> int:
        return len(self._lexical.terms)


def open_tfidf(
    folder: Path, settings: Mapping[str, Any], *, threads: int | None = None, device: str = "cpu"
) -> TfidfEngine:
    """The baseline of a bundle's folder; it computes on one thread of the processor, whatever is asked."""
    labels, baselines = labels_of(settings), read_baselines(folder)
    return TfidfEngine(
        baselines.lexical,
        labels,
        thresholds=baselines.thresholds.get("tfidf"),
        cleaning=cleaning_of(settings),
        pairs=bool(settings["model"].get("pairs")),
        tokens_per_batch=tokens_per_batch_of(settings),
    )
