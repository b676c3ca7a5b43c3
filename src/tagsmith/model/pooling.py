"""From a state per token to a state per text. Lengths say what is real; the pad id is never looked for."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("last", "mean", "first")


def pool(hidden_BLD: Tensor, lengths_B: Tensor, *, how: str) -> Tensor:
    """One state per text, `(B, D)`: of its last real token, the mean over its real tokens, or of its first."""
    if how == "first":
        return hidden_BLD[:, 0]
    if how == "last":
        return hidden_BLD[torch.arange(len(lengths_B), device=hidden_BLD.device), lengths_B - 1]
    real_BL1 = (torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)[None] < lengths_B[:, None])[..., None]
    return (hidden_BLD * real_BL1).sum(1) / lengths_B[:, None]
