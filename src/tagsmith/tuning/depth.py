"""How many blocks a task needs: probes of every depth make a shortlist, short tunings decide.

Features of a frozen backbone tell where a task is solved already, but tuning moves them, so that probes alone may
mislead (STATISTICS.md 18). Both look at one sample, which passes the blocks once and is judged as the candidates of a
search are: on a thousand rows that they did not learn from, or on all rows of a small table in folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tagsmith.config import Config
from tagsmith.events import Event, Listener, listened, silent
from tagsmith.model.activations import FrozenBlocks, States, states_by_depth
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import arithmetic, device_of
from tagsmith.tuning.learner import Part
from tagsmith.tuning.methods import first_tuned_block
from tagsmith.tuning.recipes import Recipe
from tagsmith.tuning.trials import ENOUGH, HELD_OUT, Judged, Sample, draw_sample, try_probe, try_recipe

LEARNT_FROM, FEWEST, TOKENS = 1500, 64, 60_000
"""At most so many rows to learn from, and tokens of all rows that are looked at: their states at all depths are kept,
on disk where they are many. Of long texts fewer rows are taken, but so many."""

MOST_DEPTHS = 10
"""Depths that are probed, evenly spread, all blocks among them."""

EPOCHS = 2


@dataclass(frozen=True)
class Probed:
    """The validation loss of a probe on the states that leave block `layers`, by pooling."""

    layers: int
    pooling: str
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Tried:
    """A short tuning of a backbone cut to `layers` blocks: its validation loss and accuracy."""

    layers: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class DepthChoice:
    """The depth and pooling that were chosen, what was tried, and what the choice costs against the best of them.

    `cost` is the mean paired difference of validation losses to the best one tried, `low` to `high` its 95 % interval.
    """

    layers: int
    pooling: str
    probes: tuple[Probed, ...]
    tunings: tuple[Tried, ...]
    rows: Mapping[str, int]
    cost: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        return asdict(self)


def choose_depth(
    classifier: Classifier, parts: Mapping[str, Part], config: Config, *, listen: Listener = silent
) -> tuple[DepthChoice, dict[str, States]]:
    """The depth at which a short tuning reads the judged rows about as well as at the best one.

    At least three depths are tuned, where the backbone has so many: the best by probes, one deeper, and all blocks.
    Each begins as the training will, with a probe or a random head: one tells little of the other. A shallower depth
    wins where it loses at most half a standard error of the paired losses and 0.3 points of accuracy (STATISTICS.md
    17). With `model.pooling = auto` the probes decide on the pooling too.

    Where all rows of a small table have passed the blocks for this, what enters the first block that learns is handed
    over, by part: it need not be computed again.
    """
    parts = {name: parts[name] for name in ("train", *HELD_OUT) if name in parts and len(parts[name].truth)}
    sample = _sample(parts, seed=config.seed)
    part = sample.of(parts)
    grid = _grid(_lowest(classifier, config), classifier.backbone.depth)
    starts = {depth: first_tuned_block(config.tuning, depth) or 0 for depth in grid}
    dtype = arithmetic(config.tuning.precision, device_of(classifier))
    frozen = FrozenBlocks(classifier.backbone, stop=grid[-1], dtype=dtype)
    entries = {*grid, *(start for start in starts.values() if start)}
    states = listened(states_by_depth(frozen, part.tokens, entries), listen)
    probes = {
        (depth, how): try_probe(classifier, part, states[depth], sample, layers=depth, how=how)
        for how in dict.fromkeys((classifier.pooling, "mean"))
        for depth in grid
    }
    pooling, depths = _shortlisted(probes, is_open=config.model.pooling == "auto")
    listen(Event("tuning", "depths", values={"text": ", ".join(map(str, depths)), "pooling": pooling}))
    tried = {}
    for depth in depths:
        short = Recipe(config.model.backbone, {"model": {"layers": depth, "pooling": pooling}})
        heard = _to_trial(depth, listen)
        tried[depth] = try_recipe(short, classifier, part, states, sample, config, epochs=EPOCHS, listen=heard)
    layers, cost_H = _decided(tried)
    error = 1.96 * float(cost_H.std(ddof=1) / np.sqrt(len(cost_H))) if len(cost_H) > 1 else 0.0
    choice = DepthChoice(
        layers=layers,
        pooling=pooling,
        probes=tuple(
            Probed(depth, how, judged.loss, float(judged.right_H.mean())) for (depth, how), judged in probes.items()
        ),
        tunings=tuple(Tried(depth, judged.loss, float(judged.right_H.mean())) for depth, judged in tried.items()),
        rows={"train": sample.each, "validation": sample.count},
        cost=float(cost_H.mean()),
        low=float(cost_H.mean()) - error,
        high=float(cost_H.mean()) + error,
    )
    return choice, _kept(parts, sample, states[starts[layers]]) if starts[layers] else {}


def _shortlisted(probes: Mapping[tuple[int, str], Judged], *, is_open: bool) -> tuple[str, list[int]]:
    """The pooling, the first one that was probed unless that `is_open`, and the depths that are worth a tuning."""
    losses: dict[str, dict[int, np.ndarray]] = {}
    for (depth, how), judged in probes.items():
        losses.setdefault(how, {})[depth] = judged.loss_H
    pooling = _better_pooling(losses) if is_open else next(iter(losses))
    return pooling, shortlist(losses[pooling])


def shortlist(losses: Mapping[int, np.ndarray]) -> list[int]:
    """Depths worth a tuning, from probes' losses by depth: the least deep of the best ones, one deeper, and all blocks.

    Where the best is all blocks, or next to it, less deep ones fill up to three.
    """
    grid = sorted(losses)
    best = min(grid, key=lambda depth: losses[depth].mean())
    enough = next(i for i, depth in enumerate(grid) if depth == best or _is_no_worse(losses[depth], losses[best]))
    wanted = {enough, (enough + len(grid)) // 2, len(grid) - 1}
    for i in (len(grid) // 2, 3 * len(grid) // 4, 0, len(grid) - 2):
        if len(wanted) < min(3, len(grid)):
            wanted.add(i)
    return [grid[i] for i in sorted(wanted)]


def _better_pooling(losses: Mapping[str, Mapping[int, np.ndarray]]) -> str:
    """The pooling of the best probe at any depth; the first one, the classifier's own, where it is no worse."""
    best = {how: min(by_depth.values(), key=np.mean) for how, by_depth in losses.items()}
    winner = min(best, key=lambda how: best[how].mean())
    own = next(iter(best))
    return own if own == winner or _is_no_worse(best[own], best[winner]) else winner


def _grid(lowest: int, deepest: int) -> list[int]:
    return sorted({round(depth) for depth in np.linspace(deepest, lowest, min(MOST_DEPTHS, deepest - lowest + 1))})


def _is_no_worse(loss_N: np.ndarray, best_N: np.ndarray) -> bool:
    lost_N = loss_N - best_N
    return bool(lost_N.mean() <= 0.5 * lost_N.std(ddof=1) / np.sqrt(len(lost_N)))


def _decided(tried: Mapping[int, Judged]) -> tuple[int, np.ndarray]:
    """The least deep candidate that is no worse than the best, and its paired losses less the best one's `(H,)`."""
    best = min(tried.values(), key=lambda judged: judged.loss)
    layers = next(depth for depth in sorted(tried) if tried[depth] is best or tried[depth].is_no_worse(best))
    return layers, tried[layers].loss_H - best.loss_H


def _lowest(classifier: Classifier, config: Config) -> int:
    """The fewest blocks that the method can work on."""
    return config.tuning.blocks if config.tuning.method == "last_layers" else 1


def _sample(parts: Mapping[str, Part], *, seed: int) -> Sample:
    held = sum(len(part.truth) for name, part in parts.items() if name in HELD_OUT)
    train = parts["train"]
    most = int(TOKENS * len(train.truth) / max(1, train.tokens.offsets[-1]))
    rows = int(np.clip(most - min(held, most // 2, ENOUGH), FEWEST, LEARNT_FROM))
    return draw_sample(parts, rows=rows, enough=max(FEWEST, min(most // 2, ENOUGH)), seed=seed)


def _kept(parts: Mapping[str, Part], sample: Sample, states: States) -> dict[str, States]:
    """What the sample's states say of each part, where they are those of all its rows."""
    found, begin = {}, 0
    for name, part in parts.items():
        rows = sample.rows[name]
        if len(rows) < len(part.truth):
            return {}
        found[name] = states.of_texts(begin + np.argsort(rows))
        begin += len(rows)
    return found


def _to_trial(layers: int, listen: Listener) -> Listener:
    """A listener to a short tuning: of all that it says, each step goes on, as one of a trial of so many blocks."""

    def heard(event: Event) -> None:
        if event.name == "step":
            listen(replace(event, name="trial", values={"layers": layers, "loss": event.values["loss"]}))

    return heard
