"""The loss of a step: the mean over its rows, however they were cut into micro-batches."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def summed_cross_entropy(logits_BC: Tensor, truth_B: Tensor, *, class_weights_C: Tensor | None) -> Tensor:
    """Cross-entropy summed over rows, in nats; with class weights each row counts by that of its label.

    The caller divides by the rows of the step, so that long texts weigh no more than short ones.
    """
    return F.cross_entropy(logits_BC.float(), truth_B, weight=class_weights_C, reduction="sum")
