"""The five stages in order: START HERE.

A file of labelled text becomes splits (`data/`), an LLM with its head replaced (`model/`), a tuned classifier
(`tuning/`), a report (`evaluation/`) and a bundle that answers (`deployment/`).
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tagsmith.answering import fit_answering, require_provable
from tagsmith.assets import Located, backbone_folder, dataset_file
from tagsmith.auditing import look_at_others, look_back
from tagsmith.blending import blend
from tagsmith.catalogue import ASSETS
from tagsmith.config import Config, merge, settings_of
from tagsmith.data.column_cleaning import clean_table
from tagsmith.data.hands import OWN, Hands
from tagsmith.data.labelling import SIMILAR
from tagsmith.data.pairs import PAIR
from tagsmith.data.preparing import Prepared, limit_training, prepare, prepare_given
from tagsmith.data.readers import is_url, read_as, redacted
from tagsmith.data.table import Table
from tagsmith.deciding import note_decision
from tagsmith.distilling import distil, refuse_student, require_distillable
from tagsmith.errors import AssetError, DataError, ResourceError, SettingError
from tagsmith.events import Event, Listener, silent
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
from tagsmith.refitting import refit, require_refit
from tagsmith.rivals import rival_probabilities, save_tfidf
from tagsmith.run import FurtherSeed, Ready, Result, Run, labels_of, truth_of
from tagsmith.searching import require_search, searched
from tagsmith.tuning.parallel import join

if TYPE_CHECKING:
    from tagsmith.data.checking import Check
    from tagsmith.data.token_lengths import TokenLengths
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.evaluation.page.texts import PageTexts
    from tagsmith.evaluation.report import Report
    from tagsmith.model.classifier import Classifier
    from tagsmith.tuning.forecast import Foretold
    from tagsmith.tuning.learner import Part
    from tagsmith.tuning.loop import Tuned
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
    require_search(config)
    folder = Path(out) if out is not None else default_out(source, resume=resume)
    refuse_existing(folder, force=force)
    if unlabelled is not None:
        refuse_student(folder, force=force)
    ranks = join(config.tuning.device)
    # Of several processes one speaks, unless its listener says who listens to the others.
    listen = listen if ranks.is_first else getattr(listen, "of_others", silent)
    run = Run(config, listen, command=reproduce(source, validation=validation, test=test, config=config))
    run.source = None if name_of(source) in ("TABLE", "-") else name_of(source)
    listen(Event("data", "settings", values=config.flat()))

    with run.timed("data"), ranks.first_alone():
        prepared = _prepare(source, validation, test, run) if ready is None else run.take(ready)
        _look(prepared, run)
        require_provable(prepared, config)
        require_refit(config)
        if unlabelled is not None:
            require_distillable(prepared.splits.train)
    with run.timed("imports"):
        _import_all()
    kept = folder.parent / f"{folder.name}.plan.json"
    if config.tuning.method == "auto":
        is_known = (
            resume or is_searched or not ranks.is_first
        )  # of several processes one searches, and the others read what it found
        with run.timed("search"), ranks.first_alone():
            searched(prepared, run, build=_build, encode=_encode, started=started, kept=kept, resume=is_known)
        run.command = reproduce(source, validation=validation, test=test, config=run.config)
    prepared = limit_training(prepared, run.config.tuning.most_rows, seed=run.config.seed)
    with run.timed("model"):
        with ranks.first_alone():
            classifier = _assembled(prepared, run)
        checkpoint = folder.parent / f"{folder.name}.checkpoint"
        _place(classifier, run, checkpoint=checkpoint if resume else None)
        _choose_long_texts(classifier, prepared, run)
        _require_room(folder.parent, classifier)
    with run.timed("tuning"):
        from tagsmith.tuning.checkpoints import drop_checkpoint

        result = _tune(classifier, prepared, run, checkpoint=checkpoint, resume=resume, stop=stop)
    if not ranks.is_first:  # the first process saves and measures
        from tagsmith.deployment.bundle import load

        ranks.wait()
        return load(folder)
    with staging(folder, force=force) as aside:
        with run.timed("deployment"):
            bundle = _save(aside, classifier, prepared, result, run)
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
                bundle = _refit(aside, bundle, prepared, result, run, stop=stop)
            plain["notes"] = [*prepared.notes, *run.notes]
        _write_report(bundle, plain, looked.texts, run)
        _write_profile(bundle, probs_NC, prepared)
    drop_checkpoint(checkpoint)
    kept.unlink(missing_ok=True)
    ranks.wait()
    bundle = replace(bundle, folder=folder, report=plain)
    if unlabelled is not None:
        distil(bundle, prepared, unlabelled, run)
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
    _require_use_of_query(config, source)
    table = _read(source, run, sliced=True)
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
    facts = {**run.apart, "environment": _environment()}
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
    _require_use_of_query(config, source, against)
    table, no_labels = _read_labelled_or_not(source, run)
    other = None if against is None else _read_labelled_or_not(against, run)[0]
    grouped = group_duplicates(table, near=config.data.near_duplicates)
    tokens = _tokens_of(table, run, download=download)
    found = look(grouped, config.data, against=other, tokens=tokens, no_labels=no_labels)
    about: dict[str, Any] = {
        "tagsmith": _version(),
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
        prepared = _prepare(source, None, None, run)
    _import_all()
    limited = limit_training(prepared, config.tuning.most_rows, seed=config.seed)
    classifier = _build(limited, run)
    _choose_long_texts(classifier, limited, run)
    parts = _encode(classifier, limited)
    _choose_depth(classifier, parts, run)
    train = limited.splits.train.frame["text"]
    letters = int(train.str.len_chars().sum())
    found = make_forecast(classifier, parts, run.config, letters=letters, output=Path(out))
    rows = sum(len(table) for _, table in prepared.splits.items())
    return Foretold(
        found, rows=rows, data_s=run.seconds["data"], row_bytes=int(train.str.len_bytes().sum()) / len(train)
    )


def _read_labelled_or_not(source: Source, run: Run) -> tuple[Table, str]:
    """The rows of a source, and why no labels were found; the rows have none then."""
    try:
        return _read(source, run), ""
    except DataError as error:
        if isinstance(source, Table) or run.config.data.label is not None:
            raise
        try:
            return _read(source, run, labelled=False), str(error)
        except DataError:
            raise error from None


def _tokens_of(table: Table, run: Run, *, download: bool) -> TokenLengths | None:
    """The lengths of texts in tokens, where the backbone's tokenizer is at hand or may be fetched."""
    from tokenizers import Tokenizer

    from tagsmith.data.token_lengths import measure_tokens
    from tagsmith.model.tokenizer_files import NAME, tokenizer_at_hand

    names = run.config.model.backbone.split(" or ")
    path = next((path for name in names if (path := tokenizer_at_hand(name.strip()))), None)
    if path is None and download:
        from tagsmith.model.gguf import ready_folder

        path = ready_folder(_locate(run), listen=run.listen) / NAME
    if path is None:
        run.note(f"Tokens were not counted: '{names[0]}' is not in the cache. Name it with --backbone to fetch it.")
        return None
    texts, most = table.frame["text"], run.config.model.max_tokens
    return measure_tokens(Tokenizer.from_file(str(path)), texts, max_tokens=most)


# ---- Stage 1: data preparation


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
        prepared = _prepare(source, validation, test, run)
    return Ready(prepared, tuple(run.notes), run.seconds["data"])


def search_ready(
    ready: Ready, *, out: Path, config: Config, together: Together, resume: bool, listen: Listener = silent
) -> None:
    """Let the candidates of `auto` compete, several at a time, and leave what won beside `out`, for `train`."""
    run, started = Run(config, listen, command=""), time.perf_counter() - ready.seconds
    _import_all()
    kept = out.parent / f"{out.name}.plan.json"
    options: dict[str, Any] = {"build": _build, "encode": _encode, "started": started, "together": together}
    searched(run.take(ready), run, kept=kept, resume=resume, **options)


def _prepare(source: Source, validation: Source | None, test: Source | None, run: Run) -> Prepared:
    _require_use_of_query(run.config, source, validation, test)
    if run.config.data.earlier is not None:
        from tagsmith.deployment.manifest import verify

        verify(Path(run.config.data.earlier))
    train_table = _read(source, run, divided=True, sliced=test is None)
    validation_table = None if validation is None else _read(validation, run)
    test_table = None if test is None else _read(test, run, sliced=True)
    if validation_table is None and test_table is None:
        prepared = prepare(
            train_table, run.config.data, seed=run.config.seed, listen=run.listen, sketched=run.hands.sketched
        )
    else:
        prepared = prepare_given(
            train_table,
            validation_table,
            test_table,
            run.config.data,
            seed=run.config.seed,
            listen=run.listen,
            sketched=run.hands.sketched,
        )
    return prepared if run.config.data.corrections is None else _corrected(prepared, run)


def _corrected(prepared: Prepared, run: Run) -> Prepared:
    from tagsmith.data.corrections import learn_corrections, read_corrections

    config = run.config.data
    corrections = clean_table(read_corrections(str(config.corrections)), config.clean)
    prepared = learn_corrections(prepared, corrections, near=config.near_duplicates)
    run.note(f"{prepared.history[-1].reason}.")
    return prepared


def _look(prepared: Prepared, run: Run) -> None:
    """The check of the rows that are used, for the report; what could mislead is said at once."""
    from tagsmith.data.checking import check as look
    from tagsmith.data.duplicates import Grouped

    frames = [part.frame.select("row", "text", "label", "group") for _, part in prepared.splits.items()]
    frame = pl.concat(frames).unique(["row", "text"], keep="first", maintain_order=True)  # oversampled rows count once
    counts: Mapping[str, Any] = prepared.duplicates
    grouped = Grouped(table=Table(frame, prepared.history), **counts)
    found = look(grouped, run.config.data, test_rows=len(prepared.splits.test))
    run.facts["check"] = found.compact()
    for finding in found.findings:
        if finding.severity == "warning":
            run.listen(Event("data", "note", values={"text": f"{finding.text} {finding.advice}"}))


def _read(source: Source, run: Run, *, labelled: bool = True, divided: bool = False, sliced: bool = False) -> Table:
    """The rows of a source, cleaned; `divided` and `sliced` ones with the columns that say how."""
    table = _read_as_it_is(source, run, labelled=labelled, divided=divided, sliced=sliced)
    table = clean_table(table, run.config.data.clean, clean=run.hands.clean)
    if not len(table):
        steps = ", ".join(run.config.data.clean)
        raise DataError(f"Cleaning ({steps}) leaves no text in any row. Expected some; take fewer steps in data.clean.")
    return table


def _require_use_of_query(config: Config, *sources: Source | None) -> None:
    if config.data.query is not None and not any(isinstance(source, str) and is_url(source) for source in sources):
        raise SettingError(
            "data.query is set, and no source is a database. Expected sqlite:///PATH or postgresql://...; leave the "
            "query out."
        )


def _read_as_it_is(source: Source, run: Run, *, labelled: bool, divided: bool, sliced: bool) -> Table:
    if isinstance(source, Table):
        return source
    slices = run.config.evaluation.slices if sliced else ()
    table = read_as(
        _path(source, run),
        run.config.data,
        labelled=labelled,
        divided=divided,
        slices=slices,
        read_files=run.hands.read_files,
    )
    run.listen(Event("data", "read", values={"source": redacted(source), "rows": len(table)}))
    for change in table.history:
        if change.step == SIMILAR:
            run.note(f"{redacted(source)}: {change.reason}")
    return table


def _path(source: str | Path, run: Run) -> str | Path:
    """The file behind a named data set; any other source as it is."""
    asset = ASSETS.get(str(source))
    if asset is None or asset.kind != "dataset" or Path(source).exists():
        return source
    located = dataset_file(asset.name, listen=run.listen)
    if located.note:
        run.note(f"{asset.name}: {located.note}.")
    return located.path


# ---- Stage 2: re-architecting the LLM


def _import_all() -> None:
    """Import what takes seconds, so that its time is stated apart."""
    for name in _HEAVY:
        import_module(name)
    from tagsmith.model.packing import keep_few_kernels, keep_freed_memory

    keep_freed_memory()
    keep_few_kernels()


_HEAVY = (
    "scipy.optimize",
    "scipy.stats",
    "sklearn.linear_model",
    "transformers.masking_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",  # most backbones are Llamas, and the others import the same
    "tagsmith.model.classifier",
    "tagsmith.tuning.loop",
)


def _build(prepared: Prepared, run: Run) -> Classifier:
    from tagsmith.model.device import choose_device

    return _assembled(prepared, run).to(choose_device(run.config.tuning.device))


def _place(classifier: Classifier, run: Run, *, checkpoint: Path | None) -> None:
    """Put the classifier where it learns; one whose weights are to be divided stays in the CPU's memory."""
    from tagsmith.model.device import choose_device
    from tagsmith.tuning.dividing import chosen
    from tagsmith.tuning.parallel import ranks_here
    from tagsmith.tuning.sharded_checkpoints import SHARDED

    was_divided = checkpoint is not None and any(checkpoint.glob(f"*{SHARDED}"))
    device, weights = choose_device(run.config.tuning.device), sum(each.numel() for each in classifier.parameters())
    choice = chosen(run.config, weights, device, ranks_here(), was_divided=was_divided)
    if not choice.is_divided:
        classifier.to(device)
        return
    if choice.told:
        run.note(choice.told)
    run.config = run.config.with_settings({"tuning": {"sharding": "fully"}})


def _assembled(prepared: Prepared, run: Run) -> Classifier:
    """The untrained classifier, in the CPU's memory."""
    from tagsmith.model.classifier import build
    from tagsmith.model.gguf import ready_folder
    from tagsmith.model.heads import begin_at

    run.weights = _locate(run)
    folder = ready_folder(run.weights, listen=run.listen)
    model, asset = run.config.model, ASSETS.get(run.weights.name)
    layers: int | None = model.layers if isinstance(model.layers, int) else None
    if model.layers == "recommended" and asset is not None:
        layers = asset.layers
    labels = labels_of(prepared.splits.train)
    pairs = bool(prepared.splits.train.frame["text"].str.contains(PAIR, literal=True).any())
    classifier = build(folder, model, labels=labels, layers=layers, seed=run.config.seed, pairs=pairs)
    if labels.multi_label:
        weights_C = None if prepared.class_weights is None else labels.in_order(prepared.class_weights)
        begin_at(classifier.head, truth_of(prepared.splits.train, labels), weights_C=weights_C)
    values = {"backbone": run.weights.name, "layers": classifier.backbone.depth, "pooling": classifier.pooling}
    run.listen(Event("model", "built", values=values))
    return classifier


def _choose_long_texts(classifier: Classifier, prepared: Prepared, run: Run) -> None:
    """With `model.long_texts = auto` the validation rows decide what is read of long texts."""
    if run.config.model.long_texts != "auto":
        return
    from tagsmith.model.device import arithmetic, device_of
    from tagsmith.tuning.long_texts import Sample, choose_long_texts

    train, validation = (
        Sample(table.texts, truth_of(table, classifier.labels))
        for table in (prepared.splits.train, prepared.splits.validation)
    )
    dtype = arithmetic(run.config.tuning.precision, device_of(classifier))
    choice = choose_long_texts(classifier, train, validation, dtype=dtype, seed=run.config.seed, listen=run.listen)
    classifier.encoder = classifier.encoder.reading(choice.policy)
    losses = ", ".join(f"{policy} {loss:.4f}" for policy, loss in choice.losses.items())
    told = f"validation log loss of a frozen probe: {losses}" if losses else "no text is longer than model.max_tokens"
    run.note(f"Of long texts '{choice.policy}' is read ({told}).")


def _locate(run: Run) -> Located:
    """The first of the backbones named that can be had; a later one is never taken without a word."""
    names = [name.strip() for name in run.config.model.backbone.split(" or ")]
    for name in names[:-1]:
        try:
            return backbone_folder(name, listen=run.listen)
        except AssetError:
            run.note(f"The backbone '{name}' cannot be had here; '{names[-1]}' takes its place.")
    return backbone_folder(names[-1], listen=run.listen)


def _require_room(parent: Path, classifier: Classifier) -> None:
    size = 4 * sum(weight.numel() for weight in classifier.parameters())
    existing = next(folder for folder in (parent.absolute(), *parent.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise ResourceError(
            f"The bundle may take {size / 2**20:.0f} MiB, and '{parent}' has {free / 2**20:.0f} MiB free. "
            "Free some space, or choose another disk with --out."
        )


# ---- Stage 3: fine-tuning


def _tune(
    classifier: Classifier, prepared: Prepared, run: Run, *, checkpoint: Path, resume: bool, stop: Callable[[], bool]
) -> Result:
    from tagsmith.evaluation.selection import selection_metric
    from tagsmith.model.device import choose_device
    from tagsmith.tuning.dividing import settle
    from tagsmith.tuning.forecast import refused_where_memory_ends
    from tagsmith.tuning.methods import copies, swapped, trainable
    from tagsmith.tuning.seeds import tune_seeds

    parts = _encode(classifier, prepared)
    _count_tokens(classifier, prepared, run)
    _choose_depth(classifier, parts, run)
    _forecast(classifier, parts, prepared, run, output=checkpoint.parent)
    learning = list(trainable(classifier, run.config.tuning))
    untuned = copies(learning)
    weights_C = None if prepared.class_weights is None else classifier.labels.in_order(prepared.class_weights)
    with refused_where_memory_ends(run.forecast):
        first, *others = tune_seeds(
            classifier,
            {name: part for name, part in parts.items() if name != "test" and len(part.truth)},
            run.config,
            untuned=untuned,
            metric=selection_metric(
                run.config.evaluation.metric,
                multi_label=classifier.labels.multi_label,
                calibrated=run.config.tuning.choose_calibrated,
            ),
            class_weights=weights_C,
            checkpoint=checkpoint,
            resume=resume,
            stop=stop,
            listen=run.listen,
        )
    if run.config.tuning.sharding == "fully":
        settle(classifier, choose_device(run.config.tuning.device))
    _count_padding(classifier, parts, first.tuned, run)
    result = Result(parts, first.tuned, untuned, sum(weight.numel() for _, weight in learning))
    blend(classifier, prepared, result, run)
    result.answering = fit_answering(classifier, prepared, result, run)
    note_decision(result.answering, run)
    classifier.calibration, classifier.sureties = result.answering.calibration, result.answering.sureties
    classifier.thresholds = result.answering.rule
    for other in others:
        with swapped(classifier, other.weights):
            result.further.append(FurtherSeed(other, fit_answering(classifier, prepared, result, run, certify=False)))
    return result


def _count_padding(classifier: Classifier, parts: Mapping[str, Part], tuned: Tuned, run: Run) -> None:
    from tagsmith.tuning.padding import padding_of

    read = {name: part for name, part in parts.items() if name != "test" and len(part.truth)}
    run.facts["padding"] = padding_of(classifier, read, tuned, run.config)
    run.listen(Event("tuning", "padding", values=run.facts["padding"]))


def _choose_depth(classifier: Classifier, parts: Mapping[str, Part], run: Run) -> None:
    """With `model.layers = auto` the blocks above the depth that the validation rows ask for are cut off."""
    if run.config.model.layers != "auto":
        return
    from tagsmith.tuning.depth import choose_depth

    run.depth = choose_depth(classifier, parts["train"], parts["validation"], run.config, listen=run.listen)
    classifier.backbone.cut(run.depth.layers)
    classifier.pooling = run.depth.pooling
    tried = ", ".join(f"{each.layers} blocks {each.loss:.4f}" for each in run.depth.tunings)
    told = f"{run.depth.layers} blocks are kept, pooling {run.depth.pooling}"
    run.note(f"{told} (validation log loss of short tunings: {tried}).")


def _forecast(classifier: Classifier, parts: Mapping[str, Part], prepared: Prepared, run: Run, *, output: Path) -> None:
    """Say what the run will take, and refuse a plan that will not fit; of several processes none is measured alone."""
    from tagsmith.tuning.forecast import make_forecast
    from tagsmith.tuning.parallel import ranks_here

    if ranks_here().count > 1:
        return
    letters = int(prepared.splits.train.frame["text"].str.len_chars().sum())
    run.forecast = make_forecast(classifier, parts, run.config, letters=letters, output=output)
    run.listen(run.forecast.event())


def _encode(classifier: Classifier, prepared: Prepared) -> dict[str, Part]:
    from tagsmith.tuning.learner import Part

    parts = {}
    for name, table in prepared.splits.items():
        parts[name] = Part(classifier.encoder.encode(table.texts), truth_of(table, classifier.labels), table.groups)
        if not parts[name].tokens.lengths.all():
            empty = parts[name].tokens.rows[parts[name].tokens.lengths == 0]
            row = int(table.rows[empty[0]])
            raise DataError(
                f"The text of row {row} gives no tokens with this backbone's tokenizer. "
                "Remove it, or choose another backbone."
            )
    if not len(parts["validation"].truth):
        raise DataError(
            "No rows are left for validation. Expected a few dozen rows or more; add rows, or give --validation."
        )
    return parts


def _count_tokens(classifier: Classifier, prepared: Prepared, run: Run) -> None:
    """The whole lengths of texts before they are cut, for the report and for who listens."""
    from tokenizers import Tokenizer

    from tagsmith.data.token_lengths import measure_tokens

    encoder = classifier.encoder
    texts = pl.concat([part.frame["text"] for _, part in prepared.splits.items()])
    found = measure_tokens(Tokenizer.from_str(encoder.tokenizer.to_str()), texts, max_tokens=encoder.max_tokens)
    run.facts["tokens"] = found.as_dict()
    run.listen(Event("data", "tokens", values=found.as_dict()))


# ---- Stage 5, first half: save, so that stage 4 measures what is served


def _save(aside: Path, classifier: Classifier, prepared: Prepared, result: Result, run: Run) -> Bundle:
    from tagsmith.deployment.adapter import write_adapter
    from tagsmith.deployment.baselines import BASELINE
    from tagsmith.deployment.bf16_gate import with_bf16_gate
    from tagsmith.deployment.manifest import flush_meanwhile
    from tagsmith.deployment.saving import write_probes
    from tagsmith.deployment.torch_engine import reload
    from tagsmith.deployment.weights import write_classifier
    from tagsmith.model.device import device_of

    assert run.weights is not None, "the model was built"
    recipe = {
        "tagsmith": _version(),
        "backbone": {"name": run.weights.name, "sha256": run.weights.sha256},
        "data": {"sha256": _data_hash(prepared), "priors": dict(prepared.true_priors), "source": run.source},
        "cleaning": list(run.config.data.clean),
        "config": run.config.model_dump(),
        "prior": None if result.answering is None else (result.answering.about.get("prior") or {}).get("shares"),
        **_abstention(result),
        **({} if result.mixing is None else {"hybrid": result.mixing.as_dict()}),
    }
    device = device_of(classifier)
    write_classifier(aside, classifier.cpu(), recipe=recipe)
    if result.tuned.adapter is not None:
        write_adapter(aside, result.tuned.adapter)
    if result.lexical is not None and not (aside / BASELINE).exists():
        save_tfidf(aside, result.lexical, prepared, result, run)
    flush_meanwhile(aside)
    prepared.remembered.write(aside)
    bundle = reload(aside, device=str(device))
    write_probes(aside, bundle.engine)
    name = next(name for name in ("calibration", "validation") if len(result.parts[name].truth))
    part, texts = result.parts[name], getattr(prepared.splits, name).texts
    tokens = part.tokens if result.mixing is None else bundle.engine.encode(texts)
    return with_bf16_gate(bundle, tokens, part.truth)


def _refit(
    aside: Path, bundle: Bundle, prepared: Prepared, result: Result, run: Run, *, stop: Callable[[], bool]
) -> Bundle:
    """The bundle of a classifier that has learnt from the validation rows too, in the place of the measured one.

    TF-IDF beside it stays the one that was measured.
    """
    from tagsmith.deployment.adapter import FOLDER as ADAPTER
    from tagsmith.deployment.weights import TRUNK

    classifier = bundle.engine.classifier
    kept = refit(classifier, prepared, result, run, stop=stop)
    for name in (TRUNK, ADAPTER):
        shutil.rmtree(aside / name, ignore_errors=True)
    for path in aside.glob("*.safetensors"):  # they may be mapped into memory, and must not be written over
        path.unlink()
    return _save(aside, classifier, prepared, kept, run)


def _abstention(result: Result) -> dict[str, Any]:
    """From which surety labels are answered, and what is proven of that, for the engine that was asked."""
    answering = result.answering
    if answering is None or answering.sureties is None:
        return {}
    sureties = [None if np.isposinf(each) else float(each) for each in answering.sureties]
    about = {"sureties": sureties, "certificate": answering.certificate, "engine": "torch-fp32"}
    return {"abstention": about}


def _data_hash(prepared: Prepared) -> str:
    """SHA-256 of all texts and labels by split: the same for the same rows in the same parts."""
    digest = hashlib.sha256()
    for name, table in prepared.splits.items():
        labels = table.label_sets if table.multi_label else table.labels
        digest.update(json.dumps([name, table.texts, labels]).encode())
    return digest.hexdigest()


# ---- Stage 5, second half: report, card, page


def _write_report(bundle: Bundle, report: Mapping[str, Any], texts: PageTexts, run: Run) -> None:
    from tagsmith.deployment.saving import write_report
    from tagsmith.model.device import device_of, name_of

    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "timing": {stage: round(seconds, 3) for stage, seconds in run.seconds.items()},
        **run.apart,
        **_forecast_and_truth(bundle.folder, run),
        **({} if run.searched is None else {"budget": run.searched.budget, "candidates": run.searched.times}),
        "environment": _environment() | {"device": name_of(device_of(bundle.engine.classifier))},
    }
    write_report(bundle.folder, report, run=facts, texts=texts)


def _write_profile(bundle: Bundle, probs_NC: np.ndarray, prepared: Prepared) -> None:
    """What live traffic is compared with: the test rows as they were answered, and the words of the training rows."""
    from tagsmith.deployment.drift import Profile

    train = dict.fromkeys(prepared.splits.train.texts)  # oversampled rows count once
    Profile.of(train, prepared.splits.test.texts, probs_NC, labels=bundle.labels).write(bundle.folder)


def _forecast_and_truth(folder: Path, run: Run) -> dict[str, Any]:
    """What was forecast, and what it came to: seconds since then, the most memory, and the bytes of the bundle."""
    from tagsmith.tuning.fitting import peak

    if run.forecast is None:
        return {}
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    truth = {"seconds": round(run.forecast.seconds_since, 3), "memory_bytes": peak(), "bundle_bytes": written}
    return {"forecast": run.forecast.as_dict(), "truth": truth}


def _version() -> str:
    from tagsmith import __version__

    return __version__


def _environment() -> dict[str, str]:
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
    }
