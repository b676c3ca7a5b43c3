"""Linear layers whose frozen weights are kept in 4 bits (NF4, Dettmers et al. 2023), by the library bitsandbytes.

Adapters learn on top of them (QLoRA). When they are merged, a weight is what its 4 bits say plus what was learnt.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from tagsmith.errors import SettingError


def quantize(trunk: nn.Module, names: Iterable[str], *, dtype: torch.dtype) -> None:
    """Replace the linear layers of these names by ones in 4 bits, which compute in `dtype`.

    SettingError where bitsandbytes is missing or does not run on their device, or where a layer is none of `nn.Linear`.
    """
    try:
        library = import_module("bitsandbytes").nn
    except ImportError:
        raise SettingError(
            "tuning.lora_bits is 4, which needs the library bitsandbytes. Install it with pip install "
            '"tagsmith[qlora]", or take tuning.lora_bits = 32.'
        ) from None
    for name in names:
        place, _, leaf = name.rpartition(".")
        layer = trunk.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise SettingError(
                f"tuning.lora_bits is 4, but '{name}' is a {type(layer).__name__}, whose weight lies the other way "
                "round (GPT-2). Expected linear layers as Llama and BERT have them; take tuning.lora_bits = 32."
            )
        setattr(trunk.get_submodule(place), leaf, _in_four_bits(library, layer, dtype))


def _in_four_bits(library: Any, layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    has_bias, device = layer.bias is not None, layer.weight.device
    small = library.Linear4bit(
        layer.in_features, layer.out_features, bias=has_bias, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    small.weight = library.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
    small.bias = layer.bias
    try:
        return small.to(device)  # quantized on arrival
    except (RuntimeError, NotImplementedError) as error:
        raise SettingError(
            f"tuning.lora_bits is 4, but bitsandbytes does not run on {device.type} here: {error}. Expected CUDA or a "
            "CPU that it knows; take tuning.lora_bits = 32."
        ) from error


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight in 4 bits; bitsandbytes need not be there to say so."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def restored(layer: Any) -> nn.Linear:
    """A plain layer in fp32 with the weight that the 4 bits say."""
    dequantize = import_module("bitsandbytes.functional").dequantize_4bit
    weight = dequantize(layer.weight.data, layer.weight.quant_state).float()
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias
    return plain
