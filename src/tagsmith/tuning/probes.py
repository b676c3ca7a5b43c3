"""Linear probes: logistic regression on frozen, pooled states, its penalty chosen by cross-validation.

Axes: N texts, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.errors import SettingError
from tagsmith.events import listened, silent
from tagsmith.model.activations import FrozenBlocks, States, frozen_states
from tagsmith.model.classifier import Classifier, pool_states
from tagsmith.model.heads import LinearHead
from tagsmith.tuning.learner import Part
from tagsmith.tuning.losses import summed_loss

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Penalties that cross-validation chooses from: `strength / 2 |W|^2` beside the loss summed over the rows, on states of
unit variance. The strongest first: a weaker one must do better."""

FOLDS, MOST_STEPS, EARLY_STEPS = 3, 60, 15
STILL = 0.01
"""A feature that varies less than this share of the median one is scaled as if it did vary so much: some encoders have
features that never vary (MiniLM-L6 has one), and a head that holds weights of thousands for them is thrown off as soon
as tuning moves them."""

_SMALL = 2**23
"""Products up to which one thread fits a probe: a second one gains nothing, and on a busy machine they wait for one
another, 40 times as long in one measurement."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe: `weight_CD` and `bias_C` (None where the head has none) act on states as they are."""

    weight_CD: Tensor
    bias_C: Tensor | None
    strength: float

    def logits(self, pooled_ND: Tensor) -> Tensor:
        """Logits `(N, C)`."""
        return torch.nn.functional.linear(pooled_ND, self.weight_CD, self.bias_C)


def fit_head(
    head: nn.Module, pooled_ND: Tensor, part: Part, *, seed: int, steps: int, class_weights_C: Tensor | None
) -> Probe:
    """Set a head to the probe of what it sees of a part, whose penalty is chosen by cross-validation over its groups.

    SettingError when it is not linear.
    """
    if not isinstance(head, LinearHead):
        raise SettingError(
            "tuning.start is 'probe', but the head is not linear (model.head = 'mlp'). "
            "Take a linear head, or tuning.start = 'random'."
        )
    score, truth = head.score, torch.from_numpy(part.truth)
    groups = np.arange(len(truth)) if part.groups is None else part.groups
    options: dict[str, Any] = {"classes": score.out_features, "bias": score.bias is not None}
    strength, _ = choose_strength(pooled_ND, truth, groups, seed=seed, **options)
    probe = fit_probe(pooled_ND, truth, strength=strength, class_weights_C=class_weights_C, steps=steps, **options)
    with torch.no_grad():
        score.weight.copy_(probe.weight_CD)
        if probe.bias_C is not None:
            score.bias.copy_(probe.bias_C)
    return probe


def seen_by_head(
    classifier: Classifier, part: Part, states: States | None, *, start: int | None, dtype: torch.dtype
) -> Tensor:
    """What the head sees of the texts of a part `(N, D)`; the states that enter block `start` are used if at hand."""
    classifier.eval()
    depth = classifier.backbone.depth
    if states is None or not start:
        frozen = FrozenBlocks(classifier.backbone, stop=depth, dtype=dtype)
        states, start = listened(frozen_states(frozen, part.tokens), silent), depth
    return torch.from_numpy(pool_states(classifier, states, start=start))


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

    Features are scaled to unit variance, but for those that hardly vary, and not centred: the head it becomes may have
    no bias.
    """
    with few_threads(pooled_ND, classes=classes):
        return _fitted_probe(
            pooled_ND,
            truth,
            classes=classes,
            strength=strength,
            bias=bias,
            class_weights_C=class_weights_C,
            steps=steps,
        )


def _fitted_probe(
    pooled_ND: Tensor,
    truth: Tensor,
    *,
    classes: int,
    strength: float,
    bias: bool,
    class_weights_C: Tensor | None,
    steps: int,
) -> Probe:
    spread_D = pooled_ND.std(dim=0)
    scale_D = spread_D.clamp(min=max(1e-6, STILL * float(spread_D.median())))
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


@contextmanager
def few_threads(pooled_ND: Tensor, *, classes: int) -> Iterator[None]:
    """One thread for probes on few rows, as many as before afterwards."""
    cores = torch.get_num_threads()
    try:
        if pooled_ND.numel() * classes < _SMALL:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(cores)


def choose_strength(
    pooled_ND: Tensor, truth: Tensor, groups: np.ndarray, *, classes: int, seed: int, bias: bool = False
) -> tuple[float, dict[float, float]]:
    """The strength with the least loss over folds that keep groups whole, and the mean loss of each that was tried.

    Weaker ones are not tried once the loss rises.
    """
    with few_threads(pooled_ND, classes=classes):
        losses = _losses(pooled_ND, truth, _folds(groups, seed=seed), classes=classes, bias=bias)
    return min(losses, key=lambda strength: losses[strength]), losses


def _losses(pooled_ND: Tensor, truth: Tensor, folds_N: np.ndarray, *, classes: int, bias: bool) -> dict[float, float]:
    losses: dict[float, float] = {}
    for strength in sorted(STRENGTHS, reverse=True):
        total = 0.0
        for fold in range(FOLDS):
            held = torch.from_numpy(folds_N == fold)
            probe = fit_probe(pooled_ND[~held], truth[~held], classes=classes, strength=strength, bias=bias)
            total += summed_loss(probe.logits(pooled_ND[held]), truth[held], class_weights_C=None).item()
        losses[strength] = total / len(truth)
        if losses[strength] > min(losses.values()):
            break
    return losses


def _folds(groups: np.ndarray, *, seed: int) -> np.ndarray:
    """The fold of each row `(N,)`; rows of one group share one."""
    distinct, of_row = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(distinct)) % FOLDS)[of_row]
