"""How many blocks a task needs: probes of every depth make a shortlist, short tunings decide.

Features of a frozen backbone tell where a task is solved already, but tuning moves them, so that probes alone may
mislead (STATISTICS.md 18). Both look at one sample of the training and validation rows, which passes the blocks once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from tagsmith.config import Config
from tagsmith.events import Event, Listener, listened, silent
from tagsmith.model.activations import FrozenBlocks, States, states_by_depth
from tagsmith.model.classifier import Classifier, Scorer, finish_states, pool_states
from tagsmith.model.device import arithmetic, device_of
from tagsmith.model.heads import LinearHead
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import tune
from tagsmith.tuning.losses import held_out_loss, right_rows, row_losses
from tagsmith.tuning.methods import first_tuned_block
from tagsmith.tuning.probes import fit_probe

TRAINING_TEXTS, VALIDATION_TEXTS, TOKENS = (256, 1500), 1000, 60_000
"""A quarter of the training rows within these bounds, validation rows, and tokens of both: their states at all depths
are kept, on disk where they are many."""

MOST_DEPTHS = 10
"""Depths that are probed, evenly spread, all blocks among them."""

STRENGTH, EPOCHS, PATIENCE = 10.0, 2, 99


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
    classifier: Classifier, train: Part, validation: Part, config: Config, *, listen: Listener = silent
) -> DepthChoice:
    """The depth at which a short tuning reads the validation rows about as well as at the best one.

    At least three depths are tuned, where the backbone has so many: the best by probes, one deeper, and all blocks. A
    shallower one wins where it loses at most half a standard error of the paired losses and 0.3 points of accuracy
    (STATISTICS.md 17). With `model.pooling = auto` the probes decide on the pooling too.
    """
    train, validation = _samples(train, validation, seed=config.seed)
    grid = _grid(_lowest(classifier, config), classifier.backbone.depth)
    entries = {first_tuned_block(config.tuning, depth) or 0 for depth in grid} | set(grid)
    dtype = arithmetic(config.tuning.precision, device_of(classifier))
    frozen = FrozenBlocks(classifier.backbone, stop=max(entries), dtype=dtype)
    with_states = {
        name: listened(states_by_depth(frozen, part.tokens, entries), listen)
        for name, part in (("train", train), ("validation", validation))
    }
    probes, losses = _probe(classifier, train, validation, with_states, grid=grid)
    pooling = _better_pooling(losses) if config.model.pooling == "auto" else classifier.pooling
    depths = shortlist(losses[pooling])
    listen(Event("tuning", "depths", values={"text": ", ".join(map(str, depths)), "pooling": pooling}))
    rows = {
        depth: _tuned(
            classifier, depth, pooling, train, validation, with_states, config, listen=_to_trial(depth, listen)
        )
        for depth in depths
    }
    layers, cost_N = _decided(rows)
    error = float(cost_N.std(ddof=1) / np.sqrt(len(cost_N))) if len(cost_N) > 1 else 0.0
    return DepthChoice(
        layers=layers,
        pooling=pooling,
        probes=tuple(probes),
        tunings=tuple(
            Tried(depth, float(loss_N.mean()), float(right_N.mean())) for depth, (loss_N, right_N) in rows.items()
        ),
        rows={"train": len(train.truth), "validation": len(validation.truth)},
        cost=float(cost_N.mean()),
        low=float(cost_N.mean()) - 1.96 * error,
        high=float(cost_N.mean()) + 1.96 * error,
    )


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


def _decided(rows: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> tuple[int, np.ndarray]:
    """The least deep candidate that is no worse than the best, and its paired losses less the best one's `(N,)`."""
    best = min(rows, key=lambda depth: rows[depth][0].mean())
    for depth in sorted(rows):
        lost_points = 100 * (rows[best][1].mean() - rows[depth][1].mean())
        if depth == best or (_is_no_worse(rows[depth][0], rows[best][0]) and lost_points <= 0.3):
            return depth, rows[depth][0] - rows[best][0]
    raise AssertionError("the best is one of them")


def _lowest(classifier: Classifier, config: Config) -> int:
    """The fewest blocks that the method can work on."""
    return config.tuning.blocks if config.tuning.method == "last_layers" else 1


def _samples(train: Part, validation: Part, *, seed: int) -> tuple[Part, Part]:
    random = np.random.default_rng([seed, 4])
    least, most = TRAINING_TEXTS
    count = int(np.clip(len(train.truth) // 4, least, most))
    parts = _drawn(train, count, random), _drawn(validation, VALIDATION_TEXTS, random)
    tokens = sum(int(part.tokens.offsets[-1]) for part in parts)
    if tokens <= TOKENS:
        return parts
    train, validation = (_drawn(part, max(64, len(part.truth) * TOKENS // tokens), random) for part in parts)
    return train, validation


def _drawn(part: Part, most: int, random: np.random.Generator) -> Part:
    if len(part.truth) <= most:
        return part
    rows = np.sort(random.choice(len(part.truth), size=most, replace=False))
    return Part(part.tokens.of_texts(rows), part.truth[rows], None if part.groups is None else part.groups[rows])


def _probe(
    classifier: Classifier,
    train: Part,
    validation: Part,
    with_states: Mapping[str, Mapping[int, States]],
    *,
    grid: Sequence[int],
) -> tuple[list[Probed], dict[str, dict[int, np.ndarray]]]:
    """What probes say of each depth, and their validation losses `(N,)` by pooling, the classifier's own first."""
    found: list[Probed] = []
    losses: dict[str, dict[int, np.ndarray]] = {}
    for how in dict.fromkeys((classifier.pooling, "mean")):
        for depth in grid:
            cut = cut_copy(classifier, depth, start=depth)
            cut.pooling = how
            train_ND, validation_ND = (
                torch.from_numpy(pool_states(cut, with_states[name][depth], start=depth))
                for name in ("train", "validation")
            )
            probe = fit_probe(
                train_ND, torch.from_numpy(train.truth), classes=len(classifier.labels), strength=STRENGTH, bias=True
            )
            loss_N, right_N = _losses(probe.logits(validation_ND).numpy(), validation.truth)
            found.append(Probed(depth, how, float(loss_N.mean()), float(right_N.mean())))
            losses.setdefault(how, {})[depth] = loss_N
    return found, losses


def _tuned(
    classifier: Classifier,
    depth: int,
    pooling: str,
    train: Part,
    validation: Part,
    with_states: Mapping[str, Mapping[int, States]],
    config: Config,
    *,
    listen: Listener,
) -> tuple[np.ndarray, np.ndarray]:
    """Validation losses and hits `(N,)` after a short tuning at this depth."""
    start = first_tuned_block(config.tuning, depth)
    candidate = cut_copy(classifier, depth, start=start)
    candidate.pooling = pooling
    short = {"epochs": EPOCHS, "evaluations_per_epoch": 1, "patience": PATIENCE, "average": "none"}
    short |= {"start": "probe"} if isinstance(classifier.head, LinearHead) else {}
    states = {name: by_depth[start] for name, by_depth in with_states.items()} if start else {}
    tune(
        candidate,
        {"train": train, "validation": validation},
        config.with_settings({"tuning": short}),
        metric=lambda truth, probs: -held_out_loss(truth, probs),
        states=states,
        listen=listen,
    )
    if start:
        return _losses(finish_states(candidate, states["validation"], start=start), validation.truth)
    return _losses(Scorer(candidate).logits(validation.tokens), validation.truth)


def _to_trial(layers: int, listen: Listener) -> Listener:
    """A listener to a short tuning: of all that it says, each step goes on, as one of a trial of so many blocks."""

    def heard(event: Event) -> None:
        if event.name == "step":
            listen(replace(event, name="trial", values={"layers": layers, "loss": event.values["loss"]}))

    return heard


def cut_copy(classifier: Classifier, depth: int, *, start: int | None) -> Classifier:
    """A classifier of the lowest `depth` blocks; weights below block `start` are shared (None: none), others copied."""
    shared: dict[int, Any] = {id(classifier.encoder): classifier.encoder}
    if start is not None:
        learning = [*classifier.backbone.blocks[start:depth], classifier.backbone.final_norm, classifier.head]
        own = {id(weight) for module in learning for weight in module.parameters()}
        shared |= {id(weight): weight for weight in classifier.parameters() if id(weight) not in own}
    cut = copy.deepcopy(classifier, memo=shared)
    cut.backbone.cut(depth)
    return cut


def _losses(logits_NC: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each row and whether it is answered right, both `(N,)`."""
    logits, answers = torch.from_numpy(logits_NC), torch.from_numpy(truth)
    return row_losses(logits, answers).numpy(), right_rows(logits, answers).numpy()
