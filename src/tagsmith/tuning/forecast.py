"""Before the first step: how long a run will take, how much memory and disk, from a few measured batches.

A few batches pass a few blocks, and a few steps are made with a copy of the weights that learn; no weight and no random
state of the run is touched. What is measured is the code that will run, on texts of the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tagsmith.config import Config
from tagsmith.data.encoding import Tokens
from tagsmith.errors import is_out_of_memory
from tagsmith.events import Event, listened, silent
from tagsmith.labels import Labels
from tagsmith.model.activations import TOKENS_PER_BATCH, FrozenBlocks, States, frozen_states
from tagsmith.model.beginnings import alike, computed_tokens
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import device_of, tokens_at_once
from tagsmith.tuning.fitting import Memory, Room, ran_out, require_fit, resident
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import Loop, state_cache
from tagsmith.tuning.methods import cut_copy
from tagsmith.tuning.plan import TUNED, Plan, gib, plan_of
from tagsmith.tuning.probes import EARLY_STEPS, FOLDS, MOST_STEPS, STRENGTHS, fit_probe

BLOCKS_TIMED, SECONDS_EACH = 4, 0.2
"""A pass is timed on so many blocks, for about so long."""

QUICK_STEPS, SLOW_STEPS, SLOW = 6, 3, 0.3
"""Steps are timed after a round to warm up, and are so many that their kernels do not all stay in oneDNN's cache, as
those of a run do not. Where one takes longer than `SLOW` seconds that matters little, and a few are timed at once."""

PRUNED = 0.15
"""The cost of a last block on one row a text, against that of a block on all of them: keys and values remain."""

PROBE_ROWS = 20_000


@dataclass(frozen=True)
class Pace:
    """Seconds of a token in a pass: through each `block`, and `once` for what its batch asks for whatever the depth.

    Above all oneDNN makes a kernel for each product of a new shape, which serves all blocks.
    """

    block: float
    once: float

    def seconds(self, tokens: int, *, blocks: float) -> float:
        """Of a pass of so many tokens through so many blocks."""
        return tokens * (blocks * self.block + self.once * (blocks > 0))


@dataclass(frozen=True)
class Speed:
    """What was measured, in seconds.

    A pass in the arithmetic of the frozen blocks, and one in fp32 as answers are computed; the packing of a block, a
    step, the fitting of a probe.
    """

    frozen: Pace
    scored: Pace
    packing: float
    step: float
    probe: float


@dataclass(frozen=True)
class Forecast:
    """The plan, its seconds by what they are spent on, and what its memory follows from.

    `seconds` are those of all epochs; early stopping may save some, down to `least_seconds`. `made_at` is when
    (`time.perf_counter`), `took` how long measuring was.
    """

    plan: Plan
    seconds: Mapping[str, float]
    memory: Memory
    made_at: float
    took: float
    speed: Speed

    @property
    def total(self) -> float:
        """Seconds from the start of tuning to the saved bundle with its report."""
        return sum(self.seconds.values())

    @property
    def least_seconds(self) -> float:
        """The same, if no evaluation after the first one were better."""
        learning = self.seconds["steps"] + self.seconds["evaluations"]
        return self.total - (1 - self.plan.least_share) * learning

    @property
    def seconds_since(self) -> float:
        """Seconds that have passed since it was made."""
        return time.perf_counter() - self.made_at

    @property
    def memory_bytes(self) -> int:
        """The most that the process will hold."""
        return self.memory.held + self.memory.added(self.plan)

    @property
    def disk_bytes(self) -> int:
        """All that the run may write at a time."""
        return sum(self.plan.disk.values())

    @property
    def told(self) -> str:
        """All of it in words, the longest part of the time first."""
        parts = sorted(((seconds, name) for name, seconds in self.seconds.items() if seconds >= 1), reverse=True)
        named = {
            "frozen": "frozen blocks",
            "steps": f"{self.plan.steps} steps",
            "test": "scoring",
            "baselines": "TF-IDF",
        }
        spent = ", ".join(f"{named.get(name, name)} {lasting(seconds)}" for seconds, name in parts)
        sooner = f"; {lasting(self.least_seconds)} if it stops as early as it can"
        return (
            f"Forecast: about {lasting(self.total)}{f' ({spent})' if spent else ''}"
            f"{sooner if self.least_seconds < 0.9 * self.total else ''}, {gib(self.memory_bytes)} of memory, "
            f"{gib(self.disk_bytes)} of disk. {self.plan.states_told}"
        )

    def event(self) -> Event:
        """What listeners are told."""
        values = {"seconds": self.total, "least_seconds": self.least_seconds, "steps": self.plan.steps}
        values |= {f"seconds.{name}": seconds for name, seconds in self.seconds.items()}
        values |= {"memory_bytes": self.memory_bytes, "disk_bytes": self.disk_bytes}
        return Event("tuning", "forecast", values={**values, "text": self.told})

    def as_dict(self) -> dict[str, Any]:
        """What run.json says: measured, and so another each time."""
        rounded = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return {
            "seconds": {"total": round(self.total, 3), "least": round(self.least_seconds, 3), **rounded},
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "took": round(self.took, 3),
        }


@dataclass(frozen=True)
class Foretold:
    """The forecast of a source, and what preparing it showed: its rows, their seconds, the bytes of a text."""

    forecast: Forecast
    rows: int
    data_s: float
    row_bytes: float

    @property
    def tokens(self) -> float:
        """Tokens of a training text, in the mean."""
        return float(self.forecast.plan.sizes.mean())

    @property
    def score_flops(self) -> float:
        """Useful arithmetic of a pass as answers are computed, in FLOP/s: 2 a weight and a token."""
        return 2 * self.forecast.plan.weights.block / self.forecast.speed.scored.block

    @property
    def train_flops(self) -> float:
        """The same of a step, which goes forth and back: 6 a weight and a token; that of a pass where none is made."""
        plan, step = self.forecast.plan, self.forecast.speed.step
        tokens = float(plan.sizes.sum()) / max(1, plan.steps_per_epoch)
        return 6 * plan.blocks_above * plan.weights.block * tokens / step if step else self.score_flops


def make_forecast(
    classifier: Classifier,
    parts: Mapping[str, Part],
    config: Config,
    *,
    letters: int,
    output: Path,
    room: Room | None = None,
    is_passed: bool = False,
) -> Forecast:
    """What tuning on `parts` (the four of a run) and everything after it will take.

    Args:
        letters: of all training texts, for the time of TF-IDF.
        output: where the bundle will lie.
        room: what is free; found out when it is not given.
        is_passed: whether all rows have been through the frozen blocks already, to choose the depth.

    ResourceError when it will not fit, with the settings that would.
    """
    started, held, device = time.perf_counter(), resident(), device_of(classifier)
    plan = replace(plan_of(classifier, parts, config), is_passed=is_passed)
    room = room or Room.beside(output, device)
    require_fit(plan, Memory(held, 0.0, device.type == "cpu"), room)  # what measuring itself needs, at the least
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        speed, per_token = _measured(classifier, parts, plan)
    memory = Memory(held, per_token, device.type == "cpu")
    require_fit(plan, memory, room)
    now = time.perf_counter()
    is_known = is_passed or plan.kept("train") == "cache" and _is_cached(classifier, parts["train"].tokens, plan)
    seconds = _seconds(plan, speed, letters=letters, labels=classifier.labels, is_known=is_known)
    return Forecast(plan, seconds, memory, made_at=now, took=now - started, speed=speed)


@contextmanager
def refused_where_memory_ends(forecast: Forecast | None) -> Iterator[None]:
    """Within the block a failed allocation becomes a ResourceError, with the settings that need a fifth less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if forecast is None or not is_out_of_memory(error):
            raise
        raise ran_out(forecast.plan, forecast.memory) from error


def lasting(seconds: float) -> str:
    """A time in words: `45 s`, `2 min 5 s`, `3 h 20 min`."""
    whole = max(1, round(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


# ---- From what was measured to the whole


def _seconds(plan: Plan, speed: Speed, *, letters: int, labels: Labels, is_known: bool) -> dict[str, float]:
    rows, top = plan.rows, _blocks_run(plan)

    def scored(*names: str) -> float:
        """fp32 from the states on (or from the tokens, where none are kept), with a fresh packed copy."""
        tokens = sum(rows[name].tokens if plan.start else rows[name].distinct for name in names)
        return tokens * top * speed.scored.block + len(names) * speed.packing * plan.blocks_above

    frozen = speed.frozen.seconds(sum(rows[name].computed for name in TUNED), blocks=plan.start or 0)
    test = speed.scored.seconds(rows["test"].computed, blocks=plan.start or 0)
    saved = 4 * plan.all_weights / SAVED_PER_SECOND + speed.packing * plan.depth
    # For calibration and the discordance with TF-IDF; and for the thresholds of the tuned and the untuned weights.
    held_out = (3 if labels.multi_label else 1) * scored("validation", "calibration")
    book = 2 * scored("train", "validation") if plan.config.data.split == "book" else 0.0
    return {
        "frozen": (0.0 if is_known else frozen) + (3 * 4 * plan.all_weights / HASHED_PER_SECOND if plan.start else 0.0),
        "steps": plan.steps * speed.step + plan.config.tuning.seeds * plan.config.tuning.soup * speed.probe,
        "evaluations": plan.evaluations * scored("validation"),
        "test": test + (1 + plan.config.tuning.seeds) * scored("test") + held_out + book,
        "baselines": letters * _lexical_seconds_per_letter(len(labels)),
        "saving": saved + PAGE_SECONDS,
    }


SAVED_PER_SECOND, HASHED_PER_SECOND, PAGE_SECONDS = 4e8, 1.2e9, 1.5
"""Bytes of weights that are written, hashed and loaded again, bytes that are hashed, and the page with its intervals:
measured on two cores of an AMD EPYC with a disk of 1 GB/s."""


def _lexical_seconds_per_letter(labels: int) -> float:
    """The time of TF-IDF with its three folds; above 50 labels it is a support vector machine.

    Fitted on sms_spam, trec6, emotion, ag_news, imdb, banking77 and clinc150, on one core of an AMD EPYC.
    """
    if labels <= 2:
        return 4e-6
    return 6e-6 * labels if labels <= 50 else 4.5e-7 * labels


def _blocks_run(plan: Plan) -> float:
    """Blocks that a text passes when it is scored from the first tuned one on."""
    return plan.blocks_above - (1 - PRUNED) * (plan.reads_last_row and plan.blocks_above > 0)


def _is_cached(classifier: Classifier, tokens: Tokens, plan: Plan) -> bool:
    """Whether an earlier run has kept the states of these texts: no more than a look, the file is not read."""
    cache = state_cache(plan.config)
    if cache is None or cache.is_empty:
        return False
    frozen = FrozenBlocks(classifier.backbone, stop=plan.start or 0, dtype=plan.dtype, blocks=nn.ModuleList())
    return cache.has(frozen.key(tokens), size=plan.states_of("train"))


# ---- Measuring


def _measured(classifier: Classifier, parts: Mapping[str, Part], plan: Plan) -> tuple[Speed, float]:
    """Seconds, and the bytes that a token's activations take in a block that learns."""
    scored, packing = pass_seconds(classifier, parts["train"].tokens, dtype=torch.float32)
    frozen = scored
    if plan.start and plan.dtype is not torch.float32:
        frozen, _ = pass_seconds(classifier, parts["train"].tokens, dtype=plan.dtype)
    step, per_token = (
        (0.0, 0.0) if plan.is_probe else step_seconds(classifier, parts["train"], plan, token=frozen.block)
    )
    return Speed(frozen, scored, packing, step, _probe_seconds(plan, labels=len(classifier.labels))), per_token


def pass_seconds(classifier: Classifier, tokens: Tokens, *, dtype: torch.dtype) -> tuple[Pace, float]:
    """The pace of a pass, over texts of all lengths, and the seconds that packing a block takes.

    The same texts pass twice: the first time is what a batch costs, the second what its blocks do.
    """
    started = time.perf_counter()
    stop = min(BLOCKS_TIMED, classifier.backbone.depth)
    frozen = FrozenBlocks(classifier.backbone, stop=stop, dtype=dtype)
    packing = (time.perf_counter() - started) / stop
    pieces, _ = tokens.distinct()
    at_once = tokens_at_once(TOKENS_PER_BATCH, frozen.device)
    batches = alike(tokens, pieces, tokens_per_batch=at_once, shares=frozen.shares)

    def passing(texts: Tokens) -> float:
        started = time.perf_counter()
        listened(frozen_states(frozen, texts), silent)
        return time.perf_counter() - started

    first = second = 0.0
    computed = 0
    for number, chosen in enumerate(spread(len(batches), at_once=min(len(batches), torch.get_num_threads()))):
        some = tokens.of_texts(np.unique(tokens.rows[np.concatenate([batches[i] for i in chosen])]))
        cold, warm = passing(some), passing(some)
        if not number:  # threads start, and libraries find their way
            continue
        first, second = first + cold, second + warm
        again = alike(some, np.arange(len(some.rows)), tokens_per_batch=at_once, shares=frozen.shares)
        computed += computed_tokens(some, again, shares=frozen.shares)
        if first + second > SECONDS_EACH:
            break
    return Pace(second / computed / stop, max(0.0, first - second) / computed), packing


def spread(count: int, *, at_once: int) -> Iterator[list[int]]:
    """Places among `count`, so many at once, evenly spread; each round lies between those before."""
    for shift in (1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8):
        yield [int((i + shift) / at_once * count) for i in range(at_once)]


def step_seconds(classifier: Classifier, part: Part, plan: Plan, *, token: float) -> tuple[float, float]:
    """Seconds of a step, and the bytes that a token's activations take in a block that learns.

    The loop itself makes steps of the run, from short to long, on a copy of the weights that learn. `token` are the
    seconds of one through a frozen block: three times as much is a guess at what it takes to learn from it.
    """
    is_slow = 3 * token * plan.blocks_above * plan.sizes.sum() / len(plan.step_rows) > SLOW
    loop = _trial(classifier, part, plan, steps=SLOW_STEPS if is_slow else QUICK_STEPS)
    count, saved, seconds = loop.steps_per_epoch, SavedTensors(loop.classifier), []
    events, before = loop.events(), time.perf_counter()
    while len(seconds) < (count if is_slow else 2 * count):
        with saved if len(seconds) < count else nullcontext():
            event = next(events, None)
        if event is None:  # a text alone has nothing to be contrasted with: its step was left out
            break
        now = time.perf_counter()
        if event.name in ("step", "contrast"):
            seconds.append(now - before)
        before = now
    events.close()
    recomputed = 4 / 3 if plan.config.tuning.gradient_checkpointing else 1.0
    tokens = int(loop.parts["train"].tokens.lengths.sum())
    last = seconds[-count:]
    return recomputed * sum(last) / len(last), saved.bytes / tokens / max(1, plan.blocks_above)


def _trial(classifier: Classifier, part: Part, plan: Plan, *, steps: int) -> Loop:
    """A loop over a few steps of the plan. Its states are random numbers: time does not depend on them."""
    places = next(spread(len(plan.step_rows), at_once=min(len(plan.step_rows), steps)))
    rows = np.concatenate([plan.step_rows[i] for i in places])
    parts = {"train": _some(part, rows), "validation": _some(part, rows[:1])}
    short = {"epochs": 2, "evaluations_per_epoch": 1, "patience": 99, "start": "random", "seeds": 1}
    plain = {"gradient_checkpointing": False, "compile": False}
    config = plan.config.with_settings({"tuning": short | plain})
    trial = cut_copy(classifier, plan.depth, start=plan.start)
    loop = Loop(trial, parts, config, metric=lambda truth, probs: 0.0)
    if plan.start:
        loop.tuned.states = {name: _random_states(own.tokens, plan) for name, own in parts.items()}
    return loop


def _some(part: Part, rows: np.ndarray) -> Part:
    return Part(part.tokens.of_texts(rows), part.truth[rows])


def _random_states(tokens: Tokens, plan: Plan) -> States:
    return States(torch.randn(int(tokens.offsets[-1]), plan.width, dtype=plan.dtype), tokens)


class SavedTensors(saved_tensors_hooks):
    """Within a block of `with`: the bytes of all that is kept for a backward pass beside weights and casts of them.

    What several operations keep counts once; addresses are used anew after a backward pass.
    """

    def __init__(self, weights: nn.Module) -> None:
        shapes = [tuple(weight.shape) for weight in weights.parameters()]
        self._weights = {*shapes, *(shape[::-1] for shape in shapes)}
        self.bytes, self._known, self._is_backward = 0, set[int](), False
        super().__init__(self._keep, self._give)

    def _keep(self, tensor: Tensor) -> Tensor:
        if self._is_backward:
            self._known.clear()
            self._is_backward = False
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known and tuple(tensor.shape) not in self._weights:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def _give(self, tensor: Tensor) -> Tensor:
        self._is_backward = True
        return tensor


def _probe_seconds(plan: Plan, *, labels: int) -> float:
    """Seconds of fitting a head to frozen states, from a few evaluations of its loss on random ones."""
    if not (plan.is_probe or plan.config.tuning.start == "probe"):
        return 0.0
    rows, trial_steps = min(len(plan.sizes), PROBE_ROWS), 8
    pooled_ND, truth_N = torch.randn(rows, plan.width), torch.randint(labels, (rows,))
    started = time.perf_counter()
    fit_probe(pooled_ND, truth_N, classes=labels, strength=1.0, steps=trial_steps)
    seconds = (time.perf_counter() - started) / trial_steps * len(plan.sizes) / rows
    held_in = (FOLDS - 1) / FOLDS
    last = MOST_STEPS if plan.is_probe else EARLY_STEPS
    return seconds * (len(STRENGTHS) * FOLDS * held_in * MOST_STEPS + last)
