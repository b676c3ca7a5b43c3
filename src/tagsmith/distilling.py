"""Rows without labels after a training: a faster student of the winner, and which of them to label next.

Nothing that is like a validation, a calibration or a test row is learnt from or asked about.

Axes: N rows, C labels, V terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from tagsmith.measuring import count_look
from tagsmith.run import Run, truth_of
from tagsmith.teaching import Lesson, Student, chosen_student, taught_lexical, timed

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.model.lexical import Lexical

MOST_RANKED = 2000
"""So many of the least sure rows are held against one another; the others follow by their margin alone."""


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


def distil(
    bundle: Bundle, prepared: Prepared, source: str | Path, run: Run, *, stop: Callable[[], bool] = lambda: False
) -> None:
    """Write beside a bundle the list `NAME-to-label.csv`, and the student `NAME-student`, a bundle of its own.

    A student that is stopped is none; the bundle and the list stand.
    """
    from tagsmith.tuning.loop import StoppedError

    rows = _usable(source, prepared, run)
    probs_NC = bundle.predict_proba(rows.table.texts)
    kept = np.flatnonzero(~np.isnan(probs_NC).any(axis=1))
    if not len(kept):
        raise DataError(
            f"'{source}' has no row that could be learnt from: {rows.held_out} are like held-out rows, {rows.known} "
            "like training rows, and the others are empty. Expected texts that the training did not see."
        )
    lesson = Lesson(bundle, prepared, rows.table.take(kept).texts, probs_NC[kept])
    lexical = taught_lexical(lesson, seed=run.config.seed)
    listed = list_file(bundle.folder)
    order = ranked(lexical, lesson.texts, lesson.probs_NC)
    _written(rows.frame[kept.tolist()], lesson.probs_NC, order, bundle.labels).write_csv(listed)
    left = f"{rows.held_out} like held-out rows and {rows.known} like training rows were left out"
    _say(f"{len(kept)} rows are ranked for labelling in '{listed}' ({left}).", run)
    folder = student_folder(bundle.folder)
    try:
        student = chosen_student(lesson, lexical, run, stop=stop)
    except StoppedError:
        _say(f"The student was stopped before it was done: '{folder}' is not written, and all else is.", run)
        return
    _say(f"{_save(folder, student, lesson, run)} '{folder}' holds it.", run)


def _say(text: str, run: Run) -> None:
    run.listen(Event("deployment", "note", values={"text": text}))


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
    known = (prepared.whole_train or prepared.splits.train).texts
    is_known = leak(known, table.texts, near=near).near & ~is_held
    kept = np.flatnonzero(~is_held & ~is_known)
    used = table.take(kept)
    return Unlabelled(used, frame[used.rows.tolist()], int(is_held.sum()), int(is_known.sum()))


# ---- The student, measured


def _save(folder: Path, student: Student, lesson: Lesson, run: Run) -> str:
    """Write the student as a bundle of its own, measured on the test rows, and give what there is to say of it."""
    from tagsmith.deployment.manifest import staging

    winner, test = lesson.winner, lesson.prepared.splits.test
    with staging(folder, force=folder.exists()) as aside:
        bundle = student.save(aside)
        count_look(test, run, what="student")
        own_NC, own_s = timed(lambda: student.probabilities(bundle, test.texts))
        winner_NC, winner_s = timed(lambda: winner.predict_proba(test.texts))
        loss = _loss(bundle, lesson, own_NC, winner_NC, run)
        told = f"{student.name}, taught by the winner: {loss['text']}"
        report = _report(student, bundle, lesson, {"student": own_NC, "winner": winner_NC}, told, run)
        report["model"]["winner"] = winner.report["model"] | {"loss": loss}
        seconds = {"student": own_s, "winner": winner_s}
        each = {f"{name}_seconds_per_thousand": 1000 * taken / len(test) for name, taken in seconds.items()}
        faster = winner_s / max(own_s, 1e-9)
        run.apart["distilled"] = each | {"times_as_fast": faster}
        student.write_report(bundle, report, run, own_NC)
    return f"The student is {told} It answers {faster:,.1f} times as fast. {report['verdict']['text']}"


def _loss(bundle: Bundle, lesson: Lesson, own_NC: np.ndarray, winner_NC: np.ndarray, run: Run) -> dict[str, Any]:
    """The student's accuracy on the test rows less the winner's, with the paired interval, and in words."""
    from tagsmith.evaluation.comparison import compare_hits
    from tagsmith.model.decision import decided

    test, names = lesson.prepared.splits.test, ("student", "winner")
    truth = truth_of(test, bundle.engine.labels)
    rules = bundle.engine.thresholds, lesson.winner.engine.thresholds
    own, best = (decided(p, rule) == truth for p, rule in zip((own_NC, winner_NC), rules, strict=True))
    verdict = compare_hits(own, best, test.groups, margin=run.config.evaluation.margin, names=names)
    low, high = (each or 0.0 for each in (verdict.difference.low, verdict.difference.high))
    text = (
        f"an accuracy of {100 * own.mean():.1f} % on the test rows, the winner {100 * best.mean():.1f} %; the "
        f"difference is {verdict.difference.value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})."
    )
    return verdict.as_dict() | {"text": text}


def _report(
    student: Student, bundle: Bundle, lesson: Lesson, probs: Mapping[str, np.ndarray], told: str, run: Run
) -> dict[str, Any]:
    """The student beside TF-IDF that had no teacher, and beside the winner."""
    from tagsmith.evaluation.report import build_report

    winner, test, config, about = lesson.winner, lesson.prepared.splits.test, run.config, student.about(bundle)
    rules = (winner.thresholds or {}) | {"winner": winner.engine.thresholds, "model": bundle.engine.thresholds}
    rows = f"{len(lesson.labelled)} rows with a label, and {len(lesson.texts)} without by what the winner says of them"
    return build_report(
        data=winner.report["data"],
        model=about["model"],
        calibration=about["calibration"],
        settings=student.config.model_dump(),
        truth=truth_of(test, winner.engine.labels),
        probs=probs["student"],
        baseline_probs=winner.baseline_probabilities(test.texts) | {"winner": probs["winner"]},
        thresholds=rules,
        name="the student",
        groups=test.groups,
        labels=winner.engine.labels,
        notes=[*winner.report["notes"], f"This is a student: {told} It learnt from {rows}."],
        reproduce=winner.report["reproduce"],
        margin=config.evaluation.margin,
        resamples=config.evaluation.resamples,
        seed=config.seed,
    ).as_dict()


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
