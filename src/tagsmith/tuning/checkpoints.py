"""Whole checkpoints or none: weights, best weights, optimizer, random state and position; safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tagsmith.errors import DataError, ResourceError, disk_errno

FILES = ("tensors.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """All that a loop needs to go on as if it had never stopped."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write aside, flush, rename: a reader finds the old checkpoint or the new one, never a mixture.

    ResourceError when the disk is full or cannot be written; the old checkpoint stays.
    """
    aside = folder.with_name(f"{folder.name}.new-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(aside, checkpoint)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        number = disk_errno(error)
        if number is None:
            raise
        raise ResourceError(
            f"Cannot write the checkpoint '{folder}': {os.strerror(number)}. "
            "Free some space, or choose another place with --out."
        ) from error
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(aside: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save_file

    aside.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, aside / FILES[0])
    state = {**checkpoint.state, "sha256": hashlib.sha256((aside / FILES[0]).read_bytes()).hexdigest()}
    (aside / FILES[1]).write_text(json.dumps(state), encoding="utf-8")
    for name in FILES:
        with (aside / name).open("rb") as file:
            os.fsync(file.fileno())


def load_checkpoint(folder: Path, *, fingerprint: str) -> Checkpoint | None:
    """The checkpoint in `folder`, or the one before it, or None.

    Raises:
        DataError: it belongs to other data or other settings, as `fingerprint` tells.
    """
    from safetensors.torch import load_file

    for candidate in (folder, folder.with_name(f"{folder.name}.old")):
        tensors, state = candidate / FILES[0], candidate / FILES[1]
        if not (tensors.is_file() and state.is_file()):
            continue
        try:
            values = json.loads(state.read_bytes())
        except ValueError:  # truncated
            continue
        if hashlib.sha256(tensors.read_bytes()).hexdigest() != values["sha256"]:
            continue
        if values["fingerprint"] != fingerprint:
            raise DataError(
                f"The checkpoint in '{folder}' belongs to other data, settings, or thread count. "
                "Expected the ones it was made with; restore them, or train anew without --resume."
            )
        return Checkpoint(load_file(tensors), values)
    return None


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that is no longer needed."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.with_name(f"{folder.name}.old"), ignore_errors=True)


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
