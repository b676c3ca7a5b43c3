"""Which part of a long text to read: each policy is tried on frozen states, and the validation rows decide.

Axes: N texts, P pieces, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch

from tagsmith.data.batching import length_sorted
from tagsmith.data.encoding import LongTexts, Tokens, mean_of_pieces
from tagsmith.events import Listener, listened, silent
from tagsmith.model.activations import FrozenBlocks, frozen_states
from tagsmith.model.pooling import pool

if TYPE_CHECKING:
    from tagsmith.model.classifier import Classifier

TRAINING_TEXTS, VALIDATION_TEXTS = 1500, 1000
"""Texts that each policy is tried on, at most; drawn once, the same for all of them."""

POLICIES: tuple[LongTexts, ...] = get_args(LongTexts)
"""Cheapest first: the first three cost the same, windows several times as much."""


@dataclass(frozen=True)
class Sample:
    """Texts and what they are: ids `(N,)`, or `(N, C)` bool where a text may have several labels."""

    texts: Sequence[str]
    truth: np.ndarray

    def drawn(self, most: int, *, seed: int) -> Sample:
        """At most so many of them, in their order."""
        if len(self.texts) <= most:
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.texts), size=most, replace=False))
        return Sample([self.texts[i] for i in chosen], self.truth[chosen])


@dataclass(frozen=True)
class Choice:
    """The policy that was chosen, and the validation log loss of a probe under each that was tried."""

    policy: LongTexts
    losses: Mapping[str, float]


def choose_long_texts(
    classifier: Classifier,
    train: Sample,
    validation: Sample,
    *,
    dtype: torch.dtype,
    seed: int,
    listen: Listener = silent,
) -> Choice:
    """The policy under which a linear probe on the frozen backbone reads the validation texts best.

    A dearer policy must win by more than half a standard error of the paired losses (STATISTICS.md 17). Where no text
    is longer than the limit there is nothing to choose.
    """
    train, validation = train.drawn(TRAINING_TEXTS, seed=seed), validation.drawn(VALIDATION_TEXTS, seed=seed)
    texts = [*train.texts, *validation.texts]
    if not classifier.encoder.reading("head").encode(texts).truncated.any():
        return Choice("head", {})
    frozen = FrozenBlocks(classifier.backbone, stop=classifier.backbone.depth, dtype=dtype)
    losses_by_policy = {}
    for policy in POLICIES:
        pooled_ND = _pooled(classifier, frozen, classifier.encoder.reading(policy).encode(texts), listen)
        cut = len(train.texts)
        losses_by_policy[policy] = _probe_losses(pooled_ND[:cut], train.truth, pooled_ND[cut:], validation.truth)
    chosen = POLICIES[0]
    for policy in POLICIES[1:]:
        gains_N = losses_by_policy[chosen] - losses_by_policy[policy]
        if gains_N.mean() > 0.5 * gains_N.std(ddof=1) / np.sqrt(len(gains_N)):
            chosen = policy
    return Choice(chosen, {policy: float(losses_N.mean()) for policy, losses_N in losses_by_policy.items()})


def _pooled(classifier: Classifier, frozen: FrozenBlocks, tokens: Tokens, listen: Listener) -> np.ndarray:
    """What a head would see of each text `(N, D)`: the pooled states, averaged over its pieces."""
    states = listened(frozen_states(frozen, tokens), listen)
    pooled_PD = np.zeros((len(tokens.rows), classifier.backbone.width), dtype=np.float32)
    with torch.inference_mode():
        for pieces in length_sorted(tokens.lengths, tokens_per_batch=4096):
            hidden_BLD, lengths_B = states.padded(pieces)
            normed_BLD = classifier.backbone.final_norm(hidden_BLD)
            pooled_PD[pieces] = pool(normed_BLD, lengths_B, how=classifier.pooling).float().numpy()
    return mean_of_pieces(pooled_PD, tokens.rows, texts=len(tokens))


def _probe_losses(
    train_ND: np.ndarray, truth: np.ndarray, validation_ND: np.ndarray, answers: np.ndarray
) -> np.ndarray:
    """The log loss of each validation text `(N,)` under a regularised logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_ND)
    train_ND, validation_ND = scaler.transform(train_ND), scaler.transform(validation_ND)
    columns = truth.T if truth.ndim == 2 else [truth]
    right_columns = answers.T if truth.ndim == 2 else [answers]
    losses = []
    for column, right in zip(columns, right_columns, strict=True):
        if len(np.unique(column)) < 2:  # a label that none of the drawn texts has tells the policies nothing
            continue
        # Standardised states have as many directions as width: this strength keeps a probe on few rows from memorising.
        probe = LogisticRegression(C=0.01, max_iter=500).fit(train_ND, column)
        known = np.isin(right, probe.classes_)
        places = np.searchsorted(probe.classes_, np.where(known, right, probe.classes_[0]))
        probs_N = probe.predict_proba(validation_ND)[np.arange(len(right)), places]
        losses.append(np.where(known, -np.log(np.clip(probs_N, 1e-12, 1)), 0.0))
    return np.mean(losses, axis=0)
