"""A hybrid: the scores of an LLM and of TF-IDF as one classifier. `tuning.mixing` fits what stands here.

Axes: N texts, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tagsmith.model.lexical import Lexical

Hybrid = Literal["none", "average", "stacking", "cascade"]
"""How LLM and TF-IDF answer together; `none` is the LLM alone."""

WHOLE = {
    "none": "LLM",
    "average": "the average of TF-IDF and the LLM",
    "stacking": "the stack of TF-IDF and the LLM",
    "cascade": "the cascade of TF-IDF and the LLM",
}
"""What answers, by the kind of hybrid."""

LEAST = 1e-12
"""A probability that TF-IDF holds for impossible, such as that of a label it never saw."""


@dataclass(frozen=True)
class Mixing:
    """How the two come together: `llm` times the LLM's logits plus `tfidf` times the log-odds of TF-IDF.

    A `stacking` then has a weight for each label's two scores and an offset, `stack (3, C)`. A `cascade` answers by
    `alone` times TF-IDF where that is at least as sure as `sure`, and does not ask the LLM.
    """

    kind: Hybrid
    llm: float
    tfidf: float
    multi_label: bool = False
    stack: tuple[tuple[float, ...], ...] | None = None
    sure: float | None = None
    alone: float = 1.0

    @property
    def share(self) -> float:
        """The share of TF-IDF in the sum."""
        return self.tfidf / (self.llm + self.tfidf) if self.llm + self.tfidf else 0.0

    def is_sure(self, tfidf_NC: np.ndarray) -> np.ndarray:
        """Which texts `(N,)` bool TF-IDF answers by itself."""
        if self.sure is None:
            return np.zeros(len(tfidf_NC), dtype=bool)
        return sureness(tfidf_NC, multi_label=self.multi_label) >= self.sure

    def mixed(self, llm_NC: np.ndarray, tfidf_NC: np.ndarray) -> np.ndarray:
        """Logits `(N, C)` float64 of both; the LLM's are not looked at where TF-IDF is sure, and NaN stays NaN."""
        one_NC, two_NC = self.llm * llm_NC.astype(np.float64), self.tfidf * tfidf_NC.astype(np.float64)
        if self.stack is None:
            found_NC = one_NC + two_NC
        else:
            one_NC, two_NC = (each if self.multi_label else log_shares(each) for each in (one_NC, two_NC))
            first_C, second_C, offset_C = np.asarray(self.stack)
            found_NC = first_C * one_NC + second_C * two_NC + offset_C
        return np.where(self.is_sure(tfidf_NC)[:, None], self.alone * tfidf_NC.astype(np.float64), found_NC)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, from which `from_dict` makes the same."""
        return vars(self) | {"stack": None if self.stack is None else [list(each) for each in self.stack]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Mixing:
        """What `as_dict` gave."""
        found, stack = cls(**plain), plain["stack"]
        return found if stack is None else replace(found, stack=tuple(tuple(each) for each in stack))


def lexical_logits(lexical: Lexical, texts: Sequence[str]) -> np.ndarray:
    """The log of TF-IDF's probabilities `(N, C)`, log-odds where a text may have several labels.

    In float32, as they travel to the engine: a cascade must decide alike wherever it is asked.
    """
    probs_NC = np.clip(lexical.probabilities(texts), LEAST, 1 - LEAST)
    odds_NC = np.log(probs_NC) - np.log1p(-probs_NC) if lexical.multi_label else np.log(probs_NC)
    return odds_NC.astype(np.float32)


def log_shares(logits_NC: np.ndarray) -> np.ndarray:
    """The logarithm of softmax."""
    peaks_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return peaks_NC - np.log(np.exp(peaks_NC).sum(axis=1, keepdims=True))


def sureness(tfidf_NC: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """How sure TF-IDF is of each text `(N,)`: the lead of the likeliest label, or the least sure of several labels."""
    if multi_label:
        return np.abs(tfidf_NC).min(axis=1)
    if tfidf_NC.shape[1] < 2:
        return np.full(len(tfidf_NC), np.inf)
    ordered_NC = np.sort(tfidf_NC, axis=1)
    return ordered_NC[:, -1] - ordered_NC[:, -2]
