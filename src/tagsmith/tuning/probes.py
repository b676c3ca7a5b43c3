"""Linear probes: logistic regression on frozen, pooled states, its penalty chosen by cross-validation.

Axes: N texts, D width, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tagsmith.tuning.losses import summed_loss

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Penalties that cross-validation chooses from: `strength / 2 |W|^2` beside the loss summed over the rows, on states of
unit variance. The strongest first: a weaker one must do better."""

FOLDS, MOST_STEPS, EARLY_STEPS = 3, 60, 15


@dataclass(frozen=True)
class Probe:
    """A fitted probe: `weight_CD` and `bias_C` (None where the head has none) act on states as they are."""

    weight_CD: Tensor
    bias_C: Tensor | None
    strength: float

    def logits(self, pooled_ND: Tensor) -> Tensor:
        """Logits `(N, C)`."""
        return torch.nn.functional.linear(pooled_ND, self.weight_CD, self.bias_C)


def fit_probe(
    pooled_ND: Tensor,
    truth: Tensor,
    *,
    classes: int,
    strength: float,
    bias: bool = False,
    class_weights_C: Tensor | None = None,
    steps: int = MOST_STEPS,
) -> Probe:
    """The probe that minimises the loss plus an L2 penalty, by L-BFGS (Liu and Nocedal 1989) stopped after `steps`.

    Features are scaled to unit variance, not centred: the head it becomes may have no bias.
    """
    scale_D = pooled_ND.std(dim=0).clamp(min=1e-6)
    scaled_ND = pooled_ND / scale_D
    weight_CD = torch.zeros(classes, pooled_ND.shape[1], requires_grad=True)
    bias_C = torch.zeros(classes, requires_grad=True) if bias else None
    learning = [weight_CD] if bias_C is None else [weight_CD, bias_C]
    optimizer = torch.optim.LBFGS(learning, max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_NC = torch.nn.functional.linear(scaled_ND, weight_CD, bias_C)
        total = summed_loss(logits_NC, truth, class_weights_C=class_weights_C) + strength / 2 * weight_CD.square().sum()
        total = total / len(truth)
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return Probe(weight_CD.detach() / scale_D, None if bias_C is None else bias_C.detach(), strength)


def choose_strength(
    pooled_ND: Tensor, truth: Tensor, groups: np.ndarray, *, classes: int, seed: int, bias: bool = False
) -> tuple[float, dict[float, float]]:
    """The strength with the least loss over folds that keep groups whole, and the mean loss of each that was tried."""
    folds_N = _folds(groups, seed=seed)
    losses = {}
    for strength in sorted(STRENGTHS, reverse=True):
        total = 0.0
        for fold in range(FOLDS):
            held = torch.from_numpy(folds_N == fold)
            probe = fit_probe(pooled_ND[~held], truth[~held], classes=classes, strength=strength, bias=bias)
            total += summed_loss(probe.logits(pooled_ND[held]), truth[held], class_weights_C=None).item()
        losses[strength] = total / len(truth)
    return min(losses, key=lambda strength: losses[strength]), losses


def _folds(groups: np.ndarray, *, seed: int) -> np.ndarray:
    """The fold of each row `(N,)`; rows of one group share one."""
    distinct, of_row = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(distinct)) % FOLDS)[of_row]
