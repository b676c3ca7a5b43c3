"""Whether several processes divide the weights of a tuning among them, or each holds them all."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from tagsmith.config import Config
from tagsmith.errors import SettingError
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import arithmetic
from tagsmith.tuning.fitting import free_in_group
from tagsmith.tuning.parallel import Ranks
from tagsmith.tuning.plan import FP32, gib

HELD_WHOLE, DIVIDED = 2, 4
"""Times the weights that each process holds in any case (itself, and as it was before), and those that can be divided:
gradients, the optimizer's two, and the best so far."""


ROOM_TO_ANSWER = 1.25
"""Times its weights that a classifier needs to answer."""


@dataclass(frozen=True)
class Choice:
    """Whether weights are divided, and a word on it where nobody asked for it."""

    is_divided: bool
    told: str | None = None


def chosen(config: Config, weights: int, device: torch.device, ranks: Ranks, *, was_divided: bool = False) -> Choice:
    """What `tuning.sharding` comes to: `auto` divides weights that could not learn on one device whole.

    Args:
        weights: numbers of the classifier.
        was_divided: the checkpoint that is gone on from was written by a tuning that divided them.

    SettingError where it was asked for and does not go with other settings.
    """
    sharding = config.tuning.sharding
    if sharding == "fully":
        require_shardable(config, device)
        return Choice(is_divided=True)
    if sharding == "none" or unfit(config, device):
        return Choice(is_divided=False)
    if was_divided:
        return Choice(is_divided=True)
    needed, free = (HELD_WHOLE + DIVIDED) * FP32 * weights, free_beside_others(device)
    if ranks.count == 1 or not ranks.added(np.array([needed > free], dtype=np.int64))[0]:
        return Choice(is_divided=False)
    return Choice(
        is_divided=True,
        told=f"To learn, {weights / 1e6:,.0f} million weights need {gib(needed)} on each worker, where the first has "
        f"{gib(free)} free: they are divided among {ranks.count} (tuning.sharding).",
    )


def free_beside_others(device: torch.device) -> int:
    """Bytes that are free on a device; of the CPU's memory the share of this process among those of its machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(psutil.virtual_memory().available, free_in_group()) // beside


def settle(classifier: Classifier, device: torch.device) -> None:
    """Put a classifier that has learnt in pieces on a device that holds it whole, to answer; else it stays."""
    needed = ROOM_TO_ANSWER * FP32 * sum(weight.numel() for weight in classifier.parameters())
    if device.type == "cuda" and needed < free_beside_others(device):
        classifier.to(device)


def require_shardable(config: Config, device: torch.device) -> None:
    """SettingError for what does not go with divided weights."""
    if found := unfit(config, device):
        raise SettingError(
            f"tuning.sharding is 'fully', which does not go with {', '.join(found)}. Change that, or take "
            "tuning.sharding = 'none', by which each process holds all weights."
        )


def unfit(config: Config, device: torch.device) -> list[str]:
    """Settings that do not go with divided weights, in words."""
    tuning = config.tuning
    is_fp16 = arithmetic(tuning.precision, device) is torch.float16
    wanted = {
        "tuning.method": (tuning.method, "full"),
        "tuning.start": (tuning.start, "random"),
        "tuning.seeds": (tuning.seeds, 1),
        "tuning.soup": (tuning.soup, 1),
        "tuning.refit": (tuning.refit, False),
        "tuning.compile": (tuning.compile, False),
        "model.layers": (config.model.layers, "recommended" if config.model.layers == "auto" else config.model.layers),
        "tuning.precision": (tuning.precision, "fp32" if is_fp16 else tuning.precision),
    }
    return [f"{name} = {_shown(has)} (expected {_shown(ok)})" for name, (has, ok) in wanted.items() if has != ok]


def _shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).lower()
