"""States of frozen blocks on disk, from one run to the next: another seed, another method, the same pass.

An entry is one file: the states as they lie in memory, then the SHA-256 of them. It takes its name when it is whole, so
that a process killed at any moment leaves nothing that would be read. Whoever can read the cache can guess at the texts
that the states came from; the folder is the user's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.data.encoding import Tokens
from tagsmith.model.device import device_of, name_of

SUFFIX, DIGEST_BYTES = ".states", 32
OLDEST_DAYS = 14
FORMAT = 3


@dataclass(frozen=True)
class StateCache:
    """A folder of kept states, at most `most_bytes` in all; the entries used longest ago go first."""

    folder: Path
    most_bytes: int

    def find(self, key: str, *, tokens: int, width: int, dtype: torch.dtype) -> Tensor | None:
        """The states `(T, D)` kept under a key, mapped into memory; None where there are none, or they are damaged."""
        path, size = self._path(key), tokens * width * dtype.itemsize
        try:
            whole = path.stat().st_size == size + DIGEST_BYTES and _digest(path, size) == _stored_digest(path)
            if not whole:
                path.unlink()
                return None
            os.utime(path)
        except OSError:
            return None
        return torch.from_file(str(path), shared=False, size=tokens * width, dtype=dtype).view(tokens, width)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept at all."""
        return next(self._entries(), None) is None

    def has(self, key: str, *, size: int) -> bool:
        """Whether states of so many bytes are kept under a key; that they are whole is for `find` to say."""
        path = self._path(key)
        return path.is_file() and path.stat().st_size == size + DIGEST_BYTES

    @contextmanager
    def filling(self, key: str, *, tokens: int, width: int, dtype: torch.dtype) -> Iterator[Tensor | None]:
        """Room for states `(T, D)` that are kept when the block ends well; None where they would not fit."""
        size = tokens * width * dtype.itemsize
        if not size or not self._make_room(size + DIGEST_BYTES):
            yield None
            return
        try:
            number, name = tempfile.mkstemp(dir=self.folder, prefix=".filling-")
        except OSError:
            yield None
            return
        aside = Path(name)
        try:
            try:
                # Blocks are claimed now: a mapped file with holes would kill the process when the disk fills later.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(number, 0, size + DIGEST_BYTES)
                else:
                    os.truncate(number, size + DIGEST_BYTES)
            except OSError:
                yield None
                return
            hidden_TD = torch.from_file(name, shared=True, size=tokens * width, dtype=dtype).view(tokens, width)
            yield hidden_TD
            with contextlib.suppress(OSError):  # what was computed stays mapped: this run goes on, the next begins anew
                _seal(number, aside, size)
                aside.replace(self._path(key))
        finally:
            os.close(number)
            aside.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _make_room(self, size: int) -> bool:
        """Whether so many bytes fit, after those have gone that are old or used longest ago."""
        if size > self.most_bytes:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            self._sweep()
            entries = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._entries())
        except OSError:
            return False
        total, now = sum(entry[1] for entry in entries), time.time()
        for used_at, own, path in entries:
            if total + size > self.most_bytes or now - used_at > OLDEST_DAYS * 86400:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= own
        return True

    def _entries(self) -> Iterator[Path]:
        return self.folder.glob(f"*{SUFFIX}")

    def _sweep(self) -> None:
        """Remove what killed processes have left half filled, a day after."""
        for path in self.folder.glob(".filling-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 86400:
                    path.unlink()


def key_of(
    weights: nn.Module, tokens: Tokens, *, architecture: str, stop: int, dtype: torch.dtype, tokens_per_batch: int
) -> str:
    """What states depend on, as a SHA-256: weights, architecture and depth, tokens, and the arithmetic."""
    digest = hashlib.sha256(f"{FORMAT} {stop} {dtype} {tokens_per_batch} {torch.__version__} {architecture}".encode())
    digest.update(f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}".encode())
    if (device := device_of(weights)).type != "cpu":
        digest.update(name_of(device).encode())
    for name, weight in sorted(weights.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes_of(weight))
    for array in (tokens.ids, tokens.offsets):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _bytes_of(weight: Tensor) -> memoryview:
    return weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _digest(path: Path, size: int) -> bytes:
    digest, left = hashlib.sha256(), size
    with path.open("rb") as file:
        while left:
            chunk = file.read(min(left, 2**22))
            if not chunk:
                break
            digest.update(chunk)
            left -= len(chunk)
    return digest.digest()


def _stored_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-DIGEST_BYTES, os.SEEK_END)
        return file.read()


def _seal(number: int, path: Path, size: int) -> None:
    os.pwrite(number, _digest(path, size), size)
    os.fsync(number)
