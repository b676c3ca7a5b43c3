"""What probes on frozen states say of rows that they did not see: for audits, learning curves, and stacks.

Axes: N rows, D width, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tagsmith.tuning.probes import choose_strength, few_threads, fit_probe

FOLDS = 5
STEPS = 40
_MOST_ROWS_TO_CHOOSE = 1000


@dataclass(frozen=True)
class CrossFit:
    """Rows with their pooled states `(N, D)`, their truth `(N,)` or `(N, C)` bool, and the fold `(N,)` of each.

    Rows of one group share a fold.
    """

    pooled_ND: Tensor
    truth: Tensor
    folds_N: np.ndarray
    classes: int
    strength: float

    @classmethod
    def of(
        cls,
        pooled_ND: np.ndarray,
        truth: np.ndarray,
        groups: np.ndarray,
        *,
        classes: int,
        seed: int,
        folds: int = FOLDS,
    ) -> CrossFit:
        """Rows dealt out into folds by whole groups; the penalty of the probes is chosen on a sample of them."""
        pooled, wanted = torch.from_numpy(np.ascontiguousarray(pooled_ND)).float(), torch.from_numpy(truth)
        distinct, group_N = np.unique(groups, return_inverse=True)
        folds_N = (np.random.default_rng(seed).permutation(len(distinct)) % folds)[group_N]
        some = np.sort(np.random.default_rng(seed).permutation(len(truth))[:_MOST_ROWS_TO_CHOOSE])
        strength, _ = choose_strength(pooled[some], wanted[some], groups[some], classes=classes, seed=seed, bias=True)
        return cls(pooled, wanted, folds_N, classes, strength)

    def probabilities(self, kept_N: np.ndarray | None = None) -> np.ndarray:
        """Probabilities `(N, C)` of each row by a probe that saw no row of its fold, and only those `kept_N` bool."""
        learnt_N = np.ones(len(self.folds_N), dtype=bool) if kept_N is None else kept_N
        with few_threads(self.pooled_ND, classes=self.classes):
            return self._crossed(learnt_N)

    def _crossed(self, learnt_N: np.ndarray) -> np.ndarray:
        probs_NC = np.zeros((len(self.folds_N), self.classes))
        for fold in range(int(self.folds_N.max()) + 1):
            held = torch.from_numpy(self.folds_N == fold)
            learnt = torch.from_numpy(learnt_N) & ~held
            probe = fit_probe(
                self.pooled_ND[learnt],
                self.truth[learnt],
                classes=self.classes,
                strength=self.strength,
                bias=True,
                steps=STEPS,
            )
            logits_NC = probe.logits(self.pooled_ND[held]).double()
            chances_NC = logits_NC.sigmoid() if self.truth.ndim > 1 else logits_NC.softmax(dim=1)
            probs_NC[held.numpy()] = chances_NC.numpy()
        return probs_NC
