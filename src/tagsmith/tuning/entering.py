"""Which backbones enter a search, how fast they are here, and how many rows it looks at with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tagsmith.config import Config
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import arithmetic, device_of
from tagsmith.tuning.budget import SHARES, Clock
from tagsmith.tuning.forecast import pass_seconds, step_seconds
from tagsmith.tuning.learner import Part
from tagsmith.tuning.methods import cut_copy
from tagsmith.tuning.plan import plan_of
from tagsmith.tuning.recipes import Entrant, batch_size
from tagsmith.tuning.trials import ENOUGH, HELD_OUT

SAMPLE_ROWS, SAMPLE_TOKENS = (200, 1500), 120_000
"""Rows that candidates learn from, and tokens of all rows that are looked at: their states at all depths are kept."""

FEWEST_JUDGED, LEAST_LEARNT = 150, 60
"""Where one pass over the rows above takes more than its share of the budget: so few are judged and learnt from."""

BLOCKS_TIMED = 6

TOKENS_TIMED = 1024
"""Tokens of a step that is timed: of long texts fewer make a step than the training has, at the same pace."""


def enter(name: str, classifier: Classifier, parts: Mapping[str, Part], config: Config) -> Entrant:
    """A backbone that competes, its speed on this machine measured in a few batches and steps."""
    dtype = arithmetic(config.tuning.precision, device_of(classifier))
    train = parts["train"]
    frozen, _ = pass_seconds(classifier, train.tokens, dtype=dtype)
    blocks = min(BLOCKS_TIMED, classifier.backbone.depth)
    each = train.tokens.offsets[-1] / len(train.truth)
    rows = max(1, min(batch_size(len(train.truth)), int(TOKENS_TIMED / each)))
    learning = {"method": "last_layers", "blocks": blocks, "batch_size": rows, "start": "random"}
    timed = config.with_settings({"model": {"layers": blocks}, "tuning": learning})
    plan = plan_of(cut_copy(classifier, blocks, start=0), parts, timed)
    seconds, _ = step_seconds(classifier, train, plan, token=frozen.block)
    tokens = plan.sizes.sum() / plan.steps_per_epoch
    each_token = frozen.block + frozen.once / classifier.backbone.depth
    return Entrant(name, classifier, parts, frozen=each_token, step=seconds / tokens / blocks)


def within_reach(entrants: Sequence[Entrant], clock: Clock) -> list[Entrant]:
    """Those that a search has time for, the cheapest first; that one in any case.

    Their looks at a sample fit into its share of the budget, and into the winner's one pass of half the blocks over
    all training rows: what cannot even do that could not be trained either.
    """
    by_pace = sorted(entrants, key=lambda each: each.reference_pass())
    rows = min(SAMPLE_ROWS[0], sum(len(part.truth) for part in by_pace[0].parts.values()))
    found, seconds = by_pace[:1], rows * _look_seconds(by_pace[0])
    for each in by_pace[1:]:
        seconds += rows * _look_seconds(each)
        whole = each.tokens("train") * each.depth * each.frozen
        if seconds <= clock.left(SHARES["trials"]) / 2 and whole / 2 <= SHARES["winner"] * clock.budget:
            found.append(each)
    return found


def _look_seconds(entrant: Entrant) -> float:
    """Of one row of the sample, through all blocks."""
    train = entrant.parts["train"]
    return train.tokens.offsets[-1] / len(train.truth) * entrant.depth * entrant.frozen


def rows_for(entrants: Sequence[Entrant], clock: Clock) -> tuple[int, int]:
    """How many rows candidates learn from, and how many judge them: as many as one pass of each backbone may take."""
    train = [each.parts["train"] for each in entrants]
    tokens = max(part.tokens.offsets[-1] / len(part.truth) for part in train)
    held = min(ENOUGH, sum(len(part.truth) for name, part in entrants[0].parts.items() if name in HELD_OUT))
    most = SHARES["probes"] * clock.budget / sum(_look_seconds(each) for each in entrants)
    fewest, enough = SAMPLE_ROWS
    if most < fewest + held:  # not even the fewest fit beside all rows that are held out
        judged = int(max(FEWEST_JUDGED, most - fewest))
        return int(np.clip(most - judged, LEAST_LEARNT, fewest)), judged
    return int(min(np.clip(most - held, fewest, enough), max(fewest, SAMPLE_TOKENS / tokens - held))), ENOUGH
