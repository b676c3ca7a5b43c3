"""The frozen blocks run once; what leaves them is kept, ragged, and every epoch starts from there.

Axes: T tokens of all texts in a row, D width, B pieces of a batch, L positions, P pieces
(a text is one, unless it is long and read in windows).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.data.batching import length_sorted
from tagsmith.data.encoding import Tokens
from tagsmith.errors import ResourceError
from tagsmith.events import Event
from tagsmith.model.backbone import Backbone
from tagsmith.model.beginnings import alike, tree_of
from tagsmith.model.device import device_of, sent, tokens_at_once
from tagsmith.model.mapping import let_go
from tagsmith.model.packing import inference_copy, side_by_side
from tagsmith.model.state_cache import StateCache, key_of

TOKENS_PER_BATCH = 512
"""So many fill a core in a pass."""

BYTES_IN_MEMORY = 2**30
"""Larger sets of states lie in a temporary file that is mapped into memory."""


@dataclass(frozen=True)
class States:
    """Hidden states `hidden_TD` of the tokens of texts, whose pieces and offsets are those of `tokens`."""

    hidden_TD: Tensor
    tokens: Tokens

    @property
    def offsets(self) -> np.ndarray:
        """Where each piece starts `(P+1,)`."""
        return self.tokens.offsets

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each piece `(P,)`."""
        return self.tokens.lengths

    def of_texts(self, rows: np.ndarray) -> States:
        """The states of some texts, in this order."""
        pieces, _ = self.tokens.pieces(rows)
        own = [self.hidden_TD[self.offsets[piece] : self.offsets[piece + 1]] for piece in pieces]
        return States(torch.cat(own), self.tokens.of_texts(rows))

    def ragged(self, pieces: np.ndarray) -> tuple[Tensor, Tensor]:
        """The states of some pieces one after the other, `(1, T, D)` in fp32, and their lengths `(B,)`."""
        lengths = self.lengths[pieces]
        hidden_TD, start = torch.zeros(max(1, int(lengths.sum())), self.hidden_TD.shape[1]), 0
        for piece, length in zip(pieces, lengths, strict=True):
            own_LD = self.hidden_TD[self.offsets[piece] : self.offsets[piece + 1]]
            hidden_TD[start : start + length] = own_LD
            let_go(own_LD)
            start += length
        return hidden_TD[None], torch.from_numpy(lengths)


class FrozenBlocks:
    """The lowest `stop` blocks of a backbone, packed for inference in `dtype`; `blocks` are packed ones to use."""

    def __init__(
        self, backbone: Backbone, *, stop: int, dtype: torch.dtype, blocks: nn.ModuleList | None = None
    ) -> None:
        self.backbone = backbone
        self.stop = stop
        self.dtype = dtype
        self.blocks = inference_copy(backbone.blocks[:stop], dtype=dtype) if blocks is None else blocks[:stop]

    @property
    def weights(self) -> nn.Module:
        """What the states depend on: the embeddings, and these blocks as they are before packing."""
        trunk = self.backbone.trunk
        above = {id(module) for block in self.backbone.blocks[self.stop :] for module in block.modules()}
        used = nn.ModuleDict()
        for name, module in trunk.named_modules():
            direct = list(module.named_parameters(recurse=False))
            if direct and id(module) not in above:
                used[name.replace(".", "/")] = module
        return used

    @property
    def architecture(self) -> str:
        """What beside weights decides on the states: the configuration of these blocks, not where it came from."""
        config = self.backbone.config.to_dict()
        left_out = {"num_hidden_layers", "layer_types", "dtype", "transformers_version"}
        kept = {key: value for key, value in config.items() if key not in left_out and not key.startswith("_")}
        kept["kinds"] = [self.backbone.family.kind(self.backbone.config, i) for i in range(self.stop)]
        kept |= {"causal": self.backbone.causal, "pair_separator_id": self.backbone.pair_separator_id}
        return json.dumps(kept, sort_keys=True, default=str)

    def key(self, tokens: Tokens, *, tokens_per_batch: int = TOKENS_PER_BATCH) -> str:
        """Under which the states of some texts are kept from run to run."""
        return key_of(
            self.weights,
            tokens,
            architecture=self.architecture,
            stop=self.stop,
            dtype=self.dtype,
            tokens_per_batch=tokens_per_batch,
        )

    @property
    def device(self) -> torch.device:
        """Where they compute."""
        return device_of(self.backbone)

    @property
    def shares(self) -> bool:
        """Whether beginnings that texts have in common are computed once; a GPU's kernel takes whole texts."""
        return self.device.type == "cpu" and self.backbone.shares_beginnings

    def enter(self, ids: Tensor, lengths_B: Tensor) -> Tensor:
        """The states `(1, T, D)` that leave the last of these blocks, or `(B, L, D)` for ids in a rectangle."""
        is_row = len(ids) == 1 < len(lengths_B)
        tree = tree_of(ids[0].numpy(), lengths_B.numpy()) if is_row and self.shares else None
        if tree is None:
            return self._through(ids, lengths_B)
        nodes = torch.from_numpy(tree.nodes)
        return self._through(ids[:, torch.from_numpy(tree.kept)], lengths_B, nodes)[:, nodes]

    def _through(self, ids: Tensor, lengths_B: Tensor, nodes: Tensor | None = None) -> Tensor:
        hidden = self.backbone.embed(ids, lengths_B, nodes).to(self.dtype)
        context = self.backbone.context(hidden, lengths_B, nodes)
        return self.backbone.run(hidden, context, start=0, stop=self.stop, blocks=self.blocks)


def frozen_states(
    frozen: FrozenBlocks,
    tokens: Tokens,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    done: int = 0,
    total: int | None = None,
    cache: StateCache | None = None,
) -> Generator[Event, None, States]:
    """What leaves the frozen blocks, for all texts, in one pass, or from a cache where an earlier run has kept it.

    Args:
        done: pieces that earlier passes of the same stage have computed, and
        total: pieces of all of them, for the events to count by.
        cache: where states are looked for and kept; None keeps them for this run only.
    """
    shape = {"tokens": int(tokens.offsets[-1]), "width": frozen.backbone.width, "dtype": frozen.dtype}
    if cache is None:
        hidden_TD = room_for(**shape)
        yield from _fill(hidden_TD, frozen, tokens, tokens_per_batch=tokens_per_batch, done=done, total=total)
        return States(hidden_TD, tokens)
    key = frozen.key(tokens, tokens_per_batch=tokens_per_batch)
    kept = cache.find(key, **shape)
    if kept is not None:
        yield Event("model", "frozen", done + len(tokens.rows), total or len(tokens.rows), {"from_cache": True})
        return States(kept, tokens)
    with cache.filling(key, **shape) as room:
        hidden_TD = room_for(**shape) if room is None else room
        yield from _fill(hidden_TD, frozen, tokens, tokens_per_batch=tokens_per_batch, done=done, total=total)
    return States(hidden_TD, tokens)


def _fill(
    hidden_TD: Tensor, frozen: FrozenBlocks, tokens: Tokens, *, tokens_per_batch: int, done: int, total: int | None
) -> Generator[Event, None, None]:
    firsts, twins = tokens.distinct()  # equal texts have equal states, and are computed once
    copies = np.split(np.argsort(twins, kind="stable"), np.cumsum(np.bincount(twins))[:-1])
    device, at_once = frozen.device, tokens_at_once(tokens_per_batch, frozen.device)
    batches = alike(tokens, firsts, tokens_per_batch=at_once, shares=frozen.shares)

    @torch.inference_mode()
    def enter(pieces: np.ndarray) -> Sequence[Tensor]:
        ids, lengths = tokens.ragged(pieces)
        hidden_TD = frozen.enter(sent(ids, device), sent(lengths, device))[0].cpu()
        return hidden_TD[: lengths.sum()].split(lengths.tolist())

    for pieces, texts in zip(batches, side_by_side(enter, batches, device=device), strict=True):
        for hidden_LD, first in zip(texts, pieces, strict=True):
            twins_of_it = copies[twins[first]]
            for piece in twins_of_it:
                start, end = tokens.offsets[piece], tokens.offsets[piece + 1]
                hidden_TD[start:end] = hidden_LD
                let_go(hidden_TD[start:end])
            done += len(twins_of_it)
        yield Event("model", "frozen", done, total or len(tokens.rows))


def states_by_depth(
    frozen: FrozenBlocks, tokens: Tokens, depths: Collection[int], *, tokens_per_batch: int = TOKENS_PER_BATCH
) -> Generator[Event, None, dict[int, States]]:
    """What enters block `depth`, for each of `depths` (from 0 to those frozen), from one pass over all texts."""
    backbone, blocks, dtype = frozen.backbone, frozen.blocks, frozen.dtype
    kept = {depth: room_for(int(tokens.offsets[-1]), backbone.width, dtype, shared_by=len(depths)) for depth in depths}
    device, done = frozen.device, 0
    batches = length_sorted(tokens.lengths, tokens_per_batch=tokens_at_once(tokens_per_batch, device))

    @torch.inference_mode()
    def climb(pieces: np.ndarray) -> None:
        ids, lengths = tokens.ragged(pieces)
        lengths_B = sent(lengths, device)
        hidden = backbone.embed(sent(ids, device), lengths_B).to(dtype)
        context = backbone.context(hidden, lengths_B)
        passed = 0
        for depth in sorted(depths):
            hidden = backbone.run(hidden, context, start=passed, stop=depth, blocks=blocks[passed:depth])
            passed = depth
            texts = hidden[0].cpu()[: lengths.sum()].split(lengths.tolist())
            for hidden_LD, piece in zip(texts, pieces, strict=True):
                start, end = tokens.offsets[piece], tokens.offsets[piece + 1]
                kept[depth][start:end] = hidden_LD
                let_go(kept[depth][start:end])

    for pieces, _ in zip(batches, side_by_side(climb, batches, device=device), strict=True):
        done += len(pieces)
        yield Event("model", "frozen", done, len(tokens.rows))
    return {depth: States(hidden_TD, tokens) for depth, hidden_TD in kept.items()}


def room_for(tokens: int, width: int, dtype: torch.dtype, *, shared_by: int = 1) -> Tensor:
    """Room for states `(T, D)`, in a temporary file where so many sets of them would be large.

    ResourceError where the disk has not got it.
    """
    size = tokens * width * dtype.itemsize
    if size * shared_by <= BYTES_IN_MEMORY:
        return torch.empty(tokens, width, dtype=dtype)
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise _no_room(size, free, folder)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="tagsmith-states-") as file:  # unlinked once it is mapped
        try:
            # Blocks are claimed now: a mapped file with holes would kill the process when the disk fills later.
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise _no_room(size, free, folder) from error
        return torch.from_file(file.name, shared=True, size=tokens * width, dtype=dtype).view(tokens, width)


def _no_room(size: int, free: int, folder: Path) -> ResourceError:
    return ResourceError(
        f"The states of the frozen blocks need {size / 2**30:.1f} GiB; '{folder}' has {free / 2**30:.1f} GiB free. "
        "Set TMPDIR to a larger disk, lower model.max_tokens, or train on fewer rows."
    )
