"""A classifier whose weights are divided among processes (PyTorch's FSDP2), for one that a device cannot hold to learn.

Each process keeps a piece of every weight, of its gradient, of what the optimizer remembers and of the best weights so
far; a block is put together where it computes, and let go. All processes must then compute as many batches, for each
batch is a meeting of all: who has fewer computes one row more, which counts nothing.

Axes: N texts, B texts of a micro-batch, C labels.
"""

from __future__ import annotations

import atexit
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.data.batching import length_sorted
from tagsmith.data.encoding import Tokens, mean_of_pieces
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import sent
from tagsmith.tuning.parallel import Ranks

TOKENS_PER_BATCH = 512


class Shards:
    """A copy of a classifier of which this process holds its pieces; the `whole` one rests until they are gathered."""

    def __init__(self, whole: Classifier, device: torch.device, ranks: Ranks) -> None:
        self.whole, self.device, self.ranks = whole, device, ranks
        _join_alone(device)
        self.mesh = torch.distributed.init_device_mesh(device.type, (ranks.count,))
        self.classifier = self._divided()

    def _divided(self) -> Classifier:
        """The copy; no process ever puts all of it on its device."""
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import Shard, distribute_tensor

        known: dict[int, Any] = {
            id(weight): nn.Parameter(torch.empty_like(weight, device="meta")) for weight in self.whole.parameters()
        }
        known |= {id(each): each for each in (self.whole.encoder, self.whole.labels)}
        own: Any = copy.deepcopy(self.whole, known)
        own.backbone.runs_whole_blocks = True
        for module in own.modules():  # angles of positions, say
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))
        for block in own.backbone.blocks:
            fully_shard(block, mesh=self.mesh)
        fully_shard(own, mesh=self.mesh)
        for module in (*own.backbone.blocks, own):  # a step's loss is a sum over its rows
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        pieces = {
            name: distribute_tensor(weight.detach().to(self.device), self.mesh, [Shard(0)], src_data_rank=None)
            for name, weight in self.whole.named_parameters()
        }
        own.load_state_dict(pieces, strict=False, assign=True)
        return own

    def gather(self) -> Classifier:
        """The whole classifier with what was learnt, in each process, weight by weight."""
        self.classifier.reshard()  # type: ignore[operator]
        learnt: dict[str, Any] = dict(self.classifier.named_parameters())
        with torch.no_grad():
            for name, weight in self.whole.named_parameters():
                weight.copy_(learnt[name].full_tensor())
        return self.whole

    def level(self, batches: Sequence[np.ndarray], spare: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        """As many batches in each process, and whether a batch counts; `spare` is computed where there are too few."""
        own = np.zeros(self.ranks.count, dtype=np.int64)
        own[self.ranks.number] = len(batches)
        most = int(self.ranks.added(own).max())
        return [(batch, True) for batch in batches] + [(spare, False)] * (most - len(batches))

    def logits(self, tokens: Tokens, rows: np.ndarray) -> np.ndarray:
        """Uncalibrated logits `(n, C)` of some texts, those of this process, while the others compute theirs."""
        own = tokens.of_texts(rows)
        batches = length_sorted(own.lengths, tokens_per_batch=TOKENS_PER_BATCH)
        logits = np.zeros((len(own.rows), len(self.classifier.labels)), dtype=np.float32)
        spare = own if len(rows) else tokens.of_texts(np.arange(1))
        with torch.no_grad():
            for pieces, counts in self.level(batches, np.arange(1)):
                ids, lengths = (own if counts else spare).ragged(pieces)
                found_BC = self.classifier(sent(ids, self.device), sent(lengths, self.device))
                if counts:
                    logits[pieces] = found_BC.float().cpu().numpy()
        self.classifier.reshard()  # type: ignore[operator] - the root stays together for a backward pass
        return mean_of_pieces(logits, own.rows, texts=len(own))


def whole(value: Tensor) -> Tensor:
    """A number that may still lie in pieces, put together."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _join_alone(device: torch.device) -> None:
    """One process without others is a group too: it goes on where several were."""
    from torch import distributed

    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
        atexit.register(distributed.destroy_process_group)
