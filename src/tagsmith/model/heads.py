"""What replaces the language-model head: from a pooled state to one logit per label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HEADS = ("linear", "mlp")


class LinearHead(nn.Module):
    """One matrix `(C, D)` without bias, as Hugging Face's sequence classifiers have it."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, classes, bias=False)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Logits `(B, C)`."""
        return self.score(pooled_BD)


class MLPHead(nn.Module):
    """One hidden layer of the backbone's width with a GELU."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, classes, bias=False)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Logits `(B, C)`."""
        return self.score(nn.functional.gelu(self.hidden(pooled_BD)))


def build_head(name: str, *, width: int, classes: int, seed: int) -> nn.Module:
    """A head with random weights that depend on the seed alone, small enough to begin near even odds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = {"linear": LinearHead, "mlp": MLPHead}[name](width, classes)
        nn.init.normal_(head.score.weight, std=0.02)
    return head
