"""Trials beyond those of a search: sampled by Optuna, judged on the same rows, from the same kept states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tagsmith.config import Config
from tagsmith.events import Event, Listener
from tagsmith.tuning.candidates import Candidate, loss_of, said
from tagsmith.tuning.recipes import Recipe
from tagsmith.tuning.sampling import FIRST_LOOK, Asked, Sampler, Space


@dataclass(frozen=True)
class Bench:
    """What trials are made with.

    `trying` judges recipes that learn from a share of the sample, `lanes` of them at a time, and gives None for those
    that the clock drops; `seconds` is what one takes; `is_trainable` says whether there would be time to train it on
    all rows. `left` are the seconds for all trials; `depths` and `starts` are, of each backbone, what its probes looked
    at and the blocks that kept states enter.
    """

    config: Config
    lanes: int
    left: float
    trying: Callable[[Sequence[Recipe], float], Sequence[Candidate | None]]
    seconds: Callable[[Recipe], float]
    is_trainable: Callable[[Recipe], bool]
    depths: Mapping[str, Sequence[int]]
    starts: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Further:
    """What came of going on: candidates, a word on them, and how many there were."""

    candidates: Sequence[Candidate] = ()
    told: Sequence[str] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)


def go_on(found: Sequence[Candidate], bench: Bench, *, listen: Listener) -> Further:
    """`tuning.trials` recipes, or as many as there is time for, which go on from the tunings in `found`."""
    wanted = bench.config.tuning.trials
    known = [(each.recipe, each) for each in found if each.recipe and each.kind != "head" and _is_known(each)]
    if not known:
        return _summed([], wanted, "the budget had no time for a tuning that they could go on from")
    each = float(np.mean([bench.seconds(recipe) for recipe, _ in known]))
    count = int(min(wanted, max(0.0, bench.lanes * bench.left / each)))
    sampler = Sampler(_spaces(known, bench), bench.config, can=bench.is_trainable)
    for recipe, candidate in known:
        sampler.learn(recipe, loss_of(candidate))
    listen(Event("tuning", "search", values={"text": f"Going on with {count} trials of Optuna on the same rows."}))
    made, why = [], "the budget had time for no more"
    while len(made) < count:
        asked = sampler.ask(min(bench.lanes, count - len(made)))
        tried = _tried(asked, sampler, bench)
        for candidate in tried:
            listen(said(candidate))
        made += tried
        if not asked:
            why = "nothing else is left to try"
        if not asked or len(tried) < len(asked):
            break
    return _summed(made, wanted, why)


def _is_known(candidate: Candidate) -> bool:
    return candidate.verdict is not None and candidate.learnt == 1


def _spaces(known: Sequence[tuple[Recipe, Candidate]], bench: Bench) -> list[Space]:
    """What may be sampled of each backbone: the methods of its recipes, each from the best of them."""
    found, best_last = [], sorted(known, key=lambda pair: loss_of(pair[1]))[::-1]
    for name in dict.fromkeys(recipe.backbone for recipe, _ in known):
        own = [(recipe, each) for recipe, each in best_last if recipe.backbone == name]
        depths = [*bench.depths[name], *(int(recipe.applied(bench.config).model.layers) for recipe, _ in own)]
        bases = {each.kind: recipe for recipe, each in own}
        found.append(Space(name, bases, (min(depths), max(depths)), bench.starts[name]))
    return found


def _tried(asked: Sequence[Asked], sampler: Sampler, bench: Bench) -> list[Candidate]:
    """Those that were judged before the time was over: all by a first look, and by all rows what is worth it."""
    found: dict[int, Candidate] = {}
    for share in (FIRST_LOOK, 1.0):
        going = []
        for each, candidate in zip(asked, bench.trying([each.recipe for each in asked], share), strict=True):
            if candidate is None:
                continue
            found[each.recipe.trial] = candidate
            if share == 1:
                sampler.tell(each, loss_of(candidate))
            elif sampler.goes_on(each, loss_of(candidate)):
                going.append(each)
        asked = going
    return list(found.values())


def _summed(made: Sequence[Candidate], wanted: int, why: str) -> Further:
    early = sum(each.learnt < 1 for each in made)
    counts = {"trials": {"wanted": wanted, "made": len(made), "ended_early": early}}
    told = f"Optuna made {len(made)} of {wanted} trials beyond the search"
    told += f", {early} of them ended after a first look" if early else ""
    return Further(made, [told + ("." if len(made) == wanted else f": {why}.")], counts)
