"""The loss of a step: the mean over its rows, however they were cut into micro-batches.

Axes: B rows of a micro-batch, N rows of a part, C labels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def summed_loss(
    logits_BC: Tensor,
    truth: Tensor,
    *,
    class_weights_C: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss summed over rows, in nats: cross-entropy, or its binary form where `truth` is `(B, C)` bool.

    Where `truth` is `(B, C)` float it has the share of each label, and the cross-entropy is that of these shares.

    The caller divides by the rows of the step, so that long texts weigh no more than short ones. `focal_gamma` above 0
    multiplies a loss by `(1 - p)^gamma`, p what the truth was given (Lin et al. 2017); `label_smoothing` spreads that
    share of the target over all labels (Szegedy et al. 2016).
    """
    summed = summed_binary_cross_entropy if truth.dtype is torch.bool else summed_cross_entropy
    return summed(
        logits_BC, truth, class_weights_C=class_weights_C, focal_gamma=focal_gamma, label_smoothing=label_smoothing
    )


def summed_cross_entropy(
    logits_BC: Tensor,
    truth: Tensor,
    *,
    class_weights_C: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy summed over rows, in nats, with label ids `(B,)` or the share of each label `(B, C)`.

    With class weights each row counts by that of its label.
    """
    options = {"weight": class_weights_C, "label_smoothing": label_smoothing}
    if not focal_gamma:
        return F.cross_entropy(logits_BC.float(), truth, reduction="sum", **options)
    losses_B = F.cross_entropy(logits_BC.float(), truth, reduction="none", **options)
    shares_BC = truth if truth.is_floating_point() else F.one_hot(truth, logits_BC.shape[1])
    certain_B = (logits_BC.float().softmax(1) * shares_BC).sum(1)
    return ((1 - certain_B) ** focal_gamma * losses_B).sum()


def summed_binary_cross_entropy(
    logits_BC: Tensor,
    truth_BC: Tensor,
    *,
    class_weights_C: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Binary cross-entropy summed over rows and averaged over labels, as Hugging Face's multi-label loss is.

    A weight multiplies the loss of the rows that have the label, not of those that lack it.
    """
    target_BC = truth_BC.float() * (1 - label_smoothing) + label_smoothing / 2
    losses_BC = F.binary_cross_entropy_with_logits(
        logits_BC.float(), target_BC, pos_weight=class_weights_C, reduction="none"
    )
    if focal_gamma:
        certain_BC = torch.where(truth_BC, logits_BC.float(), -logits_BC.float()).sigmoid()
        losses_BC = (1 - certain_BC) ** focal_gamma * losses_BC
    return losses_BC.sum() / truth_BC.shape[1]


def row_losses(logits_BC: Tensor, truth: Tensor) -> Tensor:
    """The plain loss of each row `(B,)`, in nats; of several labels a row, the mean over them."""
    if truth.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits_BC, truth.float(), reduction="none").mean(1)
    return F.cross_entropy(logits_BC, truth, reduction="none")


def right_rows(logits_BC: Tensor, truth: Tensor) -> Tensor:
    """Which rows are answered right `(B,)`: the likeliest label, or the exact set at even odds."""
    if truth.ndim == 2:
        return ((logits_BC > 0) == truth).all(dim=1)
    return logits_BC.argmax(1) == truth


def held_out_loss(truth: np.ndarray, probs: np.ndarray) -> float:
    """The mean loss of probabilities `(N, C)`, as `summed_loss` has it without weights."""
    if truth.ndim == 2:
        probs = np.where(truth, probs, 1 - probs)
        return float(-np.log(np.clip(probs, 1e-12, 1)).mean())
    return float(-np.log(np.clip(probs[np.arange(len(truth)), truth], 1e-12, 1)).mean())


def held_out_accuracy(truth: np.ndarray, probs: np.ndarray) -> float:
    """The share of rows answered right: the likeliest label, or the exact set at even odds."""
    if truth.ndim == 2:
        return float(((probs > 0.5) == truth).all(axis=1).mean())
    return float((probs.argmax(1) == truth).mean())
