"""What a tuning will compute and keep, counted before its first step; the same run has the same plan.

Nothing here is measured and nothing is allocated, so that other plans can be asked whether they would fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from tagsmith.config import Config
from tagsmith.data.batching import packed, training_steps
from tagsmith.data.encoding import Tokens
from tagsmith.model.activations import BYTES_IN_MEMORY, TOKENS_PER_BATCH
from tagsmith.model.adapters import adapted_layers
from tagsmith.model.backbone import Backbone
from tagsmith.model.beginnings import alike, computed_tokens
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import arithmetic, device_of
from tagsmith.model.heads import LinearHead
from tagsmith.tuning.learner import Part
from tagsmith.tuning.methods import first_tuned_block, step_arithmetic

GIB = 2**30
FP32 = 4
Kept = Literal["cache", "memory", "file", "none"]
"""Where states of frozen blocks lie: on disk for later runs, or for this run only in memory or in a temporary file."""


@dataclass(frozen=True)
class Weights:
    """How many numbers a classifier has in one block on average, in its head, and elsewhere (embeddings, norms).

    `adapted` are those of a block that adapters change, `adapter` what they learn instead; `saved_bytes` is what one
    takes in a bundle that tuning did not change.
    """

    block: int
    head: int
    elsewhere: int
    adapted: int
    adapter: int
    saved_bytes: int


@dataclass(frozen=True)
class Rows:
    """The tokens of a part: of all its texts, of those that are no copy of another, and its longest piece.

    `computed` are those that pass frozen blocks: beginnings that texts have in common count once there.
    """

    texts: int
    tokens: int
    distinct: int
    computed: int
    longest: int


@dataclass(frozen=True)
class Plan:
    """One tuning, in counts. `depth` blocks, of which those from `start` on learn (None: the embeddings too).

    `sizes (N,)` are the tokens of the training texts; `rows` says what each part holds; `width` is that of a state and
    `dtype` its arithmetic, `step_dtype` that of a step; `reads_last_row` says that the last block runs on a row a text.
    `is_passed` says that the states of frozen blocks are there already, since the depth was chosen by all rows.
    """

    config: Config
    depth: int
    start: int | None
    has_linear_head: bool
    weights: Weights
    sizes: np.ndarray
    rows: Mapping[str, Rows]
    width: int
    dtype: torch.dtype
    step_dtype: torch.dtype
    reads_last_row: bool
    is_passed: bool = False

    @property
    def is_probe(self) -> bool:
        """Whether the best head is computed at once instead of approached in steps."""
        return self.config.tuning.method == "head" and self.has_linear_head

    @property
    def blocks_above(self) -> int:
        """Blocks that run in every step and every evaluation."""
        return self.depth - (self.start or 0)

    @property
    def all_weights(self) -> int:
        """Numbers of the whole classifier."""
        return self.depth * self.weights.block + self.weights.elsewhere + self.weights.head

    @property
    def changing(self) -> int:
        """Numbers that are other ones after tuning."""
        match self.config.tuning.method:
            case "full" | "contrastive":
                return self.all_weights
            case "lora":
                return self.depth * self.weights.adapted + self.weights.head
        return self.blocks_above * self.weights.block + self.weights.head

    @property
    def learning(self) -> int:
        """Numbers with a gradient; adapters have fewer than the weights that they change."""
        if self.config.tuning.method == "lora":
            return self.depth * self.weights.adapter + self.weights.head
        return self.changing

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training rows; none where a probe is fitted at once."""
        return 0 if self.is_probe else -(-len(self.sizes) // self.config.tuning.batch_size)

    @property
    def steps(self) -> int:
        """Steps of all epochs, seeds and members of a soup, if nothing stops them early."""
        return self.steps_per_epoch * self.config.tuning.epochs * self.config.tuning.seeds * self.config.tuning.soup

    @property
    def evaluations(self) -> int:
        """How often the validation rows are scored in all of that."""
        tuning = self.config.tuning
        each = 1 if self.is_probe else min(tuning.evaluations_per_epoch, self.steps_per_epoch) * tuning.epochs
        return (each * tuning.soup + (tuning.soup > 1)) * tuning.seeds

    @property
    def least_share(self) -> float:
        """The share of the steps after which patience can end at the earliest."""
        tuning = self.config.tuning
        planned = tuning.evaluations_per_epoch * tuning.epochs
        return 1.0 if self.is_probe else min(1.0, (1 + tuning.patience) / planned)

    @cached_property
    def step_rows(self) -> list[np.ndarray]:
        """The steps of the first epoch, those of most tokens first."""
        steps = training_steps(self.sizes, rows_per_step=self.config.tuning.batch_size, seed=self.config.seed, epoch=0)
        return sorted(steps, key=lambda rows: -int(self.sizes[rows].sum()))

    @cached_property
    def largest_micro_batch(self) -> int:
        """Tokens of the largest micro-batch of an epoch."""
        micros = (
            self.sizes[rows].sum()
            for step in self.step_rows
            for rows in packed(step, self.sizes, tokens_per_batch=self.config.tuning.tokens_per_batch)
        )
        return int(max(micros, default=0))

    # ---- States of frozen blocks

    def states_of(self, part: str) -> int:
        """Bytes of the states of a part."""
        return self.rows[part].tokens * self.width * self.dtype.itemsize if self.start else 0

    def kept(self, part: str) -> Kept:
        """Where the states of a part will lie."""
        size = self.states_of(part)
        if not size:
            return "none"
        if size < self.config.tuning.cache_gib * GIB and not self.is_passed:
            return "cache"
        return "memory" if size <= BYTES_IN_MEMORY else "file"

    def states_in(self, place: Kept) -> int:
        """Bytes of all states that lie there."""
        return sum(self.states_of(part) for part in TUNED if self.kept(part) == place)

    @property
    def states_told(self) -> str:
        """Where the states lie and why, in a sentence."""
        kept, cache_gib = self.kept("train"), self.config.tuning.cache_gib
        if kept == "none":
            why = "adapters sit on all blocks" if self.config.tuning.method == "lora" else "all blocks learn"
            return f"No states are kept: {why}, nothing is frozen."
        need = f"The states of frozen blocks need {gib(sum(self.states_of(part) for part in TUNED))}"
        if kept == "cache":
            return f"{need}: they are kept in the cache for later runs."
        why = "the depth was chosen by them" if self.is_passed else f"tuning.cache_gib is {cache_gib:g}"
        where = "in memory" if kept == "memory" else "in a temporary file"
        return f"{need} and {why}: they are kept for this run only, {where}."

    # ---- Disk

    @property
    def disk(self) -> dict[str, int]:
        """Bytes on disk: `bundle` and `checkpoint` beside the output, `cache` and `file` for states.

        A checkpoint is written aside before it takes the place of the one before.
        """
        adam, snapshots = 2, self.snapshots
        return {
            "bundle": FP32 * self.changing + self.weights.saved_bytes * (self.all_weights - self.changing),
            "checkpoint": 0 if self.is_probe else 2 * FP32 * self.learning * (1 + snapshots + adam),
            "cache": self.states_in("cache"),
            "file": self.states_in("file"),
        }

    @property
    def snapshots(self) -> int:
        """Copies of the learning weights that the best evaluations and an average of them take."""
        tuning = self.config.tuning
        return {"none": 1, "ema": 2, "best": tuning.average_of}[tuning.average]

    # ---- Other plans

    def with_settings(self, **tuning: Any) -> Plan:
        """The same rows tuned otherwise."""
        return self._changed(self.config.with_settings({"tuning": tuning}), self.depth)

    def with_depth(self, depth: int) -> Plan:
        """The same tuning of fewer blocks."""
        return self._changed(self.config, depth)

    def _changed(self, config: Config, depth: int) -> Plan:
        return replace(self, config=config, depth=depth, start=first_tuned_block(config.tuning, depth))

    def as_dict(self) -> dict[str, Any]:
        """What the report says of the plan."""
        return {
            "steps": self.steps,
            "evaluations": self.evaluations,
            "tokens": {
                "frozen": sum(self.rows[part].computed for part in TUNED) if self.start else 0,
                "steps": 0 if self.is_probe else int(self.sizes.sum()) * self.config.tuning.epochs,
                "test": self.rows["test"].distinct,
            },
            "largest_micro_batch": self.largest_micro_batch,
            "states": {"kept": self.kept("train"), "text": self.states_told},
            "disk_bytes": self.disk,
        }


TUNED = ("train", "validation", "calibration")
"""Parts that tuning reads."""


def plan_of(classifier: Classifier, parts: Mapping[str, Part], config: Config) -> Plan:
    """The plan of tuning a classifier on `train`, `validation`, `calibration` and measuring it on `test`."""
    backbone, tuning = classifier.backbone, config.tuning
    shares = device_of(classifier).type == "cpu" and backbone.shares_beginnings
    rows = {name: _rows_of(part.tokens, shares=shares) for name, part in parts.items()}
    longest = max(part.longest for part in rows.values())
    return Plan(
        config=config,
        depth=backbone.depth,
        start=first_tuned_block(tuning, backbone.depth),
        has_linear_head=isinstance(classifier.head, LinearHead),
        weights=_weights_of(classifier, config),
        sizes=parts["train"].tokens.sizes,
        rows=rows,
        width=backbone.width,
        dtype=arithmetic(tuning.precision, device_of(classifier)),
        step_dtype=step_arithmetic(tuning, depth=backbone.depth, device=device_of(classifier)),
        reads_last_row=classifier.pooling == "last" and backbone.supports_last_row(longest),
    )


def _rows_of(tokens: Tokens, *, shares: bool) -> Rows:
    pieces, _ = tokens.distinct()
    lengths = tokens.lengths
    batches = alike(tokens, pieces, tokens_per_batch=TOKENS_PER_BATCH, shares=shares)
    return Rows(
        texts=len(tokens),
        tokens=int(lengths.sum()),
        distinct=int(lengths[pieces].sum()),
        computed=computed_tokens(tokens, batches, shares=shares),
        longest=int(lengths.max(initial=0)),
    )


def _weights_of(classifier: Classifier, config: Config) -> Weights:
    depth = classifier.backbone.depth
    head, blocks = _numbers(classifier.head), _numbers(classifier.backbone.blocks)
    adapted = adapter = 0
    if config.tuning.method == "lora":
        layers = adapted_layers(classifier.backbone, config.tuning.lora_targets).values()
        shapes = [layer.get_parameter("weight").shape for layer in layers]
        adapted = sum(rows * columns for rows, columns in shapes) // depth
        adapter = config.tuning.lora_rank * sum(rows + columns for rows, columns in shapes) // depth
    elsewhere = _numbers(classifier) - head - blocks
    return Weights(blocks // depth, head, elsewhere, adapted, adapter, _saved_bytes(classifier.backbone))


def _saved_bytes(backbone: Backbone) -> int:
    """2 where the weights came in bf16, as a bundle keeps those that were not tuned; told by the first of each."""
    some = torch.cat([weight.detach().flatten()[:256] for weight in backbone.parameters()])
    return 2 if torch.equal(some.to(torch.bfloat16).to(some.dtype), some) else FP32


def _numbers(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"
