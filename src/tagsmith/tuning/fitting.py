"""Whether a plan fits into memory and onto the disk, by arithmetic on its counts; and which smaller one would."""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tagsmith.errors import ResourceError
from tagsmith.tuning.plan import FP32, Plan, gib

KERNELS = 2**20, 250
"""oneDNN keeps the kernels it makes for a new shape: about 1 MiB each, of so many shapes at most."""


@dataclass(frozen=True)
class Room:
    """Bytes that are free: of memory, on the disk of the output, on that of temporary files, and whether it is one."""

    memory: int
    output: int
    temporary: int
    is_one_disk: bool = False

    @classmethod
    def beside(cls, output: Path, device: torch.device) -> Room:
        """What is free now; of a GPU the memory of its own."""
        output, temporary = _existing(output), Path(tempfile.gettempdir())
        memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
        free = (shutil.disk_usage(folder).free for folder in (output, temporary))
        return cls(memory, *free, is_one_disk=output.stat().st_dev == temporary.stat().st_dev)


@dataclass(frozen=True)
class Memory:
    """What memory is held before a plan begins, and what an activation takes: bytes of a token in a block that learns.

    Freed memory is hardly ever used again by what comes next (measured: blocks, copies and states differ in size), so
    that the stages of a run add up.
    """

    held: int
    per_token: float
    is_cpu: bool = True

    def added(self, plan: Plan) -> int:
        """Bytes that a plan adds to what is held, at most."""
        block, learning = plan.weights.block, plan.learning
        frozen = (plan.start or 0) * block * plan.dtype.itemsize
        steps = FP32 * (plan.changing + learning * (3 + plan.snapshots))  # untuned; gradients, Adam's two, the best
        seeds = FP32 * plan.changing * (plan.config.tuning.seeds if plan.config.tuning.seeds > 1 else 0)
        soup = 3 * FP32 * plan.changing if plan.config.tuning.soup > 1 else 0  # the start, the sum, the first
        working = max(FP32 * plan.blocks_above * block, self.activations(plan))
        tuning = frozen + steps + seeds + soup + working + plan.states_in("memory") + _kernels(plan)
        return tuning + (self._after(plan) if self.is_cpu else 0)

    def _after(self, plan: Plan) -> int:
        """The saved bundle is loaded again while the tuned classifier is there; then its test rows are measured."""
        packed = FP32 * plan.depth * plan.weights.block + plan.disk["bundle"]  # what is written was cast first
        states = FP32 * plan.width * plan.rows["test"].tokens if plan.start else 0
        return packed + max(FP32 * plan.all_weights, FP32 * plan.changing + states)

    def activations(self, plan: Plan) -> int:
        """What the backward pass of the largest micro-batch needs in all blocks that learn, with casts of weights."""
        blocks = plan.blocks_above
        casts = plan.step_dtype.itemsize * blocks * plan.weights.block if plan.step_dtype.itemsize < FP32 else 0
        per_token = self.per_token * blocks
        if plan.config.tuning.gradient_checkpointing:
            per_token = self.per_token + FP32 * plan.width * blocks
        return casts + round(plan.largest_micro_batch * per_token)

    def after_cutting(self, plan: Plan, smaller: Plan) -> int:
        """Bytes that a smaller plan adds to what is held now; blocks that it leaves out are given back."""
        return self.added(smaller) - FP32 * (plan.all_weights - smaller.all_weights)


def _kernels(plan: Plan) -> int:
    size, most = KERNELS
    return size * min(most, plan.steps_per_epoch + sum(part.distinct for part in plan.rows.values()) // 512)


def require_fit(plan: Plan, memory: Memory, room: Room) -> None:
    """ResourceError where the plan needs more memory or disk than there is; it names the plans that would fit."""
    needed = memory.added(plan)
    if needed > room.memory:
        raise ResourceError(
            f"{_named(plan)} would need {gib(needed)} of memory more than is in use, and {gib(room.memory)} are free. "
            f"{_what_would(fitting(plan, memory, room))}"
        )
    disk = plan.disk
    output, temporary = disk["bundle"] + disk["checkpoint"], disk["file"]
    if output + (temporary if room.is_one_disk else 0) > room.output:
        raise ResourceError(
            f"The bundle may take {gib(disk['bundle'])}, checkpoints {gib(disk['checkpoint'])}"
            + (f" and states of frozen blocks {gib(temporary)}" if room.is_one_disk and temporary else "")
            + f", and the disk of the output has {gib(room.output)} free. Free some space, or choose another disk with "
            "--out."
        )
    if temporary > room.temporary:
        raise ResourceError(
            f"The states of frozen blocks need {gib(temporary)}, and '{tempfile.gettempdir()}' has "
            f"{gib(room.temporary)} free. {_what_would(_fewer_tokens(plan, room))} Or set TMPDIR to a larger disk."
        )


def ran_out(plan: Plan, memory: Memory) -> ResourceError:
    """What to say where a plan that should have fitted did not: which ones need a fifth less."""
    less = Room(memory=memory.added(plan) * 4 // 5, output=0, temporary=0)
    return ResourceError(
        f"Memory ran out. {_named(plan)} should need {gib(memory.added(plan))} more than was in use before; other "
        f"programs may have taken some since. {_what_would(fitting(plan, memory, less))}"
    )


def fitting(plan: Plan, memory: Memory, room: Room) -> list[str]:
    """Settings of which each alone makes the plan fit into memory, the least change of its kind."""
    found = []
    for kind in (_smaller_batches, _checkpointing, _fewer_blocks, _fewer_layers, _head_alone):
        for told, smaller in kind(plan):
            if memory.after_cutting(plan, smaller) <= room.memory:
                found.append(told)
                break
    return found


Smaller = Iterator[tuple[str, Plan]]


def _smaller_batches(plan: Plan) -> Smaller:
    size, least = plan.config.tuning.tokens_per_batch // 2, max(16, int(plan.sizes.max(initial=0)))
    while size >= least:
        yield f"tuning.tokens_per_batch = {size}", plan.with_settings(tokens_per_batch=size)
        size //= 2


def _checkpointing(plan: Plan) -> Smaller:
    if not (plan.config.tuning.gradient_checkpointing or plan.is_probe):
        yield "tuning.gradient_checkpointing = true", plan.with_settings(gradient_checkpointing=True)


def _fewer_blocks(plan: Plan) -> Smaller:
    tuning, prefix = plan.config.tuning, ""
    most = min(tuning.blocks, plan.depth) - 1
    if tuning.method in ("full", "lora", "contrastive"):
        most, prefix = plan.depth, "tuning.method = 'last_layers' with "
    for blocks in range(most if tuning.method != "head" else 0, 0, -1):
        smaller = plan.with_settings(method="last_layers", blocks=blocks)
        yield f"{prefix}tuning.blocks = {blocks}", smaller


def _fewer_layers(plan: Plan) -> Smaller:
    least = plan.config.tuning.blocks if plan.config.tuning.method == "last_layers" else 1
    for depth in range(plan.depth - 1, least - 1, -1):
        yield f"model.layers = {depth}", plan.with_depth(depth)


def _head_alone(plan: Plan) -> Smaller:
    if plan.config.tuning.method != "head":
        yield "tuning.method = 'head'", plan.with_settings(method="head")


def _fewer_tokens(plan: Plan, room: Room) -> list[str]:
    """The limit of tokens at which the states fit, if each text were as long as it."""
    texts = sum(plan.rows[part].texts for part in ("train", "validation", "calibration"))
    most = room.temporary // (texts * plan.width * plan.dtype.itemsize)
    return [f"model.max_tokens = {most}"] if most >= 4 else []


def _what_would(settings: list[str]) -> str:
    if not settings:
        return "No smaller plan with this backbone fits; take a smaller model.backbone, or free some memory."
    *others, last = settings
    return f"Would fit: {', or '.join([', '.join(others), last] if others else [last])}."


def _named(plan: Plan) -> str:
    tuning = plan.config.tuning
    what = f"{plan.blocks_above} of {plan.depth} blocks" if tuning.method == "last_layers" else f"'{tuning.method}'"
    return f"Tuning {what} with {plan.largest_micro_batch} tokens at once"


# ---- What is free


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def _free_memory() -> int:
    return min(psutil.virtual_memory().available, free_in_group())


def free_in_group(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the container's limit leaves, versions 1 and 2 of control groups; a great many where it has none."""
    for folder, limit, used in (
        (root, "memory.max", "memory.current"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        cached = int(statistics.get("inactive_file", statistics.get("total_inactive_file", 0)))  # given up when asked
        return max(0, most - taken + cached)
    return 2**63


def resident() -> int:
    """Bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most memory that this process has held so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
