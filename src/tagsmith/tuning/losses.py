"""The loss of a step: the mean over its rows, however they were cut into micro-batches.

Axes: B rows of a micro-batch, N rows of a part, C labels.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F


def summed_loss(logits_BC: Tensor, truth: Tensor, *, class_weights_C: Tensor | None) -> Tensor:
    """The loss summed over rows, in nats: cross-entropy, or its binary form where `truth` is `(B, C)` bool.

    The caller divides by the rows of the step, so that long texts weigh no more than short ones.
    """
    if truth.ndim == 2:
        return summed_binary_cross_entropy(logits_BC, truth, class_weights_C=class_weights_C)
    return summed_cross_entropy(logits_BC, truth, class_weights_C=class_weights_C)


def summed_cross_entropy(logits_BC: Tensor, truth_B: Tensor, *, class_weights_C: Tensor | None) -> Tensor:
    """Cross-entropy summed over rows, in nats; with class weights each row counts by that of its label."""
    return F.cross_entropy(logits_BC.float(), truth_B, weight=class_weights_C, reduction="sum")


def summed_binary_cross_entropy(logits_BC: Tensor, truth_BC: Tensor, *, class_weights_C: Tensor | None) -> Tensor:
    """Binary cross-entropy summed over rows and averaged over labels, as Hugging Face's multi-label loss is.

    A weight multiplies the loss of the rows that have the label, not of those that lack it.
    """
    loss = F.binary_cross_entropy_with_logits(
        logits_BC.float(), truth_BC.float(), pos_weight=class_weights_C, reduction="sum"
    )
    return loss / truth_BC.shape[1]


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
