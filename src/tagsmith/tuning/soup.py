"""The mean of several tunings from one start: better answers for the same price of an answer.

Tunings that share their start end in one basin, so that the mean of their weights is a classifier too, and mostly a
better one than each of them (model soups; Wortsman et al. 2022). Unlike the mean of their answers it costs no more to
serve. The members differ in the order of rows (and dropout); none is picked for its score: the mean of all competes
with the first alone, which is the run without a soup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tagsmith.config import Config
from tagsmith.errors import SettingError
from tagsmith.events import Event, Listener, listened, silent, steps_alone
from tagsmith.model.activations import States
from tagsmith.model.classifier import Classifier
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import Loop, Metric, Tuned, tune
from tagsmith.tuning.methods import copies, put, trainable

METHODS = ("last_layers", "full")
"""Those whose weights can be averaged: adapters have no mean of their rank, and a probe is fitted at once."""

APART = 1_000_000
"""From a member's seed to the next one's: further than `tuning.seeds` counts."""


def require_soup(config: Config) -> None:
    """SettingError for a soup of what has no mean."""
    tuning = config.tuning
    if tuning.soup > 1 and tuning.method not in (*METHODS, "auto"):
        raise SettingError(
            f"tuning.soup is {tuning.soup}, which averages weights that learn step by step. Expected tuning.method "
            f"{' or '.join(METHODS)}, found '{tuning.method}'; change that, or leave the soup out."
        )


def tune_soup(
    classifier: Classifier,
    parts: Mapping[str, Part],
    config: Config,
    *,
    metric: Metric,
    class_weights: np.ndarray | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    states: Mapping[str, States] | None = None,
    listen: Listener = silent,
) -> Tuned:
    """`tune` as often as `tuning.soup` says, from the same weights, and the mean where it reads validation no worse.

    Arguments are those of `tune`. What is left behind is of the first, `average` of the mean; each member has a
    checkpoint, and one that had ended is not tuned again.
    """
    options: dict[str, Any] = {"metric": metric, "class_weights": class_weights, "checkpoint": checkpoint, "stop": stop}
    if config.tuning.soup == 1:
        return tune(classifier, parts, config, **options, resume=resume, states=states, listen=listen)
    start = copies(trainable(classifier, config.tuning))
    first = Loop(classifier, parts, config, **options)
    first.tuned.states = dict(states or {})
    listened(first.events(resume=resume), listen)
    own = copies(trainable(classifier, config.tuning))
    sums = {name: weight.clone() for name, weight in own.items()}
    for number in range(1, config.tuning.soup):
        text = f"Tuning {number + 1} of {config.tuning.soup}, from the same start: their weights will be averaged."
        listen(Event("tuning", "note", values={"text": text}))
        put(classifier, start)
        seed = config.seed + number * APART
        kept = {"resume": resume, "states": first.tuned.states}
        tune(classifier, parts, config.with_settings({"seed": seed}), **options, **kept, listen=_member(seed, listen))
        for name, weight in trainable(classifier, config.tuning):
            sums[name] += weight.detach()
    put(classifier, {name: total / config.tuning.soup for name, total in sums.items()})
    return _decided(first, classifier, own, config, listen)


def _decided(first: Loop, classifier: Classifier, own: Mapping[str, Tensor], config: Config, listen: Listener) -> Tuned:
    """The mean, which the classifier has now, or the first tuning where that reads the validation rows better."""
    values = first.validated()
    is_kept = values["score"] >= first.score
    if not is_kept:
        put(classifier, own)
    told = "no worse than the first alone, and is kept" if is_kept else "worse than the first alone, and is dropped"
    text = f"The mean of {config.tuning.soup} tunings from one start is {told} (on the validation rows)."
    listen(Event("tuning", "note", values={"text": text}))
    tuned = first.tuned
    if is_kept:
        tuned = replace(tuned, average={"of": f"{config.tuning.soup} tunings from one start", "kept": True, **values})
    return tuned


def _member(seed: int, listen: Listener) -> Listener:
    """A listener to the steps of a further member, which say their seed; curves and the rest are told of the first."""
    return steps_alone(lambda event: listen(replace(event, values={**event.values, "seed": seed})))
