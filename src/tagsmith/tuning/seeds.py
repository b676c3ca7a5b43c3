"""Several tunings from as many seeds, on the same rows and the same kept states: how much is luck?

A seed of its own draws the head's first weights, adapters, the order of rows and dropout. The first seed's weights
remain. It was set before anything was measured, so that what the test rows say of it is free of any choice; and a run
of three seeds saves the same bytes as a run of one. The best of them by the validation rows would make just that
score optimistic (STATISTICS.md 17).

Where blocks are frozen the further seeds are tuned side by side, each on one core. The steps that are left are small,
and a second thread does not halve them: two seeds of the book's recipe took 11 s beside each other on two cores, one on
both of them 6 s. Several processes, on a cluster say, take the further seeds each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event as Flag
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.config import Config
from tagsmith.events import Event, Listener, silent
from tagsmith.model.activations import States
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import device_of
from tagsmith.model.heads import build_head
from tagsmith.tuning.checkpoints import drop_checkpoint
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import Metric, StoppedError, Tuned
from tagsmith.tuning.methods import copies, cut_copy, put, trainable
from tagsmith.tuning.parallel import by_itself, ranks_here
from tagsmith.tuning.soup import tune_soup


@dataclass(frozen=True)
class SeedRun:
    """One tuning of several: its seed, what it left behind, and the weights that learnt, as `trainable` names them.

    A run of one seed keeps no copy of its weights.
    """

    seed: int
    tuned: Tuned
    weights: Mapping[str, Tensor]


def tune_seeds(
    classifier: Classifier,
    parts: Mapping[str, Part],
    config: Config,
    *,
    untuned: Mapping[str, Tensor],
    metric: Metric,
    class_weights: np.ndarray | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    states: Mapping[str, States] | None = None,
    listen: Listener = silent,
) -> list[SeedRun]:
    """Tune a classifier in place from `tuning.seeds` seeds, counted up from the run's; it ends as the first made it.

    Arguments are those of `tune`, and the `untuned` weights that will learn. A checkpoint is kept for each seed, and a
    seed that had ended is not tuned again; without `resume` those of an earlier run are dropped.
    """
    if checkpoint is not None and not resume:
        drop_checkpoint(checkpoint)
    options = {"metric": metric, "class_weights": class_weights, "checkpoint": checkpoint, "resume": resume}
    tuned_from = partial(tune_soup, parts=parts, stop=stop, **options)
    first = tuned_from(classifier, config=config, states=states, listen=listen)
    if config.tuning.seeds == 1:
        return [SeedRun(config.seed, first, {})]
    kept = copies(trainable(classifier, config.tuning))
    seeds = range(config.seed + 1, config.seed + config.tuning.seeds)
    starts = [_Start(seed, {**untuned, **_drawn_head(classifier, config, seed=seed)}) for seed in seeds]
    share = partial(tuned_from, states=first.states)
    if ranks_here().count > 1:
        further = _divided(classifier, starts, config, share, listen)
    elif _can_stand_side_by_side(classifier, config, first):
        further = _side_by_side(classifier, starts, config, share, first.start, listen)
    else:
        further = [_tuned(classifier, start, config, share, listen) for start in starts]
    put(classifier, kept)
    return [SeedRun(config.seed, first, kept), *further]


@dataclass(frozen=True)
class _Start:
    """The weights that a seed begins with."""

    seed: int
    weights: Mapping[str, Tensor]


def _drawn_head(classifier: Classifier, config: Config, *, seed: int) -> dict[str, Tensor]:
    """A head's weights as a seed draws them; a bias is not drawn, but begins at the odds of each label."""
    labels = classifier.labels
    width, biased = classifier.backbone.width, labels.multi_label
    head = build_head(config.model.head, width=width, classes=len(labels), seed=seed, bias=biased)
    return {f"head.{name}": weight for name, weight in head.named_parameters() if name != "score.bias"}


def _tuned(
    classifier: Classifier, start: _Start, config: Config, tuned_from: Callable[..., Tuned], listen: Listener
) -> SeedRun:
    put(classifier, start.weights)
    count, number = config.tuning.seeds, start.seed - config.seed + 1
    listen(Event("tuning", "note", values={"text": f"Seed {start.seed}, {number} of {count}."}))
    own = config.with_settings({"seed": start.seed})
    tuned = tuned_from(classifier, config=own, listen=_naming(start.seed, listen))
    return SeedRun(start.seed, tuned, copies(trainable(classifier, config.tuning)))


def _naming(seed: int, listen: Listener) -> Listener:
    """A listener to events that say which seed they are of; those of the first seed are as without others."""
    return lambda event: listen(replace(event, values={**event.values, "seed": seed}))


# ---- One process each


def _divided(
    classifier: Classifier, starts: Sequence[_Start], config: Config, tuned_from: Callable[..., Tuned], listen: Listener
) -> list[SeedRun]:
    """Each by one of several processes as by that one alone, from states that all have; then each is told to all."""
    ranks = ranks_here()
    with by_itself():
        own = {
            place: _tuned(classifier, start, config, tuned_from, listen)
            for place, start in enumerate(starts)
            if place % ranks.count == ranks.number
        }
    return [_told(own.get(place), classifier, config, by=place % ranks.count) for place in range(len(starts))]


def _told(run: SeedRun | None, classifier: Classifier, config: Config, *, by: int) -> SeedRun:
    """What the process `by` found, in all of them; kept states stay where they are."""
    from torch import distributed

    about: list[Any] = [None, None] if run is None else [run.seed, replace(run.tuned, states={})]
    distributed.broadcast_object_list(about, src=by)
    weights = copies(trainable(classifier, config.tuning)) if run is None else dict(run.weights)
    for name in weights:
        weights[name] = weights[name].contiguous()
        distributed.broadcast(weights[name], src=by)
    seed, tuned = about
    return SeedRun(seed, tuned, weights)


# ---- One core each


def _can_stand_side_by_side(classifier: Classifier, config: Config, first: Tuned) -> bool:
    """Whether threads would not meet: they share PyTorch's one generator, which dropout and adapters draw from."""
    alone = device_of(classifier).type == "cpu"
    draws = config.tuning.method == "lora" or _has_dropout(classifier)
    return alone and bool(first.start) and not draws and not config.tuning.compile


def _has_dropout(classifier: Classifier) -> bool:
    modules = list(classifier.modules())
    within = any(isinstance(module, nn.Dropout) and module.p > 0 for module in modules)
    return within or any(getattr(module, "attention_dropout", 0.0) for module in modules)


def _side_by_side(
    classifier: Classifier,
    starts: Sequence[_Start],
    config: Config,
    tuned_from: Callable[..., Tuned],
    first_block: int | None,
    listen: Listener,
) -> list[SeedRun]:
    """Each on one thread and on a copy of the weights that learn, so that no number of cores changes a byte."""
    cores, lock, given_up = torch.get_num_threads(), Lock(), Flag()

    def hear(event: Event) -> None:
        if given_up.is_set():
            raise _GivenUpError
        with lock:
            listen(event)

    def tuned(start: _Start) -> SeedRun:
        own = cut_copy(classifier, classifier.backbone.depth, start=first_block)
        return _tuned(own, start, config, tuned_from, hear)

    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting: list[Any] = [pool.submit(tuned, start) for start in starts]
            try:
                return [each.result() for each in waiting]
            except StoppedError:  # the others are asked to stop too, and write their checkpoints
                raise
            except BaseException:
                given_up.set()
                raise
    finally:
        torch.set_num_threads(cores)  # some libraries count threads for the whole process


class _GivenUpError(Exception):
    """Ends a tuning that nobody waits for any more."""
