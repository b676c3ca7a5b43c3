"""Low-rank adapters (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024) on linear layers of blocks, by the library peft.

They live within one tuning: attached, learnt, merged into the weights. Saving and serving never hear of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tagsmith.errors import SettingError
from tagsmith.model.backbone import Backbone
from tagsmith.model.quantized import is_quantized, restored

NAME = "default"


@dataclass(frozen=True)
class Adapter:
    """A learnt adapter as peft would save it: its settings, and its weights by name."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]


def attach(backbone: Backbone, *, rank: int, alpha: int, targets: Sequence[str], dora: bool, seed: int) -> None:
    """Put fresh adapters on the linear layers of all blocks that `targets` names; they change nothing yet.

    SettingError where peft is missing, or a target names no layer.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError:
        raise SettingError(
            "tuning.method is 'lora', which needs the library peft. Install it with pip install \"tagsmith[lora]\", "
            "or take tuning.method = 'last_layers'."
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_config(backbone, rank=rank, alpha=alpha, targets=targets, dora=dora), backbone.trunk)


def adapted_layers(backbone: Backbone, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The linear layers of the blocks that `targets` names (`all` for every one), by their names in the trunk."""
    from transformers.pytorch_utils import Conv1D

    inside = {id(module) for block in backbone.blocks for module in block.modules()}
    linear = {
        name: module
        for name, module in backbone.trunk.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    }
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [target for target in targets if target != "all" and target not in known]
    if unknown:
        raise SettingError(
            f"tuning.lora_targets names {unknown}, which are no linear layers of this backbone. "
            f"Known: {known}, or 'all'."
        )
    return {name: module for name, module in linear.items() if "all" in targets or name.rpartition(".")[2] in targets}


def adapter_weights(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The weights of attached adapters, by their names in the trunk; empty where there are none."""
    return {name: weight for name, weight in backbone.trunk.named_parameters() if ".lora_" in name}


def detach(backbone: Backbone, *, rank: int, alpha: int, targets: Sequence[str], dora: bool) -> Adapter:
    """Merge attached adapters into the weights, and give them as they were."""
    weights = {
        f"base_model.model.{name.replace(f'.{NAME}', '')}": weight.detach().clone().contiguous()
        for name, weight in adapter_weights(backbone).items()
    }
    merge(backbone.trunk)
    del backbone.trunk.peft_config  # else the next ones to be attached would count as a second set
    config = _config(backbone, rank=rank, alpha=alpha, targets=targets, dora=dora)
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return Adapter(settings, weights)


def merge(module: nn.Module) -> None:
    """Replace each adapted layer within a module by its own one, the adapter's product added to its weight."""
    for name, child in module.named_children():
        if is_adapted(child):
            layer: Any = child
            if is_quantized(layer.get_base_layer()):
                layer.base_layer = restored(layer.get_base_layer())
            layer.merge(safe_merge=True)
            setattr(module, name, layer.get_base_layer())
        else:
            merge(child)


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is a layer with an adapter on it; peft need not be there to say so."""
    return hasattr(module, "get_base_layer") and hasattr(module, "lora_A")


def _config(backbone: Backbone, *, rank: int, alpha: int, targets: Sequence[str], dora: bool) -> Any:
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    layers = adapted_layers(backbone, targets)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        use_dora=dora,
        target_modules=sorted(layers),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type="FEATURE_EXTRACTION",
    )
