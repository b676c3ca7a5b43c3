"""What replaces the language-model head: from a pooled state to one logit per label."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

HEADS = ("linear", "mlp")


class LinearHead(nn.Module):
    """One matrix `(C, D)`, without bias as Hugging Face's sequence classifiers have it, unless one is asked for."""

    def __init__(self, width: int, classes: int, *, bias: bool = False) -> None:
        super().__init__()
        self.score = nn.Linear(width, classes, bias=bias)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Logits `(B, C)`."""
        return self.score(pooled_BD)


class MLPHead(nn.Module):
    """One hidden layer of the backbone's width with a GELU."""

    def __init__(self, width: int, classes: int, *, bias: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, classes, bias=bias)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Logits `(B, C)`."""
        return self.score(nn.functional.gelu(self.hidden(pooled_BD)))


def build_head(name: str, *, width: int, classes: int, seed: int, bias: bool = False) -> nn.Module:
    """A head with random weights that depend on the seed alone, small enough to begin near even odds; a `bias` is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = {"linear": LinearHead, "mlp": MLPHead}[name](width, classes, bias=bias)
        nn.init.normal_(head.score.weight, std=0.02)
        if bias:
            nn.init.zeros_(head.score.bias)
    return head


def begin_at(head: nn.Module, truth_NC: np.ndarray, *, weights_C: np.ndarray | None = None) -> None:
    """Set a head's bias to the log-odds of each label in training, so that rare labels do not begin at even odds.

    Half a row is added to both sides of the odds; `weights_C` are those of the loss, which shift them.
    """
    positives_C = truth_NC.sum(axis=0)
    log_odds_C = np.log((positives_C + 0.5) / (len(truth_NC) - positives_C + 0.5))
    if weights_C is not None:
        log_odds_C = log_odds_C + np.log(weights_C)
    score = head.get_submodule("score")
    assert isinstance(score, nn.Linear) and score.bias is not None, "a multi-label head has a bias"
    with torch.no_grad():
        score.bias.copy_(torch.as_tensor(log_odds_C))
