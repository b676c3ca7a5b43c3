"""AdamW with the usual groups, and the course of the learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import nn

from tagsmith.config import TuningConfig


def build_optimizer(weights: Sequence[tuple[str, nn.Parameter]], config: TuningConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019): matrices decay, norms and biases do not; the head has its own rate.

    With `layer_decay` the rate of each block is that factor times the one's above it (Howard and Ruder 2018).
    """
    top = max((height for name, _ in weights if (height := _height(name)) is not None), default=0)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, weight in weights:
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((name.startswith("head."), _peak(name, top, config), decay), []).append(weight)
    described = [
        {"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay}
        for (_, peak, decay), chosen in sorted(groups.items(), key=lambda group: group[0][0])
    ]
    return torch.optim.AdamW(described, fused=True)


def _peak(name: str, top: int, config: TuningConfig) -> float:
    if name.startswith("head."):
        return config.head_learning_rate or config.learning_rate
    height = _height(name)
    if height is None:  # the final norm learns as the uppermost block does, embeddings stand below the lowest one
        height = top if re.search(r"(?:^|\.)(?:final_norm|norm|ln_f)\.", name) else -1
    return config.learning_rate * config.layer_decay ** (top - height)


def _height(name: str) -> int | None:
    """The number of the block that a weight belongs to, whatever its family calls blocks."""
    found = re.search(r"(?:blocks|layers|layer|h)\.(\d+)\.", name)
    return None if found is None else int(found[1])


def set_rates(optimizer: torch.optim.Optimizer, *, step: int, total: int, config: TuningConfig) -> float:
    """Set the rates of step `step` (from 0) of `total`: a rise over the warm-up, then the course of the schedule.

    What is given back is the rate of the backbone's uppermost weights.
    """
    rise = round(config.warmup * total)
    if step < rise:
        share = (step + 1) / (rise + 1)
    elif config.schedule == "linear":
        share = (total - step) / max(1, total - rise)
    elif config.schedule == "cosine":
        share = 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, total - rise))
    else:
        share = 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return config.learning_rate * share
