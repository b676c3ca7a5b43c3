"""Students of a winner: TF-IDF, or an encoder, that learn from labels and from what the winner says of further rows.

A row that has a label teaches it; a row that has none teaches each label as far as the winner finds it probable.

Axes: N rows without labels, C labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from tagsmith.building import assembled, locate, place, settle_long_texts
from tagsmith.data.preparing import Prepared
from tagsmith.data.table import Table
from tagsmith.errors import AssetError, SettingError
from tagsmith.events import steps_alone
from tagsmith.learning import tune
from tagsmith.measuring import model_section
from tagsmith.run import Result, Run, truth_of
from tagsmith.writing import save, write_profile, write_report_of

if TYPE_CHECKING:
    from tagsmith.config import Config
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.model.classifier import Classifier
    from tagsmith.model.lexical import Lexical

TFIDF, AUTO, ENCODER = "tfidf", "auto", "minilm-l6"
LEAST_SHARE = 0.02
"""A label that the winner gives less is left out of what a row teaches TF-IDF."""
MUCH_FASTER = 2.0
"""So many times as fast an encoder must be for `auto` to teach it."""
TIMED_ROWS = 200


@dataclass(frozen=True)
class Lesson:
    """What students learn from: the winner, the splits of its training, texts without labels, and what it says of them.

    `probs_NC` are its probabilities.
    """

    winner: Bundle
    prepared: Prepared
    texts: Sequence[str]
    probs_NC: np.ndarray

    @property
    def labelled(self) -> Table:
        """The rows that have a label, those too that the LLM did not learn from."""
        return self.prepared.whole_train or self.prepared.splits.train


class Student(Protocol):
    """What was taught. It is saved as a bundle, which is measured, before its report is written beside it."""

    @property
    def name(self) -> str:
        """As it is called in sentences."""

    @property
    def config(self) -> Config:
        """The settings that it was taught by."""

    def save(self, aside: Path) -> Bundle:
        """Write it to `aside` as a bundle that lacks its report, and give what a reader of the folder gets."""

    def probabilities(self, bundle: Bundle, texts: Sequence[str]) -> np.ndarray:
        """What its bundle says of texts `(N, C)`."""

    def about(self, bundle: Bundle) -> dict[str, dict[str, Any]]:
        """The sections `model` and `calibration` of its report."""

    def write_report(self, bundle: Bundle, report: Mapping[str, Any], run: Run, probs_NC: np.ndarray) -> None:
        """Write its report into the bundle, with what `run` has apart; `probs_NC` are those of the test rows."""


def require_student(config: Config, run: Run, *, processes: int = 1) -> None:
    """Before training: SettingError for an encoder and several processes, AssetError for one that cannot be had."""
    if config.tuning.student == TFIDF:
        return
    if processes > 1:
        raise SettingError(
            f"tuning.student is '{config.tuning.student}', which one process teaches once all is measured, and "
            f"{processes} share this training. Expected one process; take tuning.student = tfidf."
        )
    if config.tuning.student != AUTO:
        locate(replace(run, config=config.with_settings({"model": {"backbone": config.tuning.student}})))


def chosen_student(lesson: Lesson, lexical: Lexical, run: Run, *, stop: Callable[[], bool]) -> Student:
    """The student of `tuning.student`; with `auto` the one that the validation rows ask for, and a note of why.

    `lexical` is TF-IDF as `taught_lexical` made it.
    """
    tfidf, asked = TfidfStudent(lesson, lexical, run.config), run.config.tuning.student
    if asked == TFIDF:
        return tfidf
    if asked != AUTO:
        return _Pupil.of(lesson, asked, run).taught(stop)
    try:
        pupil = _Pupil.of(lesson, ENCODER, run)
    except AssetError:
        return _with_note(tfidf, f"{ENCODER} cannot be had here", run)
    faster = pupil.times_as_fast()
    if faster < MUCH_FASTER:
        told = f"{ENCODER} would answer {faster:.1f} times as fast as the winner, under {MUCH_FASTER:g} times"
        return _with_note(tfidf, told, run)
    encoder = pupil.taught(stop)
    value, told = _compared(encoder, lexical, lesson, margin=run.config.evaluation.margin)
    return _with_note(encoder if value == "better" else tfidf, told, run)


def _with_note(student: Student, why: str, run: Run) -> Student:
    run.note(f"The student is {student.name} (tuning.student = auto): {why}.")
    return student


def _compared(encoder: EncoderStudent, lexical: Lexical, lesson: Lesson, *, margin: float) -> tuple[str, str]:
    """The encoder against TF-IDF on the validation rows, as a verdict and in words."""
    from tagsmith.evaluation.comparison import compare

    rows = lesson.prepared.splits.validation
    own_NC = encoder.validation_probabilities()
    truth = truth_of(rows, lesson.winner.engine.labels)
    names = ("the encoder", "TF-IDF")
    verdict = compare(truth, own_NC, lexical.probabilities(rows.texts), rows.groups, margin=margin, names=names)
    low, high = verdict.difference.low or 0.0, verdict.difference.high or 0.0
    told = f"{verdict.difference.value:+.1f} points of accuracy ({low:+.1f} to {high:+.1f}): {verdict.value}"
    return verdict.value, f"on {len(rows)} validation rows {encoder.name} minus TF-IDF taught alike is {told}"


# ---- TF-IDF


def taught_lexical(lesson: Lesson, *, seed: int) -> Lexical:
    """TF-IDF that learnt from the labelled rows, and from the others by what the winner says, label by label."""
    from tagsmith.model.lexical_fitting import fit_lexical

    labels, train = lesson.winner.engine.labels, lesson.labelled
    row_M, label_M = np.nonzero(lesson.probs_NC >= LEAST_SHARE)
    weight_M = lesson.probs_NC[row_M, label_M]
    weight_M /= np.bincount(row_M, weights=weight_M, minlength=len(lesson.texts))[row_M]
    every = [*train.texts, *(lesson.texts[int(row)] for row in row_M)]
    groups = np.concatenate([train.groups, row_M + int(train.groups.max()) + 1])
    truth = np.concatenate([truth_of(train, labels), label_M])
    weights = np.concatenate([np.ones(len(train)), weight_M])
    return fit_lexical(every, truth, groups, classes=len(labels), seed=seed, weights=weights)


@dataclass(frozen=True)
class TfidfStudent:
    """TF-IDF with a linear model."""

    lesson: Lesson
    lexical: Lexical
    config: Config
    name: str = "TF-IDF"

    def save(self, aside: Path) -> Bundle:
        """See Student."""
        from tagsmith.deployment.tfidf_bundle import write_student

        labels, winner = self.lesson.winner.engine.labels, self.lesson.winner
        truth = truth_of(self.lesson.prepared.splits.train, labels)
        return write_student(winner.folder, aside, self.lexical, np.bincount(truth, minlength=len(labels)).tolist())

    def probabilities(self, bundle: Bundle, texts: Sequence[str]) -> np.ndarray:
        """See Student. A text without any word is answered too, where an engine says that it has no answer."""
        return self.lexical.probabilities(texts)

    def about(self, bundle: Bundle) -> dict[str, dict[str, Any]]:
        """See Student."""
        model = {"backbone": "TF-IDF with a linear model", "hugging_face": False, "method": "distilled"}
        return {"model": model, "calibration": dict(bundle.settings["calibration"])}

    def write_report(self, bundle: Bundle, report: Mapping[str, Any], run: Run, probs_NC: np.ndarray) -> None:
        """See Student."""
        from tagsmith.deployment.tfidf_bundle import write_student_report

        write_student_report(bundle, report, run=run.apart)


# ---- An encoder


@dataclass
class _Pupil:
    """An encoder that has not learnt yet, with the rows that it will learn from and the shares of their labels."""

    lesson: Lesson
    name: str
    run: Run
    prepared: Prepared
    shares_NC: np.ndarray
    classifier: Classifier

    @classmethod
    def of(cls, lesson: Lesson, name: str, run: Run) -> _Pupil:
        """AssetError where the encoder cannot be had."""
        prepared, shares_NC = _rows_of(lesson)
        own = Run(
            _settings(run.config, name, rows=len(shares_NC)),
            steps_alone(run.listen),
            command=run.command,
            source=run.source,
        )
        classifier = assembled(prepared, own)
        own.config = own.config.with_settings({"tuning": {"blocks": classifier.backbone.depth}})
        place(classifier, own, checkpoint=None)
        settle_long_texts(classifier, prepared, own)
        return cls(lesson, name, own, prepared, shares_NC, classifier)

    def times_as_fast(self) -> float:
        """How much sooner than the winner it answers a few of the texts without labels."""
        from tagsmith.model.classifier import Scorer

        texts, classifier = self.lesson.texts[:TIMED_ROWS], self.classifier.eval()
        Scorer(classifier).logits(classifier.encoder.encode(texts[:8]))  # what is slow but once
        own = timed(lambda: Scorer(classifier).logits(classifier.encoder.encode(texts)))[1]
        return timed(lambda: self.lesson.winner.predict_proba(texts))[1] / max(own, 1e-9)

    def taught(self, stop: Callable[[], bool]) -> EncoderStudent:
        """The student that it becomes; StoppedError where `stop` says so."""
        from tagsmith.tuning.checkpoints import drop_checkpoint

        checkpoint = self.lesson.winner.folder.with_name(f"{self.lesson.winner.folder.name}-student.checkpoint")
        try:
            result = tune(
                self.classifier,
                self.prepared,
                self.run,
                checkpoint=checkpoint,
                resume=False,
                stop=stop,
                shares_NC=self.shares_NC,
            )
        finally:
            drop_checkpoint(checkpoint)
        return EncoderStudent(self.lesson, self.classifier, result, self.prepared, self.run)


def _rows_of(lesson: Lesson) -> tuple[Prepared, np.ndarray]:
    """The splits with all rows to learn from, and the share of each label in them: 1 of one's own label."""
    labels, table = lesson.winner.engine.labels, lesson.labelled
    likeliest = [labels.names[each] for each in lesson.probs_NC.argmax(axis=1)]
    new = Table.of(lesson.texts, likeliest).frame
    new = new.with_columns(pl.col("group") + int(table.groups.max()) + 1)
    frame = pl.concat([table.frame.select(new.columns), new])
    both = table.changed(frame, step="distil", reason="rows without labels, which the winner teaches")
    shares_NC = np.concatenate([np.eye(len(labels))[truth_of(table, labels)], lesson.probs_NC]).astype(np.float32)
    splits = replace(lesson.prepared.splits, train=both)
    return replace(lesson.prepared, splits=splits, class_weights=None, whole_train=None), shares_NC


def _settings(config: Config, name: str, *, rows: int) -> Config:
    """The winner's settings with what concerns the LLM replaced: all blocks of the encoder learn, as in a search."""
    from tagsmith.tuning.recipes import EPOCHS, batch_size

    kept = {key: getattr(config.tuning, key) for key in _KEPT}
    how = {
        "method": "last_layers",
        "epochs": EPOCHS["last_layers"],
        "learning_rate": 3e-4,
        "layer_decay": 0.9,
        "batch_size": batch_size(rows),
        "choose_calibrated": True,
    }
    model = {"backbone": name, "layers": config.tuning.student_layers, "max_tokens": config.model.max_tokens}
    plain = config.model_dump()
    plain["data"]["balance"] = "none"  # what the winner says of a row is at the true shares of labels
    return type(config).of({**plain, "model": model, "tuning": {**kept, **how}})


_KEPT = ("device", "precision", "compile", "cache_gib", "gradient_checkpointing", "tokens_per_batch")
"""Settings that say where and how is computed, and not what is learnt."""


@dataclass(frozen=True)
class EncoderStudent:
    """A tuned encoder with a head."""

    lesson: Lesson
    classifier: Classifier
    result: Result
    prepared: Prepared
    run: Run

    @property
    def name(self) -> str:
        """See Student."""
        depth = self.classifier.backbone.depth
        return f"{self.run.config.model.backbone} of {depth} block{'s' * (depth != 1)}"

    @property
    def config(self) -> Config:
        """See Student."""
        return self.run.config

    def validation_probabilities(self) -> np.ndarray:
        """What it says of the validation rows `(N, C)`."""
        return self.classifier.calibration.probabilities(self.result.logits(self.classifier, "validation"))

    def save(self, aside: Path) -> Bundle:
        """See Student. TF-IDF that had no teacher stays beside it, to be compared with."""
        from tagsmith.deployment.baselines import copy_baselines

        copy_baselines(self.lesson.winner.folder, aside)
        return save(aside, self.classifier, self.prepared, self.result, self.run)

    def probabilities(self, bundle: Bundle, texts: Sequence[str]) -> np.ndarray:
        """See Student."""
        return bundle.predict_proba(texts)

    def about(self, bundle: Bundle) -> dict[str, dict[str, Any]]:
        """See Student."""
        assert self.result.answering is not None, "it was just fitted"
        model = model_section(bundle, self.result, self.run) | {"method": "distilled"}
        return {"model": model, "calibration": bundle.settings["calibration"] | self.result.answering.about}

    def write_report(self, bundle: Bundle, report: Mapping[str, Any], run: Run, probs_NC: np.ndarray) -> None:
        """See Student."""
        from tagsmith.evaluation.page.texts import PageTexts

        self.run.apart |= run.apart
        write_report_of(bundle, report, PageTexts(), self.run)
        write_profile(bundle, probs_NC, self.lesson.prepared)


def timed(answer: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What it gives, and the seconds that it took."""
    started = time.perf_counter()
    found = answer()
    return found, time.perf_counter() - started
