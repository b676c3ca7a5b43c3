"""Which part of a long text to read: each policy is tried on frozen states, and the validation rows decide.

Axes: N texts, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from tagsmith.data.encoding import LongTexts
from tagsmith.events import Listener, listened, silent
from tagsmith.model.activations import FrozenBlocks, frozen_states
from tagsmith.model.classifier import Classifier, pool_states
from tagsmith.tuning.losses import row_losses
from tagsmith.tuning.probes import fit_probe

TRAINING_TEXTS, VALIDATION_TEXTS = 1500, 1000
"""Texts that each policy is tried on, at most; drawn once, the same for all of them."""

STRENGTH = 100.0
"""The probes' penalty: states have as many directions as width, and a probe on few rows must not memorise."""

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
        states = listened(frozen_states(frozen, classifier.encoder.reading(policy).encode(texts)), listen)
        pooled_ND = torch.from_numpy(pool_states(classifier, states, start=classifier.backbone.depth))
        losses_by_policy[policy] = _probe_losses(pooled_ND, train, validation, classes=len(classifier.labels))
    chosen = POLICIES[0]
    for policy in POLICIES[1:]:
        gains_N = losses_by_policy[chosen] - losses_by_policy[policy]
        if gains_N.mean() > 0.5 * gains_N.std(ddof=1) / np.sqrt(len(gains_N)):
            chosen = policy
    return Choice(chosen, {policy: float(losses_N.mean()) for policy, losses_N in losses_by_policy.items()})


def _probe_losses(pooled_ND: Tensor, train: Sample, validation: Sample, *, classes: int) -> np.ndarray:
    """The log loss of each validation text `(N,)` under a regularised linear probe."""
    truth, cut = torch.from_numpy(train.truth), len(train.texts)
    probe = fit_probe(pooled_ND[:cut], truth, classes=classes, strength=STRENGTH, bias=True)
    return row_losses(probe.logits(pooled_ND[cut:]), torch.from_numpy(validation.truth)).numpy()
