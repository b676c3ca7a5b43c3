"""How much of what a tuning computes is padding: counted from its batches, and the same in each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tagsmith.config import Config
from tagsmith.data.batching import Work, length_sorted, packed, training_steps, work_of
from tagsmith.data.encoding import Tokens
from tagsmith.model.activations import TOKENS_PER_BATCH
from tagsmith.model.beginnings import alike, computed_tokens
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import device_of
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import Tuned

FORWARD_AND_BACKWARD = 3
"""What a step costs a block, against going through it once."""


def padding_of(classifier: Classifier, parts: Mapping[str, Part], tuned: Tuned, config: Config) -> dict[str, float]:
    """The share of multiplications that is padding: in `frozen` blocks, `steps`, `evaluations`, and of them all.

    Linear layers see tokens only; it is attention that works on a rectangle where it has no kernel for unequal lengths.
    On CUDA it has one. A pass that was read from the cache counts like one that was made.
    """
    blocks, start = classifier.backbone.blocks, tuned.start or 0
    above = len(blocks) - start
    shares = device_of(classifier).type == "cpu" and classifier.backbone.shares_beginnings
    work = {
        "frozen": sum((_of_frozen_pass(part.tokens, shares=shares) for part in parts.values()), Work()) * start,
        "steps": _of_mean_step(parts["train"].tokens, config) * (tuned.steps * above * FORWARD_AND_BACKWARD),
        "evaluations": _of_pass(parts["validation"].tokens) * (len(tuned.curves) * above),
    }
    work["share"] = sum(work.values(), Work())
    if device_of(classifier).type == "cuda":
        return dict.fromkeys(work, 0.0)
    size = sum(weight.numel() for weight in blocks.parameters()) // len(blocks)
    return {name: round(each.padding(weights=size, width=classifier.backbone.width), 6) for name, each in work.items()}


def _of_frozen_pass(tokens: Tokens, *, shares: bool) -> Work:
    pieces, _ = tokens.distinct()
    batches = alike(tokens, pieces, tokens_per_batch=TOKENS_PER_BATCH, shares=shares)
    found = work_of(tokens.lengths, batches)
    return replace(found, tokens=float(computed_tokens(tokens, batches, shares=shares)))


def _of_pass(tokens: Tokens) -> Work:
    firsts, _ = tokens.distinct()
    lengths = tokens.lengths[firsts]
    return work_of(lengths, length_sorted(lengths, tokens_per_batch=TOKENS_PER_BATCH))


def _of_mean_step(tokens: Tokens, config: Config) -> Work:
    """The work of a step, the mean over the first epoch."""
    tuning, sizes = config.tuning, tokens.sizes
    steps = training_steps(sizes, rows_per_step=tuning.batch_size, seed=config.seed, epoch=0)
    micros = (rows for step in steps for rows in packed(step, sizes, tokens_per_batch=tuning.tokens_per_batch))
    return work_of(tokens.lengths, (tokens.pieces(rows)[0] for rows in micros)) * (1 / len(steps))
