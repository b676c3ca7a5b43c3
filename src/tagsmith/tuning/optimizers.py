"""AdamW with the usual groups, and the course of the learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tagsmith.config import TuningConfig


def build_optimizer(weights: Sequence[tuple[str, nn.Parameter]], config: TuningConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019): matrices decay, norms and biases do not; the head has its own rate."""
    head_rate = config.head_learning_rate or config.learning_rate
    groups = []
    for is_head, rate in ((False, config.learning_rate), (True, head_rate)):
        named = [weight for name, weight in weights if name.startswith("head.") == is_head]
        for decay, chosen in (
            (config.weight_decay, [w for w in named if w.ndim > 1]),
            (0.0, [w for w in named if w.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, *, step: int, total: int, config: TuningConfig) -> None:
    """Set the rates of step `step` (from 0) of `total`: a rise over the warm-up, then a line to zero or a constant."""
    rise = round(config.warmup * total)
    if step < rise:
        share = (step + 1) / (rise + 1)
    elif config.schedule == "linear":
        share = (total - step) / max(1, total - rise)
    else:
        share = 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
