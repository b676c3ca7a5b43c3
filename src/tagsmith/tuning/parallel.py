"""Several processes of one machine work on one tuning: rows are divided, gradients added. `torchrun` starts them.

All of them hold the same weights and take the same decisions; the first one speaks and writes. Since a step's loss is a
sum over its rows, the sum of all gradients is the one that a single process has, but for rounding.
No torch at the top: the pipeline asks who is first before anything heavy is imported.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from tagsmith.data.encoding import Tokens
from tagsmith.errors import SettingError
from tagsmith.events import Event

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tagsmith.model.activations import FrozenBlocks, States
    from tagsmith.model.state_cache import StateCache

BUCKET = 2**24
"""Numbers that are added at once, over all processes: many small sums would each wait for all."""

PATIENCE = timedelta(days=1)
"""How long a process waits for the others; one that fails ends all, by torchrun's hand."""


@dataclass(frozen=True)
class Ranks:
    """This process among the `count` that tune together; one alone is the first of one, and waits for nobody."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.number == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Every `count`-th of some rows, none where there are too few."""
        return rows[self.number :: self.count]

    def owned(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows that are this process's in every step: each `count`-th of all rows there are."""
        return rows[rows % self.count == self.number]

    def added(self, values: np.ndarray) -> np.ndarray:
        """The sum of arrays of one shape over all processes, the same bits in each."""
        if self.count == 1:
            return values
        import torch

        whole = torch.from_numpy(values.copy())
        torch.distributed.all_reduce(whole)
        return whole.numpy()

    def collected(self, own: np.ndarray, rows: np.ndarray, *, total: int) -> np.ndarray:
        """Values `(total, ...)` of all rows, where each process has computed those of its own `rows`."""
        whole = np.zeros((total, *own.shape[1:]), dtype=own.dtype)
        whole[rows] = own
        return self.added(whole)

    def stacked(self, state: Tensor) -> Tensor:
        """The bytes of each process `(count, ...)`."""
        import torch

        return torch.from_numpy(self.collected(state.numpy()[None], np.array([self.number]), total=self.count))

    def agreed(self, *asked: bool) -> list[bool]:
        """What the first process found, in each of them: a clock and a signal tell each something else."""
        own = np.array(asked, dtype=np.uint8)
        return [bool(value) for value in self.added(own if self.is_first else np.zeros_like(own))]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Within the block the first process goes before the others, which find what it has fetched."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.added(np.zeros(1))

    def add_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Give each weight the sum of its gradients over all processes, where any of them has one."""
        if self.count == 1:
            return
        import torch

        found = self.added(np.array([weight.grad is not None for weight in weights], dtype=np.int32))
        gradients = []
        for weight, holders in zip(weights, found, strict=True):
            if holders:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                gradients.append(weight.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            torch.distributed.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in their order, so many together that they hold about `BUCKET` numbers."""
    bucket: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        bucket.append(tensor)
        numbers += tensor.numel()
        if numbers >= BUCKET:
            yield bucket
            bucket, numbers = [], 0
    if bucket:
        yield bucket


_BY_ITSELF = ContextVar("_BY_ITSELF", default=False)


@contextmanager
def by_itself() -> Iterator[None]:
    """Within the block this process tunes as one that was never joined, while others do something else."""
    token = _BY_ITSELF.set(True)
    try:
        yield
    finally:
        _BY_ITSELF.reset(token)


def ranks_here() -> Ranks:
    """This process among those that PyTorch has joined; alone where it has joined none."""
    from torch import distributed

    if _BY_ITSELF.get() or not (distributed.is_available() and distributed.is_initialized()):
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def launched() -> Ranks:
    """This process among those that `torchrun` started, before they are joined; alone where it started none.

    Where another launcher has joined them already, it is asked first.
    """
    if "torch" in sys.modules and ranks_here().count > 1:
        return ranks_here()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Ranks()
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def join(device: str) -> Ranks:
    """Let the processes that `torchrun` started work together, each on its device, until they end.

    SettingError where a process has no device of its own.
    """
    if launched().count == 1:
        return Ranks()
    from torch import cuda, distributed

    from tagsmith.model.device import choose_device

    if distributed.is_initialized():
        return ranks_here()
    _require_one_each(device)
    own = choose_device(device)
    if own.type == "cuda":
        cuda.set_device(own)
    # What lies on the CPU goes by gloo in any case: counts, decisions, and the states of frozen blocks.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
    atexit.register(distributed.destroy_process_group)
    return ranks_here()


def _require_one_each(device: str) -> None:
    if device == "mps" or ":" in device:
        raise SettingError(
            f"tuning.device is '{device}', one device, but torchrun started {launched().count} processes. Expected one "
            "for each; take tuning.device = 'cuda' or 'cpu', or start a single process."
        )


def own_states(
    frozen: FrozenBlocks, tokens: Tokens, ranks: Ranks, *, done: int, total: int, cache: StateCache | None
) -> Generator[Event, None, States]:
    """What leaves frozen blocks, for this process's own texts alone: those that `Ranks.owned` gives it.

    `done` and `total` are as in `frozen_states`, and the events count by this process's share; so does the cache, which
    each machine has for itself.
    """
    from tagsmith.model.activations import frozen_states

    own = tokens.of_texts(ranks.owned(np.arange(len(tokens))))
    counted = {"done": done // ranks.count, "total": -(-total // ranks.count)}
    return (yield from frozen_states(frozen, own, cache=cache, **counted))


def divided_states(
    frozen: FrozenBlocks, tokens: Tokens, ranks: Ranks, *, done: int, total: int
) -> Generator[Event, None, States]:
    """What leaves frozen blocks, for all texts, where each process computes its share of them.

    `done` and `total` are as in `frozen_states`, and the events count by this process's share.
    """
    import torch

    from tagsmith.model.activations import States, frozen_states, room_for

    if len(tokens) < ranks.count:
        return (yield from frozen_states(frozen, tokens, done=done, total=total))
    own = tokens.of_texts(ranks.share(np.arange(len(tokens))))
    states = yield from frozen_states(frozen, own, done=done // ranks.count, total=-(-total // ranks.count))
    hidden_TD = room_for(int(tokens.offsets[-1]), frozen.backbone.width, frozen.dtype).zero_()
    pieces, _ = tokens.pieces(ranks.share(np.arange(len(tokens))))
    for place, piece in enumerate(pieces):
        start, end = states.offsets[place], states.offsets[place + 1]
        hidden_TD[tokens.offsets[piece] : tokens.offsets[piece + 1]] = states.hidden_TD[start:end]
    for rows in hidden_TD.split(max(1, BUCKET // frozen.backbone.width)):
        torch.distributed.all_reduce(rows.view(torch.uint8))  # byte by byte: all but one process have zeros there
    return States(hidden_TD, tokens)
