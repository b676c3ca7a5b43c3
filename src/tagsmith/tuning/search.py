"""`auto`: which backbone, depth, pooling and method, within a time budget.

One pass over a sample gives probes of several depths; they name the recipes worth a short tuning; all candidates,
TF-IDF among them, are judged on the same rows; the cheapest of those that are no worse than the best is trained on all
rows as any other run is. What will be tried is settled before the first trial, in rows and epochs, by measured speeds:
the clock only drops whole candidates afterwards, and says so (STATISTICS.md 17 to 19).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from typing import Any, Protocol

import numpy as np

from tagsmith.config import Config
from tagsmith.events import Event, Listener, listened, silent
from tagsmith.model.activations import FrozenBlocks, States, states_by_depth
from tagsmith.model.device import arithmetic, device_of
from tagsmith.tuning.budget import LATEST, SHARES, Clock, latest, trials_end
from tagsmith.tuning.candidates import (
    MOST_OF_IT,
    Candidate,
    asked_hybrid,
    best_of,
    chosen_of,
    how_sure,
    hybrids_of,
    loss_of,
    said,
    why_of,
)
from tagsmith.tuning.depth import DepthChoice, Probed, Tried, shortlist
from tagsmith.tuning.entering import rows_for
from tagsmith.tuning.forecast import lasting
from tagsmith.tuning.further import Bench, Further, go_on
from tagsmith.tuning.halving import Cost, Rung, plan_ladder
from tagsmith.tuning.learner import Part
from tagsmith.tuning.methods import first_tuned_block
from tagsmith.tuning.mixing import FEWEST_ROWS
from tagsmith.tuning.recipes import (
    SHORT,
    Entrant,
    Recipe,
    are_few,
    gives_depth,
    pinned,
    recipes_of,
)
from tagsmith.tuning.trials import (
    MOST_REPEATS,
    Judged,
    Sample,
    draw_sample,
    lexical_seconds,
    try_lexical,
    try_probe,
    try_recipe,
)
from tagsmith.tuning.winner import LEAST_SOUP, fit_to_time, least_rows, leaves_no_soup

FEW_UNTIL = 0.7
"""With a few rows of each label: a trial takes no less than the training, which is over soon."""

MOST_DEPTHS, FIRST_TUNINGS = 6, 3

BEGUN = 0.35
"""The share of a training that there must be time for, if its trial is to take what other trials would not get."""

_SPARE = 1.2
_TOGETHER = "contrastive"

WHOLE = 0.8
"""A sample with this share of the training rows speaks for all of them."""


@dataclass(frozen=True)
class Found:
    """What the search decided: the recipe to train on all rows, and all that was judged.

    `texts` says in words why; `depth` is the course of the probes of the backbone that won.
    """

    recipe: Recipe
    candidates: tuple[Candidate, ...]
    chosen: int
    depth: DepthChoice | None
    budget: float
    sample: Mapping[str, Any]
    texts: tuple[str, ...] = ()

    def as_dicts(self) -> list[dict[str, Any]]:
        """The candidates for report.json, the best first and numbered, those that were not judged last."""
        order = sorted(range(len(self.candidates)), key=lambda i: loss_of(self.candidates[i]))
        return [
            {"number": number, "chosen": i == self.chosen} | self.candidates[i].as_dict()
            for number, i in enumerate(order, start=1)
        ]

    def times(self) -> list[dict[str, Any]]:
        """What each would take on all rows, as forecast here: for run.json."""
        return [{"name": each.name, "seconds": round(each.seconds, 1)} for each in self.candidates]


def search(
    entrants: Sequence[Entrant],
    texts: Mapping[str, Sequence[str]],
    config: Config,
    *,
    clock: Clock,
    together: Together | None = None,
    listen: Listener = silent,
) -> Found:
    """The recipe that reads the judged rows best for the time that is left, to be trained on all rows.

    `texts` are those of each part, for TF-IDF; the test rows are not among them. `together` tries several at a time.
    """
    rows, enough = rows_for(entrants, clock)
    sample = draw_sample(entrants[0].parts, rows=rows, enough=enough, seed=config.seed)
    sample = sample.repeated(_repeats(entrants, sample, config, clock), entrants[0].parts, seed=config.seed)
    part, began = sample.of(entrants[0].parts), clock.spent
    lexical = try_lexical(sample.texts(texts), part, sample, labels=entrants[0].classifier.labels, seed=config.seed)
    beside = lexical_seconds(clock.spent - began, sample, texts["train"])
    candidates = [Candidate("TF-IDF + linear", "tfidf", None, lexical, 0.0, 0)]
    listen(said(candidates[0]))
    by_pace = sorted(entrants, key=lambda each: each.reference_pass())
    looks = [_Look.at(each, sample, config, listen=listen) for each in by_pace]
    lanes = 1 if together is None else together.lanes
    recipes = [look.recipes(config, seconds=SHARES["winner"] * clock.budget) for look in looks]
    planned = _planned(recipes, sample, config, clock, lanes=lanes)
    listen(Event("tuning", "search", values={"text": _announced(planned, sample, clock, config)}))
    candidates += _judged(planned, sample, config, clock, together, listen=listen)
    further = _gone_on(candidates, planned, sample, config, clock, together, listen=listen)
    candidates += further.candidates
    is_whole = sample.fitted >= WHOLE * len(entrants[0].parts["train"].truth)
    rules: dict[str, Any] = {"is_whole": is_whole, "left": clock.left(latest(entrants)), "few": are_few(entrants)}
    bases = {chosen_of(candidates, **rules), best_of(candidates)}
    few = len(entrants[0].parts["validation"].truth) < FEWEST_ROWS
    for base in sorted(bases):
        for candidate in hybrids_of(candidates[base], lexical, part, sample, config, beside=beside, few=few):
            candidates.append(candidate)
            listen(said(candidate))
    chosen = chosen_of(candidates, **rules, hybrid=asked_hybrid(config))
    winner = candidates[chosen]
    assert winner.recipe is not None
    look = next(look for look in looks if look.entrant.name == winner.recipe.backbone)
    # Its texts are encoded and timed anew, and TF-IDF is fitted, to be mixed in or to compare.
    reserved = look.entrant.took + (0.0 if asked_hybrid(config) == "none" else beside)
    recipe, cut_short = fit_to_time(winner.recipe, look.entrant, config, clock, reserved=reserved, pace=winner.pace)
    told = [why_of(candidates, chosen), *further.told, *how_sure(winner), *cut_short]
    dropped = sum(each.is_dropped for each in candidates)
    if dropped:
        told.append(f"{dropped} of {planned.count} candidates were dropped: the trials took longer than forecast.")
    folds = len(sample.folds) // sample.repeats
    rows = {"learnt_from": sample.each, "judged": sample.count, "folds": folds, "repeats": sample.repeats}
    rows |= {"rungs": [vars(rung) for rung in planned.rungs], **further.counts}
    return Found(
        recipe, tuple(candidates), chosen, look.depths(candidates, sample, config), clock.budget, rows, tuple(told)
    )


def _repeats(entrants: Sequence[Entrant], sample: Sample, config: Config, clock: Clock) -> int:
    """How often rows are cut into folds: so that the first tunings of each backbone may still be tried."""
    seconds = 0.0
    for each in entrants:
        recipes = recipes_of(each, config, depths=[each.depth], head=(each.depth, each.classifier.pooling))
        tunings = [recipe for recipe in recipes if recipe.applied(config).tuning.method != "head"]
        costs = (recipe.trial_seconds(each, config, rows=sample.fitted, epochs=SHORT) for recipe in tunings)
        seconds += sum(islice(costs, FIRST_TUNINGS))
    return int(np.clip(clock.left(SHARES["trials"]) // max(seconds, 1e-3), 1, MOST_REPEATS))


@dataclass(frozen=True)
class _Planned:
    """What will be tried: heads alone, which cost nothing more, and the tunings that enter a ladder of rungs."""

    heads: Sequence[tuple[_Look, Recipe]]
    tunings: Sequence[tuple[_Look, Recipe]]
    rungs: Sequence[Rung]
    until: float
    """The share of the budget that may be over when the last trial ends."""

    @property
    def count(self) -> int:
        return len(self.heads) + len(self.tunings)


def _planned(
    recipes: Sequence[Sequence[tuple[_Look, Recipe]]], sample: Sample, config: Config, clock: Clock, *, lanes: int
) -> _Planned:
    """The recipes that will be tried: backbones take turns, the most promising first, as long as there is time for it.

    The winner must have a chance to end as well; where not one recipe fits, a head alone always does.
    """
    heads, tunings, costs, trainings = [], [], [], []
    for look, recipe in (pair for turn in zip_longest(*recipes) for pair in turn if pair is not None):
        method = recipe.applied(config).tuning.method
        if method == "head":
            heads.append((look, recipe))
        elif recipe.seconds(look.entrant, config, rows=least_rows(look.entrant, method), epochs=1) <= (
            SHARES["winner"] * clock.budget
        ):
            learning = recipe.trial_seconds(look.entrant, config, rows=sample.fitted, epochs=SHORT)
            answering = recipe.answer_seconds(look.entrant, config, rows=len(sample.judged))
            tunings.append((look, recipe))
            costs.append(Cost(learning, answering))
            trainings.append(recipe.seconds(look.entrant, config) * (2.5 if config.tuning.refit else 1.0))
    few_rows = are_few([look.entrant for look, _ in tunings])
    members = 1 if few_rows or leaves_no_soup(config) else LEAST_SOUP
    until = trials_end(trainings, clock.budget, members=members)
    if few_rows:
        # What draws texts together is tried even if the start has taken most of a short budget.
        paired = zip(tunings, costs, strict=True)
        wanted = sum(cost.on(1.0) for (_, recipe), cost in paired if recipe.applied(config).tuning.method == _TOGETHER)
        until = max(until, FEW_UNTIL, min(LATEST, (clock.spent + _SPARE * wanted) / clock.budget))
    elif costs and min(cost.on(1.0) for cost in costs) > lanes * clock.left(until):
        until = max(until, _for_one_trial(costs, trainings, clock))
    ladder = plan_ladder(costs, lanes * clock.left(until), rows=sample.each)
    return _Planned(heads, [tunings[i] for i in ladder.entrants], ladder.rungs, until)


def _for_one_trial(costs: Sequence[Cost], trainings: Sequence[float], clock: Clock) -> float:
    """The share of the budget by which the cheapest trial ends, if its training can then begin; 0 if it cannot."""
    seconds, training = min((cost.on(1.0), training) for cost, training in zip(costs, trainings, strict=True))
    return (clock.spent + 1.01 * seconds) / clock.budget if clock.left(LATEST) - seconds >= BEGUN * training else 0.0


def _judged(
    planned: _Planned, sample: Sample, config: Config, clock: Clock, together: Together | None, *, listen: Listener
) -> list[Candidate]:
    """What the judged rows say of all that was planned; the clock may only drop whole candidates."""
    found = [_candidate(look, recipe, look.judge(recipe, sample, config), config) for look, recipe in planned.heads]
    for candidate in found:
        listen(said(candidate))
    climbing = [_candidate(look, recipe, None, config) for look, recipe in planned.tunings]
    looks = {look.entrant.name: look for look, _ in planned.tunings}
    for rung in planned.rungs:
        ranked = sorted(climbing, key=loss_of)
        found += ranked[rung.entrants :]
        climbing = []
        trials = [_trial(each, looks, sample, config, rung.share) for each in ranked[: rung.entrants]]
        verdicts, began = _verdicts(trials, clock, together, until=planned.until + 0.1), clock.spent
        for each, trial, verdict in zip(ranked, trials, verdicts, strict=False):
            took, began = clock.spent - began, clock.spent
            if verdict is None:
                found.append(replace(each, is_dropped=True))
                continue
            paced = each if together is not None else each.at_pace(took, trial.seconds())
            climbing.append(replace(paced, verdict=verdict, learnt=rung.share))
            listen(said(climbing[-1]))
    return [*found, *climbing]


@dataclass(frozen=True)
class Trial:
    """A recipe to be tried: on which rows of which backbone, and from what share of them it learns."""

    look: _Look
    recipe: Recipe
    sample: Sample
    config: Config
    share: float

    def seconds(self) -> float:
        """About how long it takes, by the speeds that were measured."""
        entrant, epochs = self.look.entrant, self.recipe.short_epochs(self.config)
        learning = self.recipe.trial_seconds(
            entrant, self.config, rows=round(self.share * self.sample.fitted), epochs=epochs
        )
        return learning + self.recipe.answer_seconds(entrant, self.config, rows=len(self.sample.judged))

    def judged(self) -> Judged:
        """What the judged rows say of it, here and now."""
        return self.look.judge(self.recipe, self.sample, self.config, share=self.share)


class Together(Protocol):
    """What tries several recipes at a time, on other processors than this one's: `lanes` of them."""

    lanes: int

    def __call__(self, trials: Sequence[Trial]) -> Sequence[Judged]:
        """What each of them comes to."""
        ...


def _trial(each: Candidate, looks: Mapping[str, _Look], sample: Sample, config: Config, share: float) -> Trial:
    assert each.recipe is not None
    return Trial(looks[each.recipe.backbone], each.recipe, sample, config, share)


def _verdicts(
    trials: Sequence[Trial], clock: Clock, together: Together | None, *, until: float
) -> Iterator[Judged | None]:
    """What trials come to, None for those that would begin when the share `until` of the budget is over."""
    if together is not None and clock.left(until) >= 0:
        yield from together(trials)
        return
    for trial in trials:
        yield None if clock.left(until) < 0 else trial.judged()


def _gone_on(
    found: Sequence[Candidate],
    planned: _Planned,
    sample: Sample,
    config: Config,
    clock: Clock,
    together: Together | None,
    *,
    listen: Listener,
) -> Further:
    """What Optuna tries beyond the tunings, in the time that they left; without a budget its own is not counted."""
    if not config.tuning.trials:
        return Further()
    looks, began = {look.entrant.name: look for look, _ in planned.tunings}, clock.spent
    timed = clock if config.tuning.budget_seconds is not None else replace(clock, budget=np.inf)
    spared = (latest([look.entrant for look in looks.values()]) - planned.until) * clock.budget
    trainings = MOST_OF_IT * (2.5 if config.tuning.refit else 1.0)

    def trying(recipes: Sequence[Recipe], share: float) -> list[Candidate | None]:
        fresh = [_candidate(looks[recipe.backbone], recipe, None, config) for recipe in recipes]
        trials = [_trial(each, looks, sample, config, share) for each in fresh]
        pairs = zip(fresh, _verdicts(trials, timed, together, until=planned.until + 0.1), strict=True)
        return [None if verdict is None else replace(each, verdict=verdict, learnt=share) for each, verdict in pairs]

    bench = Bench(
        config,
        lanes=1 if together is None else together.lanes,
        left=timed.left(planned.until),
        trying=trying,
        seconds=lambda recipe: Trial(looks[recipe.backbone], recipe, sample, config, 1.0).seconds(),
        is_trainable=lambda recipe: trainings * recipe.seconds(looks[recipe.backbone].entrant, config) <= spared,
        depths={name: [depth for depth, _ in look.probes] for name, look in looks.items()},
        starts={name: list(look.states) for name, look in looks.items()},
    )
    further = go_on(found, bench, listen=listen)
    if timed is not clock:
        clock.started += clock.spent - began
    return further


def _candidate(look: _Look, recipe: Recipe, verdict: Judged | None, config: Config) -> Candidate:
    own = recipe.applied(config)
    weights = look.weights_of(int(own.model.layers))
    seconds = recipe.seconds(look.entrant, config)
    return Candidate(recipe.name(config), own.tuning.method, recipe, verdict, seconds, weights)


def _announced(planned: _Planned, sample: Sample, clock: Clock, config: Config) -> str:
    folds, times = len(sample.folds) // sample.repeats, sample.repeats
    how = "validation rows" if folds == 1 else f"rows in {folds} folds" + (f", {times} times over" if times > 1 else "")
    given = "" if config.tuning.budget_seconds is not None else " (tuning.budget was not given)"
    return (
        f"Searching within {lasting(clock.budget)}{given}: {planned.count} candidates learn from "
        f"{sample.each} rows{_halved(planned)} and are judged on {sample.count} {how}."
    )


def _halved(planned: _Planned) -> str:
    """How many rungs there are, in words."""
    if len(planned.rungs) < 2:
        return ""
    told = ", ".join(f"{rung.entrants} of them from {rung.share:.0%}" for rung in planned.rungs)
    return f" ({told})"


@dataclass
class _Look:
    """One backbone's view of the sample: its rows, what they are at several depths, and what probes say of those."""

    entrant: Entrant
    part: Part
    states: dict[int, States]
    probes: dict[tuple[int, str], Judged] = field(default_factory=dict)

    @classmethod
    def at(cls, entrant: Entrant, sample: Sample, config: Config, *, listen: Listener) -> _Look:
        classifier = entrant.classifier
        part = sample.of(entrant.parts)
        top = int(pinned(config, depth=entrant.depth)["model"].get("layers", entrant.depth))
        grid = [top] if gives_depth(config) else _grid(top)
        entries = {depth - less for depth in grid for less in (0, 2, 4) if depth > less}
        dtype = arithmetic(config.tuning.precision, device_of(classifier))
        frozen = FrozenBlocks(classifier.backbone, stop=top, dtype=dtype)
        look = cls(entrant, part, listened(states_by_depth(frozen, part.tokens, entries), listen))
        for how in dict.fromkeys((classifier.pooling, "mean")):
            for depth in grid:
                judged = try_probe(classifier, part, look.states[depth], sample, layers=depth, how=how)
                look.probes[depth, how] = judged
        return look

    def recipes(self, config: Config, *, seconds: float) -> list[tuple[_Look, Recipe]]:
        """What is worth trying, where a winner has so many `seconds`."""
        own = {
            depth: judged.loss_H
            for (depth, how), judged in self.probes.items()
            if how == self.entrant.classifier.pooling
        }
        best = self._best_head(config, seconds)
        depths = shortlist(own) if len(own) > 1 else list(own)
        found = recipes_of(self.entrant, config, depths=depths, head=best, seconds=seconds)
        return [(self, recipe) for recipe in found]

    def _best_head(self, config: Config, seconds: float) -> tuple[int, str]:
        """Depth and pooling of the best probe that there is time for on all held-out rows, else of the least deep."""

        def needed(depth: int) -> float:
            head = Recipe(self.entrant.name, {"model": {"layers": depth}, "tuning": {"method": "head"}})
            return head.seconds(self.entrant, config, rows=least_rows(self.entrant, "head"))

        able = [(depth, how) for depth, how in self.probes if needed(depth) <= seconds] or [min(self.probes)]
        return min(able, key=lambda key: self.probes[key].loss)

    def judge(self, recipe: Recipe, sample: Sample, config: Config, *, share: float = 1.0) -> Judged:
        own = recipe.applied(config)
        if own.tuning.method == "head":
            return self.probes[int(own.model.layers), own.model.pooling]
        states, classifier, epochs = self.entering(recipe, config), self.entrant.classifier, recipe.short_epochs(config)
        return try_recipe(recipe, classifier, self.part, states, sample, config, epochs=epochs, share=share)

    def entering(self, recipe: Recipe, config: Config) -> dict[int, States]:
        """The states that enter the first block which a recipe tunes, by its number; none where all blocks learn."""
        own = recipe.applied(config)
        start = first_tuned_block(own.tuning, int(own.model.layers))
        if start and start not in self.states:
            frozen = FrozenBlocks(
                self.entrant.classifier.backbone, stop=start, dtype=self.states[max(self.states)].hidden_TD.dtype
            )
            self.states |= listened(states_by_depth(frozen, self.part.tokens, [start]), silent)
        return {start: self.states[start]} if start else {}

    def weights_of(self, layers: int) -> int:
        """Numbers of a classifier of so many blocks."""
        classifier = self.entrant.classifier
        blocks = [sum(weight.numel() for weight in block.parameters()) for block in classifier.backbone.blocks]
        return sum(weight.numel() for weight in classifier.parameters()) - sum(blocks[layers:])

    def depths(self, candidates: Sequence[Candidate], sample: Sample, config: Config) -> DepthChoice | None:
        """The course of the probes, and of the tunings of the last two blocks, over the depths of this backbone."""
        mine = [
            (each.recipe.applied(config), each.verdict)
            for each in candidates
            if each.recipe and each.verdict and each.recipe.backbone == self.entrant.name
            if each.hybrid == "none" and each.learnt == 1 and not each.recipe.trial
        ]
        tried = {
            int(own.model.layers): Tried(int(own.model.layers), verdict.loss, float(verdict.right_H.mean()))
            for own, verdict in mine
            if own.tuning.method == "last_layers" and own.tuning.blocks == 2
        }
        if len(self.probes) < 2 or not tried:
            return None
        best = min(tried.values(), key=lambda each: each.loss)
        return DepthChoice(
            layers=best.layers,
            pooling=self.entrant.classifier.pooling,
            probes=tuple(
                Probed(depth, how, judged.loss, float(judged.right_H.mean()))
                for (depth, how), judged in self.probes.items()
            ),
            tunings=tuple(tried[depth] for depth in sorted(tried)),
            rows={"train": sample.each, "validation": sample.count},
            cost=0.0,
            low=0.0,
            high=0.0,
        )


def _grid(deepest: int) -> list[int]:
    lowest = max(1.0, deepest / MOST_DEPTHS)
    return sorted({round(depth) for depth in np.linspace(deepest, lowest, min(MOST_DEPTHS, deepest))})
