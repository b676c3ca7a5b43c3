"""Rows without labels after a training: a faster student of the winner, and which of them to label next.

The student is TF-IDF with a linear model. It learns from the labels of the training rows, and from what the winner says
of the rows without labels, each label with the weight of its probability. Nothing that is like a validation, a
calibration or a test row is learnt from or asked about.

Axes: N rows, C labels, V terms.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tagsmith.data.column_cleaning import clean_table
from tagsmith.data.duplicates import leak
from tagsmith.data.preparing import Prepared
from tagsmith.data.readers import read_as, read_frame
from tagsmith.data.table import Table
from tagsmith.errors import DataError, SettingError
from tagsmith.events import Event
from tagsmith.run import Run, truth_of

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.evaluation.report import Report
    from tagsmith.model.lexical import Lexical

LEAST_SHARE = 0.02
"""A label that the winner gives less is left out of what a row teaches."""
MOST_RANKED = 2000
"""So many of the least sure rows are held against one another; the others follow by their margin alone."""
TIMED_ROWS = 500


@dataclass(frozen=True)
class Unlabelled:
    """The rows of a file without labels that may be used, the columns they came with, and how many were left out."""

    table: Table
    frame: pl.DataFrame
    held_out: int
    known: int


def require_distillable(table: Table) -> None:
    """SettingError where a text may have several labels: rows teach one label at a time."""
    if table.multi_label:
        raise SettingError(
            "--unlabelled ranks rows and teaches a student where a text has one label, and a text may have several "
            "here. Leave it out."
        )


def refuse_student(folder: Path, *, force: bool) -> None:
    """SettingError where what is written beside the bundle `folder` exists, unless `force` is given."""
    from tagsmith.deployment.manifest import refuse_existing

    for each in (student_folder(folder), list_file(folder)):
        refuse_existing(each, force=force)


def student_folder(folder: Path) -> Path:
    """Where the student of a bundle lies."""
    return folder.parent / f"{folder.name}-student"


def list_file(folder: Path) -> Path:
    """Where the rows to label next are listed."""
    return folder.parent / f"{folder.name}-to-label.csv"


def distil(bundle: Bundle, prepared: Prepared, source: str | Path, run: Run) -> None:
    """Write beside a bundle the student `NAME-student`, a bundle of its own, and `NAME-to-label.csv`."""
    rows = _usable(source, prepared, run)
    probs_NC = bundle.predict_proba(rows.table.texts)
    kept = np.flatnonzero(~np.isnan(probs_NC).any(axis=1))
    if not len(kept):
        raise DataError(
            f"'{source}' has no row that could be learnt from: {rows.held_out} are like held-out rows, {rows.known} "
            "like training rows, and the others are empty. Expected texts that the training did not see."
        )
    table, frame, probs_NC = rows.table.take(kept), rows.frame[kept.tolist()], probs_NC[kept]
    student = taught(bundle, prepared, table.texts, probs_NC, seed=run.config.seed)
    order = ranked(student, table.texts, probs_NC)
    listed = list_file(bundle.folder)
    _written(frame, probs_NC, order, bundle.labels).write_csv(listed)
    folder = student_folder(bundle.folder)
    told = _save(folder, bundle, student, prepared, run)
    said = f"{rows.held_out} like held-out rows and {rows.known} like training rows were left out"
    run.listen(Event("deployment", "note", values={"text": f"{told} '{folder}' holds it."}))
    run.listen(
        Event(
            "deployment", "note", values={"text": f"{len(table)} rows are ranked for labelling in '{listed}' ({said})."}
        )
    )


def _usable(source: str | Path, prepared: Prepared, run: Run) -> Unlabelled:
    """The rows of `source` that are like no held-out row and no training row, by the training's own similarity."""
    config = run.config.data
    plain = config.model_copy(update={"group": None, "time": None, "split_column": None, "query": None})
    table = clean_table(read_as(source, plain, labelled=False), config.clean)
    frame = read_frame(
        source, quoting=config.quoting, delimiter=config.delimiter, encoding=config.encoding, header=config.header
    ).frame
    held = [text for name in ("validation", "calibration", "test") for text in getattr(prepared.splits, name).texts]
    near = config.near_duplicates
    is_held = leak(held, table.texts, near=near).near
    is_known = leak(prepared.splits.train.texts, table.texts, near=near).near & ~is_held
    kept = np.flatnonzero(~is_held & ~is_known)
    used = table.take(kept)
    return Unlabelled(used, frame[used.rows.tolist()], int(is_held.sum()), int(is_known.sum()))


# ---- The student


def taught(bundle: Bundle, prepared: Prepared, texts: Sequence[str], probs_NC: np.ndarray, *, seed: int) -> Lexical:
    """TF-IDF that learnt from the training rows and their labels, and from rows without by what the winner says."""
    from tagsmith.model.lexical_fitting import fit_lexical

    labels, train = bundle.engine.labels, prepared.whole_train or prepared.splits.train
    row_M, label_M = np.nonzero(probs_NC >= LEAST_SHARE)
    weight_M = probs_NC[row_M, label_M]
    weight_M /= np.bincount(row_M, weights=weight_M, minlength=len(texts))[row_M]
    every = [*train.texts, *(texts[int(row)] for row in row_M)]
    groups = np.concatenate([train.groups, row_M + int(train.groups.max()) + 1])
    truth = np.concatenate([truth_of(train, labels), label_M])
    weights = np.concatenate([np.ones(len(train)), weight_M])
    return fit_lexical(every, truth, groups, classes=len(labels), seed=seed, weights=weights)


def _save(folder: Path, bundle: Bundle, student: Lexical, prepared: Prepared, run: Run) -> str:
    """Write the student as a bundle of its own, and give what there is to say of it."""
    from tagsmith.deployment.manifest import staging
    from tagsmith.deployment.tfidf_bundle import write_student
    from tagsmith.model.decision import decided

    test, labels = prepared.splits.test, bundle.engine.labels
    truth, winner_NC = truth_of(test, labels), bundle.predict_proba(test.texts)
    probs_NC, each_s = _timed(student, test.texts)
    report = _report(bundle, prepared, run, {"student": probs_NC, "winner": winner_NC})
    counts = np.bincount(truth_of(prepared.splits.train, labels), minlength=len(labels)).tolist()
    with staging(folder, force=folder.exists()) as aside:
        write_student(bundle.folder, aside, student, counts, report)
    own, best = (100 * float((decided(p, None) == truth).mean()) for p in (probs_NC, winner_NC))
    faster = bundle_seconds(run) / max(each_s, 1e-9)
    return (
        f"The student, TF-IDF taught by the winner, has an accuracy of {own:.1f} % on the test rows, the winner "
        f"{best:.1f} %, and answers {faster:,.0f} times as fast. {report.verdict['text']}"
    )


def bundle_seconds(run: Run) -> float:
    """Seconds that the winner takes for a text, as measured on the test rows."""
    return float(run.apart["cost"]["model"]["seconds_per_thousand"]) / 1000


def _timed(student: Lexical, texts: Sequence[str]) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    probs_NC = student.probabilities(texts)
    return probs_NC, (time.perf_counter() - started) / len(texts)


def _report(bundle: Bundle, prepared: Prepared, run: Run, probs: Mapping[str, np.ndarray]) -> Report:
    """The student beside TF-IDF that had no teacher, and beside the winner."""
    from tagsmith.evaluation.report import build_report

    test, config = prepared.splits.test, run.config
    plain = bundle.report
    baselines = bundle.baseline_probabilities(test.texts) | {"winner": probs["winner"]}
    return build_report(
        data=plain["data"],
        model={"backbone": "TF-IDF with a linear model", "hugging_face": False, "method": "distilled"},
        settings=plain["settings"],
        truth=truth_of(test, bundle.engine.labels),
        probs=probs["student"],
        baseline_probs=baselines,
        name="the student",
        groups=test.groups,
        labels=bundle.engine.labels,
        notes=[*plain["notes"], "This is a student: TF-IDF that learnt from what the winner says of further rows."],
        reproduce=plain["reproduce"],
        margin=config.evaluation.margin,
        resamples=config.evaluation.resamples,
        seed=config.seed,
    )


# ---- Which rows to label next


def ranked(lexical: Lexical, texts: Sequence[str], probs_NC: np.ndarray) -> np.ndarray:
    """Rows `(N,)` in the order in which their labels would tell most: unsure ones, unlike those above them.

    A row counts by how little its likeliest label leads, times how unlike the rows ranked before it is (one minus the
    largest cosine of their terms, as maximal marginal relevance takes it, Carbonell and Goldstein 1998).
    """
    ordered_NC = np.sort(probs_NC, axis=1)
    unsure_N = 1 - (ordered_NC[:, -1] - ordered_NC[:, -2])
    first = np.argsort(-unsure_N, kind="stable")
    near, rest = first[:MOST_RANKED], first[MOST_RANKED:]
    vectors = _vectors(lexical, [texts[i] for i in near])
    like_M, left, order = np.zeros(len(near)), np.ones(len(near), dtype=bool), []
    for _ in range(len(near)):
        worth_M = np.where(left, unsure_N[near] * (1 - like_M), -1.0)
        chosen = int(worth_M.argmax())
        order.append(chosen)
        left[chosen] = False
        like_M = np.maximum(like_M, (vectors @ vectors[chosen].T).toarray()[:, 0].clip(0, 1))
    return np.concatenate([near[order], rest]) if order else rest


def _vectors(lexical: Lexical, texts: Sequence[str]) -> Any:
    """The TF-IDF values of texts as sparse rows of length 1, `(N, V)`."""
    from scipy.sparse import csr_matrix

    terms = lexical.known_terms(list(texts))
    values = terms.values(lexical.terms, lexical.idf)
    found = csr_matrix((values, terms.places, terms.bounds), shape=(len(texts), max(1, len(lexical.terms))))
    lengths = np.sqrt(np.asarray(found.multiply(found).sum(axis=1))[:, 0])
    return csr_matrix(found.multiply(1 / np.maximum(lengths, 1e-9)[:, None]))


def _written(frame: pl.DataFrame, probs_NC: np.ndarray, order: np.ndarray, labels: Sequence[str]) -> pl.DataFrame:
    """The rows as they came, in their order, with what the winner says of each in front."""
    ordered_NC = np.sort(probs_NC, axis=1)
    said = {
        "suggested_label": [labels[i] for i in probs_NC.argmax(axis=1)[order]],
        "probability": np.round(ordered_NC[order, -1], 4),
        "margin": np.round(ordered_NC[order, -1] - ordered_NC[order, -2], 4),
    }
    named = {name if name not in frame.columns else f"tagsmith_{name}": each for name, each in said.items()}
    return pl.concat([pl.DataFrame(named), frame[order.tolist()]], how="horizontal")
