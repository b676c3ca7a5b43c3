"""Linear layers that learn in fp32 on the CPU, their products by oneDNN, forwards and back.

Measured on two AVX-512 cores of AMD, where MKL runs at half speed: a step of one block on one row per text takes 2.2 ms
of products against 6.0, and products of 512 to 2,048 rows take half the time.

Axes: M rows, I features that enter, O features that leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

FEW, MANY = 64, 512
"""Rows in between come in a new number nearly every step, and a kernel made anew costs them what it saves."""


class LearningLinear(nn.Linear):
    """A linear layer as PyTorch's own; only who multiplies is another."""

    def forward(self, input: Tensor) -> Tensor:
        """`input @ weight.T + bias`, for any leading axes."""
        rows = input.numel() // self.in_features
        if input.dtype is not torch.float32 or not (1 <= rows <= FEW or rows >= MANY):
            return super().forward(input)
        return _Product.apply(input, self.weight, self.bias)


@contextmanager
def learning_products(blocks: Iterable[nn.Module], *, apply: bool = True) -> Iterator[None]:
    """Within the block, linear layers of `blocks` multiply by oneDNN, if they `apply` and this PyTorch has it."""
    is_able = apply and torch.backends.mkldnn.is_available()
    layers = [layer for block in blocks for layer in block.modules() if is_able and type(layer) is nn.Linear]
    try:
        for layer in layers:
            layer.__class__ = LearningLinear
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight_OI)
        ctx.has_bias = bias_O is not None
        return _times(rows, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight_OI = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        gradient_MO = gradients[0].flatten(0, -2)
        return (
            _times(gradient_MO, weight_OI.T).view_as(rows) if for_rows else None,
            # One factor copied into the other order is what oneDNN takes fastest, both with few rows and with many.
            _times(gradient_MO.T.contiguous(), rows.flatten(0, -2).T) if for_weight else None,
            gradient_MO.sum(dim=0) if ctx.has_bias and for_bias else None,
        )


def _times(rows: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight_OI, bias_O, "none", [], "")
