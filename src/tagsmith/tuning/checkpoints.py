"""Whole checkpoints or none: weights, averages, optimizer, random state, position, and the run that they belong to.

A checkpoint is one safetensors file, its plain data as JSON in the metadata. It is written aside, flushed, and takes
the name of the one before it in a single move, so that a process killed at any moment, or another one that works on
the same folder, leaves a whole one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from tagsmith.config import Config
from tagsmith.errors import DataError, ResourceError, disk_errno
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import device_of, name_of
from tagsmith.tuning.learner import Part
from tagsmith.tuning.parallel import ranks_here

SECONDS_APART = 30.0
"""What a crash may cost, about, unless asked otherwise; more where writing is slow, see `MOST_SHARE`."""

MOST_SHARE = 0.05
"""The part of a tuning's time that writing checkpoints may take."""

LEFTOVER_SECONDS = 3600
"""A file still being written has just been touched; an older one was left by a process that was killed."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a loop needs to go on as if it had never stopped; `state` is plain data."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


class CheckpointFile:
    """Where a tuning keeps its latest checkpoint, what it belongs to, and when the next one is due."""

    def __init__(self, path: Path, origin: Mapping[str, Any], *, seconds_apart: float | None = None) -> None:
        self.path, self.origin = path, origin
        self._apart = SECONDS_APART if seconds_apart is None else seconds_apart
        self._written_at, self._cost = time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        """Whether losing what was done since the last one would cost more than writing does."""
        return time.monotonic() - self._written_at >= max(self._apart, self._cost / MOST_SHARE)

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint before; ResourceError as in `save_checkpoint`."""
        started = time.monotonic()
        save_checkpoint(self.path, Checkpoint(checkpoint.tensors, {**checkpoint.state, "origin": self.origin}))
        self._written(started)

    def _written(self, started: float) -> None:
        self._written_at = time.monotonic()
        self._cost = self._written_at - started

    def read(self) -> Checkpoint | None:
        """The checkpoint, None where there is none that is whole; DataError where it belongs to another run."""
        found = load_checkpoint(self.path)
        if found is not None:
            require_same(found.state["origin"], _plain(self.origin), self.path.parent)
        return found


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write aside, flush, take the name: a reader finds the old checkpoint or the new one, never a mixture or none.

    ResourceError when the disk is full or cannot be written; the old checkpoint stays.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        _write(aside, checkpoint)
        aside.replace(path)
        flush(path.parent)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        number = disk_errno(error)
        if number is None:
            raise
        raise ResourceError(
            f"Cannot write the checkpoint '{path}': {os.strerror(number)}. "
            "Free some space, or choose another place with --out."
        ) from error


def _sweep(folder: Path) -> None:
    for aside in folder.glob(".*"):  # ours, and the one that safetensors writes before it takes the name it was given
        with contextlib.suppress(FileNotFoundError):  # another process may sweep too
            if time.time() - aside.stat().st_mtime > LEFTOVER_SECONDS:
                aside.unlink()


def _write(aside: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps(checkpoint.state)
    save_file(tensors, aside, metadata={"state": state, "sha256": _digest(tensors, state)})
    flush(aside)


def flush(path: Path) -> None:
    """See that a file, or the names in a folder, outlive a loss of power."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in a file; None where there is none, or it was truncated or altered."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (FileNotFoundError, SafetensorError):
        return None
    state = about.get("state", "")
    if about.get("sha256") != _digest(tensors, state):
        return None
    return Checkpoint(tensors, json.loads(state))


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoints of a run that needs them no longer."""
    shutil.rmtree(folder, ignore_errors=True)


# ---- What a checkpoint belongs to


def origin_of(
    classifier: Classifier, parts: Mapping[str, Part], config: Config, *, class_weights_C: Tensor | None
) -> dict[str, Any]:
    """All that decides on the bytes of a tuning, as plain data: weights, rows, settings, and how the processor adds.

    Call it before the first step.
    """
    sums = [weight.detach().cpu().sum(dtype=torch.float64) for weight in classifier.parameters()]
    weights = [] if class_weights_C is None else class_weights_C.tolist()
    return {
        "settings": _flat(config.model_dump(mode="json")),
        "weights": _hash(torch.stack(sums).numpy()),
        "rows": {name: _hash_of(part) for name, part in parts.items()},
        "labels": {"names": list(classifier.labels.names), "weights": weights},
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": name_of(device_of(classifier)),
        "processes": ranks_here().count,
    }


def _hash_of(part: Part) -> str:
    shares = [] if part.shares is None else [part.shares]
    return _hash(part.tokens.ids, part.tokens.offsets, part.truth, *shares)


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        is_section = isinstance(value, Mapping) and not prefix
        flat |= _flat(value, f"{name}.") if is_section else {name: value}
    return flat


def _plain(origin: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(origin))


def require_same(was: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """DataError, which names what differs, unless a checkpoint belongs to this run."""
    found = list(_differences(was, now))
    if found:
        raise DataError(
            f"The checkpoint in '{folder}' belongs to another run: {'; '.join(found)}. "
            "Expected the data, settings and machine that it was made with; restore them, or train anew without "
            "--resume."
        )


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was, in words; settings that change no byte of a tuning may differ."""
    other_rows = [name for name in {**was["rows"], **now["rows"]} if was["rows"].get(name) != now["rows"].get(name)]
    for name in {**was["settings"], **now["settings"]}:
        before, after = (origin["settings"].get(name) for origin in (was, now))
        if before != after and (_decides(name) or (other_rows and name.startswith("data."))):
            yield f"{name} was {_shown(before)} and is now {_shown(after)}"
    if other_rows:
        yield f"the {' and '.join(other_rows)} rows are others"
    if was["labels"] != now["labels"]:
        yield "the labels or their weights are others"
    if was["weights"] != now["weights"]:
        yield "the weights before tuning are others"
    is_elastic = now["settings"].get("tuning.elastic", False)
    for name, noun in _MACHINE.items():
        if was.get(name) != now[name] and not (is_elastic and name in _ROUNDING):
            yield f"the {noun} was {was.get(name)} and is now {now[name]}"


_MACHINE = {
    "threads": "number of threads",
    "instructions": "processor's set of instructions",
    "device": "device",
    "processes": "number of processes",
}

_ROUNDING = ("threads", "instructions", "processes")
"""What changes the order of sums alone, and may differ where `tuning.elastic` asks for no more than that."""


def _decides(name: str) -> bool:
    """Whether a setting may change a byte of a tuning; those of the data do so through the rows alone."""
    if name in (
        "tuning.seeds",
        "tuning.soup",
        "tuning.cache_gib",
        "tuning.elastic",
        "tuning.checkpoint_s",
        "tuning.device",
        "tuning.sharding",
    ):  # which device it is, the origin says by itself
        return False
    return name in ("seed", "evaluation.metric") or name.startswith(("model.", "tuning."))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]} ..."


# ---- What lies in one


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors under flat names `optimizer.<weight>.<key>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{key}": torch.as_tensor(value) for i, values in state.items() for key, value in values.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of `pack_optimizer` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            state.setdefault(int(i), {})[key] = tensor
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
