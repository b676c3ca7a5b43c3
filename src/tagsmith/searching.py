"""`auto` on a run: which backbones may compete, and what the search decided, before the one classifier is built."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsmith.config import Config, merge
from tagsmith.data.preparing import Prepared
from tagsmith.errors import AssetError, SettingError
from tagsmith.events import Event
from tagsmith.run import Run, Searched

if TYPE_CHECKING:
    from tagsmith.data.token_lengths import TokenLengths
    from tagsmith.model.classifier import Classifier
    from tagsmith.tuning.learner import Part
    from tagsmith.tuning.recipes import Entrant
    from tagsmith.tuning.search import Together

Build = Callable[[Prepared, Run], "Classifier"]
Encode = Callable[["Classifier", Prepared], Mapping[str, "Part"]]

ANY = "minilm-l6,smollm2-135m-instruct-q4"
"""The backbones that compete where `any` is asked for, the quickest first: small, and to be had without a hub."""

LATEST_ENTRY = 1 / 3
"""The share of a budget after which no further backbone enters: to build one and measure its speed takes seconds."""

UNEVEN = 2 / 3, 1 / 5
"""Labels are uneven where one has so much of the rows at least, and another so much of its rows at most: accuracy says
little then, since always answering the first is right nearly as often."""

MOST_CUT = 0.05
"""Where more of the texts are longer than a backbone reads, half of each end is read instead of the start."""


def searched(
    prepared: Prepared,
    run: Run,
    *,
    build: Build,
    encode: Encode,
    started: float,
    kept: Path,
    resume: bool,
    together: Together | None = None,
) -> Searched:
    """What a search decides, or decided before the run was stopped; the run's settings and notes are what it says.

    Args:
        build, encode: the pipeline's own steps, for each backbone in turn.
        started: when reading began (`time.perf_counter`); the budget counts from there.
        kept: where it is kept, for `resume`.
        together: what tries several candidates at a time.
    """
    if resume and kept.exists():
        found = Searched.read(kept)
    else:
        told = _take_measure(prepared, run)
        found = _search(prepared, run, build=build, encode=encode, started=started, together=together)
        found = replace(found, notes=[*told, *found.notes])
        kept.parent.mkdir(parents=True, exist_ok=True)
        found.write(kept)
    for text in found.notes:
        run.note(text)
    run.facts["search"] = {"sample": found.sample}
    run.searched, run.config = found, Config.of(found.settings)
    return found


def _take_measure(prepared: Prepared, run: Run) -> list[str]:
    """Let macro F1 decide where labels are uneven and the user named no measure, and say so."""
    shares = prepared.true_priors
    if prepared.splits.train.multi_label or "metric" in run.config.evaluation.model_fields_set:
        return []
    most, least = max(shares, key=lambda name: shares[name]), min(shares, key=lambda name: shares[name])
    if shares[most] < UNEVEN[0] or shares[least] > UNEVEN[1] * shares[most]:
        return []
    given = run.config.model_dump(exclude_unset=True)  # what the user left open stays open
    run.config = Config.of(merge(given, {"evaluation": {"metric": "macro_f1"}}))
    told = f"Labels are uneven: {shares[most]:.0%} of the rows are '{most}' and {shares[least]:.1%} '{least}'."
    return [f"{told} So macro F1 decides, which counts each label alike; evaluation.metric takes another measure."]


def _search(
    prepared: Prepared, run: Run, *, build: Build, encode: Encode, started: float, together: Together | None
) -> Searched:
    from tagsmith.tuning.budget import Clock, budget_of
    from tagsmith.tuning.entering import within_reach
    from tagsmith.tuning.search import search

    all_of_them = _entrants(prepared, run, build=build, encode=encode, started=started)
    clock = Clock(budget_of(run.config, all_of_them), started)
    entrants = within_reach(all_of_them, clock)
    for name in sorted({each.name for each in all_of_them} - {each.name for each in entrants}):
        run.note(
            f"The backbone '{name}' does not compete: a look at a sample of these texts, or a pass over half of its "
            f"blocks with all of them, would take too much of the {clock.budget:.0f} s. Give it more with --budget."
        )
    texts = {name: table.texts for name, table in prepared.splits.items() if name != "test"}
    found = search(entrants, texts, run.config, clock=clock, together=together, listen=run.listen)
    return Searched(
        settings=found.recipe.applied(run.config).model_dump(mode="json"),
        candidates=found.as_dicts(),
        times=found.times(),
        notes=list(found.texts),
        sample=dict(found.sample),
        depth=None if found.depth is None else found.depth.as_dict(),
        budget=found.budget,
    )


def require_search(config: Config, *, is_known: bool = False) -> None:
    """SettingError where settings only make sense with a search and there is none: several backbones, a budget, trials.

    Trials also need a library, unless it `is_known` already what a search found.
    """
    if config.tuning.method == "auto":
        if not is_known:
            from tagsmith.tuning.sampling import require_optuna

            require_optuna(config)
        return
    if config.tuning.trials:
        raise SettingError(
            f"tuning.trials is {config.tuning.trials}, but tuning.method is '{config.tuning.method}', which does not "
            "search, and trials go on from a search. Leave them out, or take tuning.method = 'auto'."
        )
    if config.tuning.budget is not None:
        raise SettingError(
            f"tuning.budget is '{config.tuning.budget}', but tuning.method is '{config.tuning.method}', which does not "
            "search. Leave the budget out, or take tuning.method = 'auto'."
        )
    if "," in config.model.backbone or config.model.backbone == "any":
        raise SettingError(
            f"model.backbone is '{config.model.backbone}', and tuning.method is '{config.tuning.method}', which tunes "
            "one backbone. Name one, or take tuning.method = 'auto', which lets several compete."
        )


def _entrants(prepared: Prepared, run: Run, *, build: Build, encode: Encode, started: float) -> list[Entrant]:
    found, absent, budget = [], [], run.config.tuning.budget_seconds
    for name in _names(run.config):
        if found and budget is not None and time.perf_counter() - started > LATEST_ENTRY * budget:
            run.note(
                f"The backbone '{name}' does not compete: a third of the {budget:.0f} s was over before its speed was "
                "measured. Give it more with --budget."
            )
            continue
        try:
            entrant = _entrant(name, prepared, run, build=build, encode=encode)
        except AssetError as error:
            absent.append(error)
            run.note(f"The backbone '{name}' does not compete: {error}")
            continue
        if entrant is not None:
            found.append(entrant)
    if not found and absent:
        raise absent[0]
    if not found:
        raise SettingError(
            f"None of the backbones '{run.config.model.backbone}' can read these texts. Expected one whose tokenizer "
            "knows the language; name another with --backbone (`tagsmith assets` lists some)."
        )
    return found


def _names(config: Config) -> list[str]:
    is_given = "backbone" in config.model.model_fields_set and config.model.backbone != "any"
    asked = config.model.backbone if is_given else ANY
    return list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))


def _entrant(name: str, prepared: Prepared, run: Run, *, build: Build, encode: Encode) -> Entrant | None:
    """A backbone with all its blocks, ready to compete; None where its tokenizer does not know the language."""
    from tagsmith.data.token_lengths import MOST_UNKNOWN
    from tagsmith.tuning.entering import enter
    from tagsmith.tuning.recipes import gives_depth

    layers = run.config.model.layers if gives_depth(run.config) else "all"
    model: dict[str, Any] = {"backbone": name, "layers": layers}
    own = replace(run, config=run.config.with_settings({"model": model}), listen=_unheard(run))
    classifier = build(prepared, own)
    found = _token_lengths(classifier, prepared)
    if found.unknown > MOST_UNKNOWN:
        run.note(
            f"The backbone '{name}' does not compete: its tokenizer does not know {found.unknown:.0%} of the "
            f"texts (at most {MOST_UNKNOWN:.0%} is accepted)."
        )
        return None
    settings: dict[str, Any] = {}
    if found.cut > MOST_CUT and "long_texts" not in run.config.model.model_fields_set:
        classifier.encoder = classifier.encoder.reading("head_tail")
        settings = {"model": {"long_texts": "head_tail"}}
    began = time.perf_counter()
    parts = {part: rows for part, rows in encode(classifier, prepared).items() if part != "test" and len(rows.truth)}
    entrant = enter(name, classifier, parts, own.config)
    return replace(entrant, settings=settings, took=time.perf_counter() - began)


def _unheard(run: Run) -> Callable[[Event], None]:
    """All but what a single backbone would say of itself: several compete."""

    def listen(event: Event) -> None:
        if event.name != "built":
            run.listen(event)

    return listen


def _token_lengths(classifier: Classifier, prepared: Prepared) -> TokenLengths:
    import polars as pl
    from tokenizers import Tokenizer

    from tagsmith.data.token_lengths import measure_tokens

    encoder = classifier.encoder
    texts = pl.concat([part.frame["text"] for name, part in prepared.splits.items() if name != "test"])
    return measure_tokens(Tokenizer.from_str(encoder.tokenizer.to_str()), texts, max_tokens=encoder.max_tokens)
