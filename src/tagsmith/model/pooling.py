"""From a state per token to a state per text. Lengths say what is real; the pad id is never looked for."""

from __future__ import annotations

from torch import Tensor

from tagsmith.model.layout import Layout

POOLINGS = ("last", "mean", "first")


def pool(hidden_BLD: Tensor, lengths_B: Tensor, *, how: str) -> Tensor:
    """One state per text, `(B, D)`: of its last real token, the mean over its real tokens, or of its first.

    States are a rectangle, or `(1, T, D)` of texts one after the other.
    """
    layout = Layout(lengths_B, hidden_BLD.shape[:2])
    if how == "first":
        return hidden_BLD[layout.firsts]
    if how == "last":
        return hidden_BLD[layout.lasts]
    lines_BLD = layout.as_rectangle(hidden_BLD[:, None])[:, 0]
    return (lines_BLD * layout.real[..., None]).sum(1) / lengths_B[:, None]
