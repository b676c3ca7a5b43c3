"""The five stages in order: START HERE.

A file of labelled text becomes splits (`data/`), an LLM with its head replaced (`model/`), a tuned classifier
(`tuning/`), a report (`evaluation/`) and a bundle that answers (`deployment/`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.answering import require_provable
from tagsmith.auditing import look_at_others, look_back
from tagsmith.building import assembled, build, import_all, locate, place, require_room, settle_long_texts
from tagsmith.config import Config, merge, settings_of
from tagsmith.data.hands import OWN, Hands
from tagsmith.data.preparing import limit_training
from tagsmith.data.table import Table
from tagsmith.distilling import distil, refuse_student, require_distillable
from tagsmith.errors import DataError, SettingError
from tagsmith.events import Event, Listener, silent
from tagsmith.learning import encode, settle_depth, tune
from tagsmith.measuring import (
    asked_of,
    book_tables,
    cascade_again,
    count_look,
    data_section,
    measure_test,
    require_measuring,
    robustness_again,
    rows_that_took_part,
)
from tagsmith.model.hybrid import WHOLE
from tagsmith.naming import Source, default_out, name_of, reproduce
from tagsmith.reading import check_rows, prepare_sources, read_labelled_or_not, read_source, require_use_of_query
from tagsmith.refitting import require_refit
from tagsmith.rivals import rival_probabilities
from tagsmith.run import Ready, Run, truth_of
from tagsmith.searching import require_search, searched
from tagsmith.teaching import require_student
from tagsmith.tuning.parallel import join
from tagsmith.writing import environment, save, save_refitted, version, write_profile, write_report_of

if TYPE_CHECKING:
    from tagsmith.data.checking import Check
    from tagsmith.data.token_lengths import TokenLengths
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.evaluation.report import Report
    from tagsmith.tuning.forecast import Foretold
    from tagsmith.tuning.search import Together


def train(
    source: Source,
    *,
    validation: Source | None = None,
    test: Source | None = None,
    out: str | Path | None = None,
    config: Config | None = None,
    preset: str = "auto",
    force: bool = False,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    listen: Listener = silent,
    ready: Ready | None = None,
    is_searched: bool = False,
    unlabelled: str | Path | None = None,
) -> Bundle:
    """Train a classifier on a table of labelled text, measure it, save it, and give it back ready to answer.

    Args:
        source: a file, `-` for standard input, a named data set such as `sms-spam`, or a table.
        validation: rows of your own to choose by, and
        test: rows of your own to measure on; what is not given is split off `source`.
        out: folder of the bundle; `./NAME-tagsmith` when it is not given, then `-2` and so on.
        config: all settings; when it is not given, those of `preset`.
        preset: a name of `tagsmith.config.PRESETS`.
        force: replace an existing `out`.
        resume: go on from the checkpoint that an interrupted run left beside `out`.
        stop: asked after each step; when it says so, a checkpoint is written and `StoppedError` raised.
        listen: told each event.
        ready: what `prepare_rows` made of these sources with this `config`, so that it is not made again.
        is_searched: `search_ready` has left beside `out` what is to be trained.
        unlabelled: a file of rows without labels: a faster student learns from them, and they are ranked for labelling.
    """
    from tagsmith.deployment.manifest import refuse_existing, staging

    started = time.perf_counter()
    config = config or Config.of(settings_of(preset))
    require_search(config, is_known=resume or is_searched)
    folder = Path(out) if out is not None else default_out(source, resume=resume)
    refuse_existing(folder, force=force)
    if unlabelled is not None:
        refuse_student(folder, force=force)
    elif config.tuning.student != "tfidf":
        told = f"tuning.student = {config.tuning.student} teaches nobody: there are no rows without labels."
        listen(Event("data", "note", values={"text": f"{told} Name them with --unlabelled."}))
    ranks = join(config.tuning.device)
    # Of several processes one speaks, unless its listener says who listens to the others.
    listen = listen if ranks.is_first else getattr(listen, "of_others", silent)
    run = Run(config, listen, command=reproduce(source, validation=validation, test=test, config=config))
    run.source = None if name_of(source) in ("TABLE", "-") else name_of(source)
    listen(Event("data", "settings", values=config.flat()))

    with run.timed("data"), ranks.first_alone():
        prepared = prepare_sources(source, validation, test, run) if ready is None else run.take(ready)
        check_rows(prepared, run)
        require_provable(prepared, config)
        require_refit(config, processes=ranks.count)
        if unlabelled is not None:
            require_distillable(prepared.splits.train)
            require_student(config, run, processes=ranks.count)
    with run.timed("imports"):
        import_all()
    kept = folder.parent / f"{folder.name}.plan.json"
    if config.tuning.method == "auto":
        is_known = (
            resume or is_searched or not ranks.is_first
        )  # of several processes one searches, and the others read what it found
        with run.timed("search"), ranks.first_alone():
            searched(prepared, run, build=build, encode=encode, started=started, kept=kept, resume=is_known)
        run.command = reproduce(source, validation=validation, test=test, config=run.config)
    prepared = limit_training(prepared, run.config.tuning.most_rows, seed=run.config.seed)
    with run.timed("model"):
        with ranks.first_alone():
            classifier = assembled(prepared, run)
        checkpoint = folder.parent / f"{folder.name}.checkpoint"
        place(classifier, run, checkpoint=checkpoint if resume else None)
        settle_long_texts(classifier, prepared, run)
        require_room(folder.parent, classifier)
    with run.timed("tuning"):
        from tagsmith.tuning.checkpoints import drop_checkpoint

        result = tune(classifier, prepared, run, checkpoint=checkpoint, resume=resume, stop=stop)
    if not ranks.is_first:  # the first process saves and measures
        from tagsmith.deployment.bundle import load

        ranks.wait()
        return load(folder)
    with staging(folder, force=force) as aside:
        with run.timed("deployment"):
            bundle = save(aside, classifier, prepared, result, run)
        del classifier  # what was saved is measured, and two models need not be held
        with run.timed("evaluation"):
            measured = measure_test(bundle, prepared, result, run)
            report, probs_NC = measured.report, measured.probs_NC
            looked = look_back(
                bundle, prepared, result, run, probs_NC=probs_NC, means_ND=measured.means_ND, spare=measured.spare
            )
        plain = report.as_dict() | looked.keys | book_tables(bundle, prepared, result, report, run)
        if run.config.tuning.refit:
            with run.timed("refit"):
                bundle = save_refitted(aside, bundle, prepared, result, run, stop=stop)
            plain["notes"] = [*prepared.notes, *run.notes]
        write_report_of(bundle, plain, looked.texts, run)
        write_profile(bundle, probs_NC, prepared)
    drop_checkpoint(checkpoint)
    kept.unlink(missing_ok=True)
    ranks.wait()
    bundle = replace(bundle, folder=folder, report=plain)
    if unlabelled is not None:
        distil(bundle, prepared, unlabelled, run, stop=stop)
    listen(Event("deployment", "done", values={"folder": str(folder)}))
    return bundle


def evaluate(
    bundle: Bundle | str | Path,
    source: Source,
    *,
    query: str | None = None,
    out: str | Path | None = None,
    page: str | Path | None = None,
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
    listen: Listener = silent,
) -> Report:
    """Measure a bundle on other labelled rows, and say whether they differ from those that it was tested on.

    The baselines are those that were fitted when it was trained. DataError for labels that training did not see.

    Args:
        bundle: its folder, or a loaded one.
        source: as in `train`.
        query: what a database is asked, never the one of the training.
        settings: those of the training that say what is measured, changed, as `{"evaluation": {"slices": ["shop"]}}`.
        out: folder for report.json and its page, and
        page: file for the page alone; with texts of the rows in it.
        force: replace what is there.
        listen: told each event.
    """
    from tagsmith.data.duplicates import group_duplicates
    from tagsmith.deployment.bundle import load
    from tagsmith.deployment.saving import refuse_evaluation, write_evaluation
    from tagsmith.evaluation.report import build_report

    refuse_evaluation(out, page, force=force)
    loaded = load(bundle) if isinstance(bundle, str | Path) else bundle
    require_measuring(settings or {})
    config = Config.of(loaded.settings["config"]).with_settings(merge(settings or {}, {"data": {"query": query}}))
    command = ["tagsmith", "evaluate", str(loaded.folder), name_of(source), *(["--query", query] if query else [])]
    run = Run(config, listen, command=shlex.join(command))
    require_use_of_query(config, source)
    table = read_source(source, run, sliced=True)
    grouped = group_duplicates(table, near=config.data.near_duplicates)
    truth = truth_of(grouped.table, loaded.engine.labels)
    probs_NC = loaded.predict_proba(table.texts)
    answered = np.flatnonzero(~np.isnan(probs_NC).any(axis=1))
    if not len(answered):
        raise DataError(f"All {len(table)} texts are empty. Expected labelled rows with a text; check the column.")
    if len(answered) < len(table):
        run.note(
            f"{len(table) - len(answered)} of {len(table)} rows have an empty text, get no answer, and count nowhere."
        )
    used = grouped.table.take(answered)
    count_look(used, run, what="evaluate")
    truth, probs_NC, rivals = truth[answered], probs_NC[answered], rival_probabilities(loaded, used.texts)
    looked = look_at_others(loaded, used, truth, probs_NC, listen=listen, seed=config.seed)
    report = build_report(
        data=data_section(
            grouped.table.history, rows=len(table), splits={"test": len(table)}, labels=loaded.engine.labels
        ),
        model=loaded.report.get("model", {}),
        settings=config.model_dump(),
        truth=truth,
        probs=probs_NC,
        baseline_probs=rivals,
        thresholds=loaded.thresholds,
        metric=config.evaluation.metric,
        name=WHOLE[(loaded.settings.get("hybrid") or {}).get("kind", "none")],
        groups=used.groups,
        leaked=rows_that_took_part(loaded, used, run),
        asked=asked_of(used, loaded, run),
        cascade=cascade_again(loaded, used, truth, probs_NC, rivals["tfidf"], run),
        robustness=robustness_again(loaded, used, truth, {"model": probs_NC, "tfidf": rivals["tfidf"]}, run),
        labels=loaded.engine.labels,
        calibration=loaded.settings["calibration"],
        notes=run.notes,
        reproduce=run.command,
        margin=config.evaluation.margin,
        resamples=config.evaluation.resamples,
        seed=config.seed,
    )
    report = replace(report, **looked.keys)
    facts = {**run.apart, "environment": environment()}
    write_evaluation(report, looked.texts, run=facts, out=out, page=page)
    return report


def check(
    source: Source,
    *,
    against: Source | None = None,
    config: Config | None = None,
    download: bool = False,
    listen: Listener = silent,
) -> Check:
    """Look at a table before any training: what it holds, and what could mislead.

    Args:
        source: as in `train`; its rows need no labels.
        against: rows that are to be measured on: do they stand in `source`?
        config: the settings that a training would have; `model.backbone` says whose tokens are counted,
        download: even where the backbone must be fetched for that.
        listen: told each event.
    """
    from tagsmith.data.checking import check as look
    from tagsmith.data.duplicates import group_duplicates

    config = config or Config()
    run = Run(config, listen, command="")
    require_use_of_query(config, source, against)
    table, no_labels = read_labelled_or_not(source, run)
    other = None if against is None else read_labelled_or_not(against, run)[0]
    grouped = group_duplicates(table, near=config.data.near_duplicates)
    tokens = _tokens_of(table, run, download=download)
    found = look(grouped, config.data, against=other, tokens=tokens, no_labels=no_labels)
    about: dict[str, Any] = {
        "tagsmith": version(),
        "source": name_of(source),
        "backbone": config.model.backbone,
    }
    if against is not None:
        about["against"] = name_of(against)
    return replace(found, facts={**about, "notes": run.notes, **found.facts})


def forecast(
    source: Source, *, config: Config | None = None, out: str | Path = ".", listen: Listener = silent
) -> Foretold:
    """What a training on `source` would take here, measured on a few of its batches; nothing is trained or written.

    Args:
        source: as in `train`.
        config: the settings that a training would have; a search, which chooses within a budget, has no forecast.
        out: the disk that the bundle would lie on.
        listen: told each event.
    """
    from tagsmith.tuning.forecast import Foretold, make_forecast

    config = config or Config.of(settings_of("fixed"))
    if config.tuning.method == "auto":
        raise SettingError(
            "tuning.method is 'auto', which searches within tuning.budget and has no forecast. Expected one plan; take "
            "--preset fixed, or name a method as --set tuning.method=last_layers."
        )
    run = Run(config, listen, command="")
    with run.timed("data"):
        prepared = prepare_sources(source, None, None, run)
    import_all()
    limited = limit_training(prepared, config.tuning.most_rows, seed=config.seed)
    classifier = build(limited, run)
    settle_long_texts(classifier, limited, run)
    parts = encode(classifier, limited)
    is_passed = bool(settle_depth(classifier, parts, run))
    train = limited.splits.train.frame["text"]
    letters = int(train.str.len_chars().sum())
    found = make_forecast(classifier, parts, run.config, letters=letters, output=Path(out), is_passed=is_passed)
    rows = sum(len(table) for _, table in prepared.splits.items())
    return Foretold(
        found, rows=rows, data_s=run.seconds["data"], row_bytes=int(train.str.len_bytes().sum()) / len(train)
    )


def _tokens_of(table: Table, run: Run, *, download: bool) -> TokenLengths | None:
    """The lengths of texts in tokens, where the backbone's tokenizer is at hand or may be fetched."""
    from tokenizers import Tokenizer

    from tagsmith.data.token_lengths import measure_tokens
    from tagsmith.model.tokenizer_files import NAME, tokenizer_at_hand

    names = run.config.model.backbone.split(" or ")
    path = next((path for name in names if (path := tokenizer_at_hand(name.strip()))), None)
    if path is None and download:
        from tagsmith.model.gguf import ready_folder

        path = ready_folder(locate(run), listen=run.listen) / NAME
    if path is None:
        run.note(f"Tokens were not counted: '{names[0]}' is not in the cache. Name it with --backbone to fetch it.")
        return None
    texts, most = table.frame["text"], run.config.model.max_tokens
    return measure_tokens(Tokenizer.from_file(str(path)), texts, max_tokens=most)


def prepare_rows(
    source: Source,
    *,
    validation: Source | None = None,
    test: Source | None = None,
    config: Config,
    hands: Hands = OWN,
    listen: Listener = silent,
) -> Ready:
    """The splits that `train` makes of these sources, with the heavy work done by `hands`."""
    run = Run(config, listen, command="", hands=hands)
    with run.timed("data"):
        prepared = prepare_sources(source, validation, test, run)
    return Ready(prepared, tuple(run.notes), run.seconds["data"])


def search_ready(
    ready: Ready, *, out: Path, config: Config, together: Together, resume: bool, listen: Listener = silent
) -> None:
    """Let the candidates of `auto` compete, several at a time, and leave what won beside `out`, for `train`."""
    run, started = Run(config, listen, command=""), time.perf_counter() - ready.seconds
    import_all()
    kept = out.parent / f"{out.name}.plan.json"
    options: dict[str, Any] = {"build": build, "encode": encode, "started": started, "together": together}
    searched(run.take(ready), run, kept=kept, resume=resume, **options)
