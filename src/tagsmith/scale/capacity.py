"""What a stage takes on many machines, in seconds and money, and where it stops scaling: formulas, and no Ray.

Each formula is one function; units stand in names. What they rest on is `FIGURES`: numbers measured on one machine,
that makers publish, or that are assumed, each with its source. A forecast that needs an assumed one says so.

Legend: N rows, T tokens (or letters) of a row, W weights, E epochs, M machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tagsmith.errors import SettingError

Stage = Literal["prepare", "train", "score"]
STAGES: tuple[Stage, ...] = ("prepare", "train", "score")
Basis = Literal["measured", "published", "assumed"]
GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """A number that forecasts rest on, its unit, whether it was measured, and where."""

    value: float
    unit: str
    basis: Basis
    source: str


FIGURES: Mapping[str, Figure] = {
    "prepare_core_s": Figure(
        25.1e-6, "core-seconds a row", "measured", "docs/benchmarks/data.md: a million rows, 25.1 CPU-seconds"
    ),
    "shuffle_bytes": Figure(
        25 * 8 + 16,
        "bytes a row",
        "measured",
        "25 bands at similarity 0.8, each a key of 8 bytes, and 16 bytes of marks",
    ),
    "linked_share": Figure(
        0.175, "pairs a row", "measured", "docs/benchmarks/data.md: 174,483 of a million rows have a near twin"
    ),
    "cpu_score_flops": Figure(
        0.36e12,
        "FLOP/s of two cores",
        "measured",
        "docs/benchmarks/scoring.md: 88.3 rows/s, 36 tokens, 16 blocks, fp32",
    ),
    "cpu_train_flops": Figure(
        0.22e12, "FLOP/s of two cores", "measured", "docs/benchmarks/speed.md: 658 tokens/s, 56.6 million weights learn"
    ),
    "efficiency": Figure(
        0.92, "of perfect speed", "measured", "two workers on one machine score 1.84 times as fast as one"
    ),
    "start_s": Figure(15.0, "seconds", "assumed", "a cluster that is up: workers start and load a model"),
    "ref_bytes": Figure(1024.0, "bytes of the driver's memory", "assumed", "for each block that a shuffle passes on"),
    "block_bytes": Figure(128 * 2**20, "bytes", "published", "Ray Data's largest block"),
    "store_share": Figure(0.3, "of a machine's memory", "published", "Ray's default for its object store"),
    "storage_bytes_s": Figure(5e9, "bytes/s", "assumed", "what shared storage gives to all machines together"),
    "gpu_use": Figure(0.4, "of its peak", "assumed", "a GPU's share of useful arithmetic; not measured on a GPU yet"),
}
"""Replace one with a figure of your own: every function takes them all."""


@dataclass(frozen=True)
class Machine:
    """One machine: its processors, what they give, what moves between machines, and its price.

    `devices` work side by side: the cores of a CPU machine count as one, GPUs each. `score_flops` and `train_flops` are
    useful arithmetic of one device in FLOP/s; `network_bytes_s` is what a machine sends, and receives, at a time, and
    `link_bytes_s` what a device does within its machine.
    """

    name: str
    cores: int
    devices: int
    memory_bytes: float
    device_bytes: float
    disk_bytes: float
    score_flops: float
    train_flops: float
    network_bytes_s: float
    link_bytes_s: float
    price_per_hour: float


def machines(figures: Mapping[str, Figure] = FIGURES) -> dict[str, Machine]:
    """The machines that a forecast may be made for; prices are assumed, give your own."""
    peak, use = 989e12, figures["gpu_use"].value  # dense bf16 of one H100 SXM, as its maker publishes
    cpu = (figures["cpu_score_flops"].value, figures["cpu_train_flops"].value)
    return {
        "cpu-2": Machine("cpu-2", 2, 1, 8 * GIB, 8 * GIB, 100 * GIB, *cpu, 0.6e9, 0.6e9, 0.1),
        "h100-8": Machine(
            "h100-8", 192, 8, 2048 * GIB, 80 * GIB, 28000 * GIB, use * peak, use * peak, 8 * 50e9, 450e9, 8 * 3.0
        ),
    }


@dataclass(frozen=True)
class Job:
    """What is to be done: `rows` of `tokens` each, by a backbone of `weights`, `learning` of which learn.

    `width` is that of a state; `blocks` of them lie in the model. `row_bytes` is what a row takes in its file.
    """

    stage: Stage
    rows: float
    tokens: float = 40.0
    row_bytes: float = 120.0
    weights: float = 56.6e6
    learning: float = 56.6e6
    epochs: int = 1
    rows_per_step: int = 1024
    width: int = 576
    blocks: int = 16

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "row_bytes", "weights", "epochs", "rows_per_step"):
            if not getattr(self, name) > 0:
                raise SettingError(f"A forecast was asked for {name} = {getattr(self, name):g}. Expected more than 0.")
        if self.learning > self.weights:
            raise SettingError(
                f"{self.learning:g} weights are to learn, of {self.weights:g} that there are. Expected at most all."
            )


@dataclass(frozen=True)
class Limit:
    """Where a stage stops scaling: what is used up, at how many machines or rows, and what to do about it."""

    name: str
    at: float
    unit: Literal["machines", "rows"]
    text: str


@dataclass(frozen=True)
class Capacity:
    """A stage on so many machines: seconds by what they are spent on, money, and its limits.

    Seconds that overlap (arithmetic and network) are not added: `total_s` holds the longer of both. `assumed` names
    the figures that nobody measured.
    """

    job: Job
    machine: Machine
    count: int
    seconds: Mapping[str, float]
    total_s: float
    limits: tuple[Limit, ...]
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = field(default=())

    @property
    def machine_hours(self) -> float:
        """Hours that are paid for."""
        return self.count * self.total_s / 3600

    @property
    def cost(self) -> float:
        """In the currency of the price."""
        return self.machine_hours * self.machine.price_per_hour

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "stage": self.job.stage,
            "rows": self.job.rows,
            "machine": self.machine.name,
            "machines": self.count,
            "seconds": {"total": self.total_s, **self.seconds},
            "machine_hours": self.machine_hours,
            "cost": self.cost,
            "limits": [vars(each) for each in self.limits],
            "notes": list(self.notes),
            "assumed": list(self.assumed),
        }


def capacity(
    job: Job, machine: Machine, *, count: int, figures: Mapping[str, Figure] = FIGURES, price: float | None = None
) -> Capacity:
    """A stage on `count` machines; SettingError where there are fewer than it needs."""
    if count < 1:
        raise SettingError(f"A forecast was asked for {count} machines. Expected one or more.")
    if price is not None:
        if not price >= 0:
            raise SettingError(f"The price of a machine is {price:g} an hour. Expected 0 or more.")
        machine = replace(machine, price_per_hour=price)
    made = {"prepare": prepare_capacity, "train": train_capacity, "score": score_capacity}[job.stage]
    return made(job, machine, count=count, figures=figures)


def measured_here(
    *,
    rows: int,
    prepare_s: float,
    row_bytes: float,
    tokens: float,
    weights: float,
    learning: float,
    score_flops: float,
    train_flops: float,
    cores: int,
    memory_bytes: float,
    disk_bytes: float,
) -> tuple[dict[str, Figure], Machine, Job]:
    """Figures, a machine like this one and a job on rows like these, from what one source showed on this machine."""
    figure = Figure(prepare_s * cores / rows, "core-seconds a row", "measured", f"here, on {rows} rows")
    machine = Machine(
        "this", cores, 1, memory_bytes, memory_bytes, disk_bytes, score_flops, train_flops, 0.6e9, 0.6e9, 0.1
    )
    job = Job("score", rows, tokens=tokens, row_bytes=row_bytes, weights=weights, learning=learning)
    return {**FIGURES, "prepare_core_s": figure}, machine, job


# ---- Prepare: cleaning and near duplicates


def prepare_seconds(rows: float, *, cores: float, core_s: float) -> float:
    """Seconds to clean `rows` and sketch them: N c / cores; measured linear from 10^4 to 10^6 rows."""
    return rows * core_s / cores


def shuffle_seconds(rows: float, *, bytes_each: float, count: int, network_bytes_s: float) -> float:
    """Seconds in which band keys change machines: each sends (M - 1) / M of its N b / M bytes."""
    return rows * bytes_each / count * (count - 1) / count / network_bytes_s


def blocks_of(rows: float, *, bytes_each: float, block_bytes: float) -> int:
    """Blocks that the shuffled bytes lie in."""
    return max(1, math.ceil(rows * bytes_each / block_bytes))


def shuffle_driver_bytes(blocks: int, *, ref_bytes: float) -> float:
    """Memory of the driver for an all-to-all: a reference for each pair of a block sent and a block received."""
    return blocks**2 * ref_bytes


def groups_driver_bytes(rows: float, *, linked_share: float) -> float:
    """Memory of the driver for joining pairs into groups: a number of 8 bytes a row, two of them a linked pair."""
    return 8 * rows + 16 * linked_share * rows


def prepare_capacity(job: Job, machine: Machine, *, count: int, figures: Mapping[str, Figure]) -> Capacity:
    """Rows cleaned, grouped and divided; network and arithmetic overlap."""
    of = {name: figure.value for name, figure in figures.items()}
    share = of["efficiency"] if count > 1 else 1.0
    computed = prepare_seconds(job.rows, cores=machine.cores * count * share, core_s=of["prepare_core_s"])
    moved = shuffle_seconds(
        job.rows, bytes_each=of["shuffle_bytes"], count=count, network_bytes_s=machine.network_bytes_s
    )
    read = job.rows * job.row_bytes / of["storage_bytes_s"]
    store = machine.memory_bytes * of["store_share"]
    spilled = max(0.0, job.rows * of["shuffle_bytes"] - store * count)
    notes = []
    if spilled:
        notes.append(f"{spilled / GIB:.0f} GiB of band keys do not fit into the object stores and go to disks.")
    most_refs = math.isqrt(int(machine.memory_bytes / 2 / of["ref_bytes"])) * of["block_bytes"] / of["shuffle_bytes"]
    each = groups_driver_bytes(1.0, linked_share=of["linked_share"])
    limits = (
        Limit("driver memory: groups", machine.memory_bytes / 2 / each, "rows",
              f"Joining pairs into groups holds {each:.0f} bytes a row in the driver, in half of its memory: give the "
              "driver a larger machine, or take data.near_duplicates = 1 (exact ones only)."),
        Limit("driver memory: shuffle all-to-all", most_refs, "rows",
              "The driver keeps a reference for each pair of blocks, the square of their number: larger blocks, or a "
              "shuffle per band."),
        Limit("object store", job.rows * of["shuffle_bytes"] / store, "machines",
              "With fewer machines band keys spill to disks, which is slower, not wrong: more memory a machine."),
        Limit("network", _even(computed * count, job.rows * of["shuffle_bytes"] / machine.network_bytes_s), "machines",
              "Beyond that, moving band keys takes longer than computing them."),
        Limit("storage", of["storage_bytes_s"] * of["prepare_core_s"] / job.row_bytes / machine.cores, "machines",
              "Beyond that, shared storage gives rows more slowly than machines clean them."),
    )  # fmt: skip
    seconds = {"computing": computed, "network": moved, "reading": read, "starting": of["start_s"]}
    total = max(computed, moved, read) + of["start_s"]
    return _told(job, machine, count, seconds, total, limits, notes, figures)


def _even(computing_s: float, network_s: float) -> float:
    """Machines at which the network takes as long as arithmetic; each of both is given for one machine that does all.

    Both shrink with 1 / M, but the share that changes machines grows as (M - 1) / M: where all of it takes less than
    arithmetic does, no number of machines is too large.
    """
    return math.inf if network_s <= computing_s else 1 / (1 - computing_s / network_s)


# ---- Train


FORWARD, BACKWARD = 2, 4
"""FLOPs of a weight and a token: a product and a sum forth, twice that back (Kaplan et al. 2020, section 2.1)."""


def train_flops(job: Job) -> float:
    """All arithmetic: frozen weights below the learning ones once, forth; learning ones forth and back each epoch."""
    tokens = job.rows * job.tokens
    frozen = job.weights - job.learning
    return tokens * (FORWARD * frozen + job.epochs * (FORWARD + BACKWARD) * job.learning)


def learning_bytes(job: Job) -> float:
    """Of a device: 2 bytes a frozen weight; 20 one that learns, its gradient, two moments and the best so far."""
    return 2 * (job.weights - job.learning) + 20 * job.learning


def state_cache_bytes(job: Job) -> float:
    """States kept of frozen blocks, bf16: N T D 2 bytes; none where every weight learns."""
    return 0.0 if job.learning == job.weights else job.rows * job.tokens * job.width * 2


def step_network_seconds(job: Job, *, bytes_s: float, devices: int, sharded: bool) -> float:
    """Seconds in which gradients change devices in one step.

    A ring all-reduce sends 2 (d - 1) / d of 4 bytes a learning weight; FSDP gathers weights twice and scatters
    gradients once: 4 + 4 + 4 bytes (fp32), each (d - 1) / d (Rajbhandari et al. 2020, section 7).
    """
    if devices == 1:
        return 0.0
    each = (4 + 4) * job.weights + 4 * job.learning if sharded else 2 * 4 * job.learning
    return each * (devices - 1) / devices / bytes_s


def train_capacity(job: Job, machine: Machine, *, count: int, figures: Mapping[str, Figure]) -> Capacity:
    """Steps of a fixed number of rows on all devices; gradients travel while the rest is computed."""
    of = {name: figure.value for name, figure in figures.items()}
    devices = machine.devices * count
    room = 0.8 * machine.device_bytes  # a fifth for activations
    sharded = learning_bytes(job) > room
    if learning_bytes(job) > room * devices:
        least = math.ceil(learning_bytes(job) / room / machine.devices)
        raise SettingError(
            f"{job.weights:g} weights of which {job.learning:g} learn need {learning_bytes(job) / GIB:.0f} GiB on the "
            f"devices, and {count} of '{machine.name}' have {room * devices / GIB:.0f} GiB beside activations. "
            f"Expected {least} machines or more; or let fewer weights learn (tuning.method = lora)."
        )
    steps = job.epochs * math.ceil(job.rows / job.rows_per_step)
    computed = train_flops(job) / machine.train_flops / devices / (of["efficiency"] if count > 1 else 1.0)
    between = machine.network_bytes_s / machine.devices
    per_device = machine.link_bytes_s if count == 1 else between
    moved = steps * step_network_seconds(job, bytes_s=per_device, devices=devices, sharded=sharded)
    cached = state_cache_bytes(job)
    notes = ["weights are sharded over the devices (FSDP)" if sharded else "each device holds all weights (DDP)"]
    if cached > 0.8 * machine.disk_bytes * count:
        notes.append(
            f"States of frozen blocks would take {cached / GIB:.0f} GiB, more than the disks have: frozen blocks "
            "run in every epoch instead."
        )
        again = (job.epochs - 1) * FORWARD * (job.weights - job.learning) * job.rows * job.tokens
        computed *= 1 + again / train_flops(job)
    whole = 2 * steps * step_network_seconds(job, bytes_s=between, devices=2, sharded=sharded)  # (d - 1) / d -> 1
    most = computed * count / whole if whole else math.inf
    limits = (
        Limit("network", most, "machines",
              "Beyond that, a step's gradients take longer to travel than its rows to compute: more rows a step "
              "(tuning.batch_size), or fewer weights that learn."),
        Limit("rows of a step", job.rows_per_step / machine.devices, "machines",
              "Beyond that, some devices have no row in a step."),
        Limit("device memory", learning_bytes(job) / room / machine.devices, "machines",
              "With fewer machines the weights, gradients and moments do not fit."),
        Limit("disk for states", cached / 0.8 / machine.disk_bytes, "machines",
              "With fewer machines the states of frozen blocks do not fit, and are computed in every epoch."),
    )  # fmt: skip
    seconds = {"computing": computed, "network": moved, "starting": of["start_s"]}
    return _told(job, machine, count, seconds, max(computed, moved) + of["start_s"], limits, notes, figures)


# ---- Score


def score_seconds(job: Job, *, flops: float) -> float:
    """Seconds of the forward pass: 2 W T N / F; attention's own products are left out (under 5 % below 500 tokens)."""
    return FORWARD * job.weights * job.tokens * job.rows / flops


def score_capacity(job: Job, machine: Machine, *, count: int, figures: Mapping[str, Figure]) -> Capacity:
    """Rows labelled, part by part; reading, computing and writing overlap."""
    of = {name: figure.value for name, figure in figures.items()}
    share = of["efficiency"] if count > 1 else 1.0
    flops = machine.score_flops * machine.devices
    computed = score_seconds(job, flops=flops * count * share)
    read = 2 * job.rows * job.row_bytes / of["storage_bytes_s"]  # rows are read and written with their labels
    alone = score_seconds(job, flops=flops)
    limits = (
        Limit("storage", alone / read, "machines", "Beyond that, shared storage is slower than the machines together."),
        Limit("starting", alone / (9 * of["start_s"]), "machines",
              "Beyond that, loading the model takes over a tenth of the time."),
        Limit("driver memory: finished rows", machine.memory_bytes / 2 / 8, "rows",
              "Ray Data's own checkpoints hold 8 bytes a finished row; Tagsmith's journal a line a part, and has no "
              "such limit."),
    )  # fmt: skip
    seconds = {"computing": computed, "storage": read, "starting": of["start_s"]}
    return _told(job, machine, count, seconds, max(computed, read) + of["start_s"], limits, [], figures)


_USED = {
    "prepare": ("prepare_core_s", "shuffle_bytes", "linked_share", "ref_bytes", "block_bytes", "store_share"),
    "train": (),
    "score": (),
}


def _told(
    job: Job,
    machine: Machine,
    count: int,
    seconds: Mapping[str, float],
    total: float,
    limits: tuple[Limit, ...],
    notes: list[str],
    figures: Mapping[str, Figure],
) -> Capacity:
    used = [*_USED[job.stage], "start_s", *(["efficiency"] if count > 1 else [])]
    if job.stage != "train":
        used.append("storage_bytes_s")
    if job.stage != "prepare" and machine.name.startswith("h100"):
        used.append("gpu_use")
    assumed = tuple(name for name in used if figures[name].basis == "assumed")
    return Capacity(job, machine, count, seconds, total, limits, tuple(notes), assumed)
