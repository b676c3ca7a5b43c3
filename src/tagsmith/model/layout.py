"""Where the texts of a batch lie: each in a line of its own of a rectangle, or one after the other in a single row.

Axes: B texts, L positions of a line, T tokens of a row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The lengths `(B,)` of texts, and the first two axes of their states: `(B, L)`, or `(1, T)` where they are ragged.

    Padding stands behind each text in a rectangle and behind the last one in a row. One text alone is both. There is
    at least one position, though all texts may be empty. Where texts in a row share their beginnings, `nodes` says of
    each of their tokens, one text after the other, which of the row it is; None where each is its own. No gradient
    comes back through shared ones.
    """

    lengths_B: Tensor
    shape: Sequence[int]
    nodes: Tensor | None = None

    @property
    def ragged(self) -> bool:
        """Whether the texts lie in a single row."""
        return self.shape[0] != self.lengths_B.shape[0]

    @cached_property
    def longest(self) -> int:
        """Positions of a line that holds any of the texts."""
        return max(1, int(self.lengths_B.max())) if self.ragged else self.shape[1]

    @cached_property
    def offsets(self) -> Tensor:
        """Where each text begins in a row (or in `nodes`), and where the last one ends `(B+1,)` int32."""
        ends_B = self.lengths_B.cumsum(0, dtype=torch.int32)
        return torch.nn.functional.pad(ends_B, (1, 0))

    @cached_property
    def positions(self) -> Tensor:
        """The place of each token within its text, `(1, L)` or `(1, T)`."""
        if self.nodes is not None:
            within_T = torch.arange(len(self.nodes), device=self.nodes.device)
            within_T -= self.offsets[:-1].long().repeat_interleave(self.lengths_B)
            return self._at.index_copy(0, self.nodes, within_T)[None]
        return (self._at - self.starts if self.ragged else self._at)[None]

    @cached_property
    def starts(self) -> Tensor:
        """Where the text of each token begins `(L,)` or `(T,)`; padding behind a row is one text each."""
        if not self.ragged:
            return torch.zeros_like(self._at)
        owners_T = torch.searchsorted(self.offsets[1:], self._at, right=True, out_int32=True)
        starts_T = self.offsets[owners_T.clamp(max=self.lengths_B.shape[0] - 1)]
        return torch.where(self._at < self.offsets[-1], starts_T, self._at)

    @cached_property
    def lasts(self) -> tuple[Tensor, Tensor]:
        """Where the last token of each text stands: line and column, both `(B,)`."""
        if self.ragged:
            return torch.zeros_like(self.lengths_B), self._in_row(self.offsets[1:].long() - 1)
        return torch.arange(self.lengths_B.shape[0], device=self.lengths_B.device), self.lengths_B - 1

    @cached_property
    def firsts(self) -> tuple[Tensor, Tensor]:
        """Where the first token of each text stands: line and column, both `(B,)`."""
        lines_B, columns_B = self.lasts
        if self.nodes is not None:
            return lines_B, self._in_row(self.offsets[:-1].long())
        return lines_B, columns_B - self.lengths_B + 1

    @cached_property
    def real(self) -> Tensor:
        """Which cells of the rectangle are tokens `(B, L)`."""
        return torch.arange(self.longest, device=self.lengths_B.device)[None] < self.lengths_B[:, None]

    def as_rectangle(self, row: Tensor) -> Tensor:
        """`(1, H, T, ...)` as `(B, H, L, ...)`, lines filled up with any of the tokens; a rectangle stays as it is."""
        if not self.ragged:
            return row
        tokens = row[0].transpose(0, 1)
        if self._fills_its_rectangle:
            lines = tokens
        else:
            lines = _Moved.apply(tokens, self._cells, self._tokens, self._behind_row)
        return lines.unflatten(0, (self.lengths_B.shape[0], self.longest)).transpose(1, 2)

    def as_row(self, lines: Tensor) -> Tensor:
        """`(B, L, ...)` as `(1, T, ...)`: the way back, with heads after positions as attention leaves them."""
        cells = lines.flatten(0, 1)
        if not self._fills_its_rectangle:
            cells = _Moved.apply(cells, self._tokens, self._cells, self._padding)
        return cells[None]

    def _in_row(self, places: Tensor) -> Tensor:
        """Where tokens that are counted text after text stand in the row."""
        return places if self.nodes is None else self.nodes[places]

    @cached_property
    def _at(self) -> Tensor:
        return torch.arange(self.shape[1], device=self.lengths_B.device)

    @cached_property
    def _fills_its_rectangle(self) -> bool:
        return self.shape[1] == self.lengths_B.shape[0] * self.longest and bool(self.real.all())

    @cached_property
    def _cells(self) -> Tensor:
        """For each cell of the rectangle, which token of the row it holds `(B * L,)`."""
        within_BL = torch.minimum(
            torch.arange(self.longest, device=self.lengths_B.device)[None], self.lengths_B[:, None] - 1
        )
        return self._in_row((self.offsets[:-1, None] + within_BL).clamp(min=0).flatten())

    @cached_property
    def _tokens(self) -> Tensor:
        """For each token of the row, in which cell of the rectangle it stands `(T,)`; cell 0 for padding."""
        tokens_T = self.real.flatten().nonzero()[:, 0]
        if self.nodes is not None:  # of the texts that share it the first
            firsts = np.unique(self.nodes.numpy(), return_index=True)[1]
            return tokens_T[torch.from_numpy(firsts)]
        return torch.nn.functional.pad(tokens_T, (0, self.shape[1] - len(tokens_T)))

    @cached_property
    def _padding(self) -> Tensor:
        """Which cells of the rectangle are padding."""
        return (~self.real).flatten().nonzero()[:, 0]

    @cached_property
    def _behind_row(self) -> Tensor:
        """Which places of the row are padding."""
        return self._at[int(self.offsets[-1]) :]


class _Moved(torch.autograd.Function):
    """Rows of a tensor in other places, `moved[i] = rows[there[i]]`; the way back is a gather as well.

    PyTorch's own derivative adds rows up one by one; here each row has one place where it counts, `back`, and what has
    none (`nowhere`) learns nothing.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *places: Tensor) -> Tensor:
        there, *way_back = places
        ctx.save_for_backward(*way_back)
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        back, nowhere = ctx.saved_tensors
        return gradients[0].index_select(0, back).index_fill_(0, nowhere, 0.0), None, None, None
