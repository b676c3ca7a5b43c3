"""Checkpoints of divided weights: each process writes its pieces, and any number of processes goes on from them.

A checkpoint is a folder of safetensors files, PyTorch's distributed checkpoint in its form without pickle, and one of
JSON with the plain data and the SHA-256 of each file. It is written aside and takes its name in a single move; the one
before goes away afterwards. Pieces are cut anew by whoever reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsmith.errors import ResourceError, disk_errno
from tagsmith.tuning.checkpoints import Checkpoint, CheckpointFile, flush, require_same
from tagsmith.tuning.parallel import Ranks

SHARDED = ".shards"
"""What the folder of a seed's checkpoints ends in."""

STATE = "state.json"
UNDIVIDED = "random_state"
"""What begins so is read whole by each process."""


class ShardedCheckpoint(CheckpointFile):
    """As `CheckpointFile`, for a tuning whose processes hold pieces: `path` is a folder with the latest one in it."""

    def __init__(
        self, path: Path, origin: Mapping[str, Any], *, seconds_apart: float | None, mesh: Any, ranks: Ranks
    ) -> None:
        super().__init__(path, origin, seconds_apart=seconds_apart)
        self.mesh, self.ranks = mesh, ranks

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint before; all processes come here. ResourceError where the disk is full."""
        started = time.monotonic()
        try:
            self._write(checkpoint)
        except OSError as error:
            if (number := disk_errno(error)) is None:
                raise
            raise ResourceError(
                f"Cannot write the checkpoint '{self.path}': {os.strerror(number)}. "
                "Free some space, or choose another place with --out."
            ) from error
        self._written(started)

    def _write(self, checkpoint: Checkpoint) -> None:
        from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

        folder = self.path / f"step-{checkpoint.state['step']:08d}"
        aside = folder.with_name(f".{folder.name}")
        if self.ranks.is_first:
            shutil.rmtree(aside, ignore_errors=True)  # left by processes that were killed
            aside.mkdir(parents=True)
        self.ranks.wait()
        tensors = {name: tensor.detach() for name, tensor in checkpoint.tensors.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it speaks of how it works inside
            save(tensors, storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True))
        digests = self._digests(aside)
        if self.ranks.is_first:
            state = {**checkpoint.state, "origin": self.origin, "files": digests}
            (aside / STATE).write_text(json.dumps(state), encoding="utf-8")
            flush(aside / STATE)
            flush(aside)
            shutil.rmtree(folder, ignore_errors=True)
            aside.replace(folder)
            flush(self.path)
            for older in self._found()[1:]:
                shutil.rmtree(older, ignore_errors=True)
        self.ranks.wait()

    def read(self) -> Checkpoint | None:
        """The latest whole one, this process's pieces of it; None where there is none.

        DataError where it belongs to another run.
        """
        self.ranks.wait()
        for folder in self._found():
            if self._is_whole(folder):
                state = json.loads((folder / STATE).read_text(encoding="utf-8"))
                require_same(state["origin"], json.loads(json.dumps(self.origin)), self.path.parent)
                return Checkpoint(self._pieces(folder), state)
        return None

    def _found(self) -> list[Path]:
        """Folders of checkpoints, the latest first."""
        return sorted(self.path.glob("step-*"), reverse=True)

    def _is_whole(self, folder: Path) -> bool:
        """Whether all files are as they were written; each process looks at some of them."""
        try:
            told = json.loads((folder / STATE).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError):
            told = None
        found = self._digests(folder)
        return bool(self.ranks.agreed(told is not None and told == found)[0])

    def _digests(self, folder: Path) -> dict[str, str]:
        """SHA-256 of each file of pieces."""
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        own = {name: _sha256(folder / name) for name in names[self.ranks.number :: self.ranks.count]}
        gathered: list[Any] = [None] * self.ranks.count
        torch.distributed.all_gather_object(gathered, own)
        return {name: digest for each in gathered for name, digest in each.items()}

    def _pieces(self, folder: Path) -> dict[str, Tensor]:
        from torch.distributed.checkpoint import HuggingFaceStorageReader, load
        from torch.distributed.tensor import Shard, zeros

        reader = HuggingFaceStorageReader(str(folder))
        tensors: dict[str, Tensor] = {}
        for name, about in reader.read_metadata().state_dict_metadata.items():
            size, dtype = about.size, about.properties.dtype  # type: ignore[union-attr]
            if name.startswith(UNDIVIDED) or not len(size):
                tensors[name] = torch.zeros(size, dtype=dtype)
            else:
                tensors[name] = zeros(*size, dtype=dtype, device_mesh=self.mesh, placements=[Shard(0)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(tensors, storage_reader=reader)
        return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
