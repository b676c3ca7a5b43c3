"""Frozen weights in the processor's own layout, and batches side by side on its cores.

Measured on two AVX-512 cores, SmolLM2-135M, short texts: PyTorch's fp32 product goes through a library that runs at
half speed on some processors; oneDNN with weights reordered once gives 2.2 times as many tokens per second. One batch
per core, each on one thread, gives a further 1.3 times over one batch on all threads: small operations need no meeting.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from tagsmith.model.adapters import is_adapted, merge
from tagsmith.model.products import LearningLinear

A = TypeVar("A")
R = TypeVar("R")


class PackedLinear(nn.Module):
    """A linear layer for inference on the CPU, its weight `(out, in)` reordered for oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS_EXPECTED)
        self.bias = None if bias is None else bias.detach().contiguous()

    def forward(self, rows: Tensor) -> Tensor:
        """`rows @ weight.T + bias`, for any leading axes."""
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")


ROWS_EXPECTED = 512


class PackedNorm(nn.Module):
    """A root-mean-square norm for inference (Zhang and Sennrich 2019, equation 4), with no copy that it can do without.

    It rounds where transformers' own does: the normed state before it meets the weight.
    """

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight.detach().contiguous(), epsilon

    def forward(self, rows: Tensor) -> Tensor:
        """`rows / rms(rows) * weight` along the last axis."""
        normed = rows.float() if rows.dtype is not torch.float32 else rows.clone()
        squares = torch.linalg.vector_norm(normed, dim=-1, keepdim=True).square_()
        scales = squares.div_(rows.shape[-1]).add_(self.epsilon).rsqrt_()
        return normed.mul_(scales).to(rows.dtype).mul_(self.weight)


def inference_copy(blocks: Iterable[nn.Module], *, dtype: torch.dtype) -> nn.ModuleList:
    """Frozen copies of blocks in `dtype`, with packed linear layers where this processor gains by them."""
    return nn.ModuleList(_packed_copy(block, dtype) for block in blocks)


def _packed_copy(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    duplicate = _merged_copy(block) if any(map(is_adapted, block.modules())) else _sharing_copy(block)
    duplicate = duplicate.to(dtype).eval()
    packable = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if next(duplicate.parameters()).device.type == "cpu" and packable:
        _pack(duplicate)
    return duplicate


def _sharing_copy(block: nn.Module) -> nn.Module:
    # Weights are handed over, not copied: packing, or the change of dtype, makes the one copy that is needed.
    shared = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in block.parameters()}
    return copy.deepcopy(block, memo=shared)


def _merged_copy(block: nn.Module) -> nn.Module:
    duplicate = copy.deepcopy(block).requires_grad_(False)
    merge(duplicate)
    return duplicate


def _pack(module: nn.Module) -> None:
    from transformers.pytorch_utils import Conv1D

    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and type(child) in (nn.Linear, LearningLinear):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        elif type(child) is Conv1D:  # GPT-2's: the same product with the weight stored the other way round
            setattr(module, name, PackedLinear(child.weight.T, child.bias))
        elif type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):  # not Gemma's: 1 + weight
            setattr(module, name, PackedNorm(child.get_parameter("weight"), float(vars(child)["variance_epsilon"])))
        else:
            _pack(child)


def keep_freed_memory() -> None:
    """Let glibc keep the large blocks that are freed, so that each step does not fault its pages in anew.

    Gradients and activations come and go in megabytes; handing them back to the system and asking again took a sixth of
    the processor's time. Elsewhere than on glibc nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_few_kernels() -> None:
    """Let oneDNN keep its last 128 kernels instead of 1024, of 0.7 MiB each; call it before the first product.

    It makes one for every product of a new shape, and texts in a row make a new shape of nearly every batch: 200 steps
    of two tuned blocks grew the process by 990 MiB, and by 200 MiB with this, at 0.7 ms for a kernel made anew. What
    the environment says already is left alone.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and PyTorch's beside it
        os.environ.setdefault(name, "128")


def side_by_side(function: Callable[[A], R], items: Iterable[A], *, device: torch.device) -> Iterator[R]:
    """The results of `function` in the order of `items`, one item per core at a time; an accelerator takes one by one.

    Each item is computed by one thread, so that a result does not depend on the number of cores or on its neighbours.
    Whether gradients are kept is for `function` to say: new threads keep them.
    """
    cores = torch.get_num_threads()
    if cores == 1 or device.type != "cpu":
        yield from map(function, items)
        return
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            torch.set_num_threads(1)
            yield from pool.map(function, items)
        finally:
            torch.set_num_threads(cores)
            pool.shutdown(cancel_futures=True)
