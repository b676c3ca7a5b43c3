"""Where a classifier computes, and in which arithmetic. What computes follows the weights: no device is passed on."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tagsmith.errors import SettingError

WIDER = 32
"""A batch that fills an accelerator against one that fills a core of the CPU, in tokens."""

_LOOKS = 6


def choose_device(wanted: str) -> torch.device:
    """The device that a setting means: `auto` is CUDA where it is there, else the CPU; `cuda:1` the second GPU.

    Of several processes that `torchrun` started, each has the GPU of its own number.

    SettingError when it is not there. Apple's `mps` is taken when it is named: it has not been measured yet.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cuda(:\d+)?", wanted):
        return _gpu(wanted)
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise SettingError(
            "The device asked for is 'mps', but this PyTorch finds no Apple GPU. Expected a Mac with Apple silicon and "
            "macOS 12.3 or later; take 'auto'."
        )
    if wanted not in ("cpu", "mps"):
        raise SettingError(f"There is no device '{wanted}'. Expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.")
    return torch.device(wanted)


def _gpu(wanted: str) -> torch.device:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    _, named, number = wanted.partition(":")
    place = int(number) if named else int(os.environ.get("LOCAL_RANK", "0"))
    if place < found:
        return torch.device("cuda", place)
    asked = f"'{wanted}'" if named or not place else f"'{wanted}', by process {place} of torchrun"
    raise SettingError(
        f"The device asked for is {asked}, but this PyTorch finds {found} CUDA devices. Expected {place + 1} or more, "
        "a driver, and a build of PyTorch for CUDA; take another device, or fewer processes."
    )


def arithmetic(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of frozen blocks and of products in tuning; `auto` is bf16 where the device is faster in it.

    A CUDA device without it has fp16, anything else fp32. Weights that learn, norms, softmax and loss stay in fp32.
    """
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    takes_bf16 = bf16_is_faster() if device.type == "cpu" else torch.backends.mps.is_macos_or_newer(14, 0)
    return torch.bfloat16 if takes_bf16 else torch.float32


def processor_has_bf16() -> bool:
    """Whether bf16 products run in hardware on this CPU (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def bf16_is_faster() -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in fp32, by a look of some 20 ms, once in a process.

    Having bf16 is not enough: beside fp32, products ran at 7 times its speed with AMX, at twice with AVX512-BF16 of an
    AMD EPYC, and at half with that of an Intel Xeon whose AMX is hidden by its hypervisor. Nothing lies near one, so
    that every look on a machine finds the same.
    """
    if not processor_has_bf16():
        return False
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(_LOOKS):
        for dtype, least in seconds.items():
            rows_MK, weight_NK = torch.ones(256, 512, dtype=dtype), torch.ones(1024, 512, dtype=dtype)
            began = time.perf_counter()
            linear(rows_MK, weight_NK)
            seconds[dtype] = min(least, time.perf_counter() - began)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def name_of(device: torch.device) -> str:
    """What a device is called: `cpu`, `mps`, or the GPU's own name, by which its rounding is known."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def device_of(module: nn.Module) -> torch.device:
    """The device that a module's weights lie on, all of them on one."""
    return next(module.parameters()).device


def sent(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """The same values on a device; an array that stays on the CPU is shared, not copied."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.to(device)


def tokens_at_once(tokens_per_core: int, device: torch.device) -> int:
    """Tokens in a batch where one core of the CPU takes so many; answers do not depend on it."""
    return tokens_per_core if device.type == "cpu" else WIDER * tokens_per_core


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The state of PyTorch's generators for the CPU and a device, by name; all of them lie on the CPU."""
    states = {"random_state": torch.get_rng_state()}
    if device.type == "cuda":
        states["random_state.cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["random_state.mps"] = torch.mps.get_rng_state()
    return states


def put_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Let generators go on from `random_states`."""
    states = {name: state.clone() for name, state in states.items()}  # a view would be read from its storage's start
    torch.set_rng_state(states["random_state"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["random_state.cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["random_state.mps"])
