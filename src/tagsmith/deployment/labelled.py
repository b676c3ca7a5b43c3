"""Rows with their labels beside them: the columns that are added, and a part of the rows in a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tagsmith.data.streaming import Record, Stream, TextOf
from tagsmith.deployment.engine import Answer
from tagsmith.deployment.written import BETWEEN, Format
from tagsmith.errors import SettingError

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle

FAILED = "failed"
"""The remark of a row that no engine could compute, however often it was tried."""
_HARMLESS = "a"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answerer:
    """What is known of who answers before it does: its bundle by the hash of its manifest, its engine, its labels."""

    bundle: str
    engine: str
    labels: tuple[str, ...]
    multi_label: bool

    @classmethod
    def of(cls, bundle: Bundle, *, manifest_sha256: str) -> Self:
        """The same of a loaded bundle."""
        return cls(manifest_sha256, bundle.engine.name, bundle.labels, bundle.multi_label)

    def added(self) -> tuple[str, ...]:
        """The columns that scoring adds."""
        if not self.multi_label:
            return ("predicted_label", "probability", "truncated", "remark")
        return ("predicted_labels", *(f"probability_{label}" for label in self.labels), "truncated", "remark")


@dataclass(frozen=True)
class Labelling:
    """How rows become labelled rows in a file: all that a part needs besides its rows and their answers."""

    text_of: TextOf
    form: Format
    labels: tuple[str, ...]
    multi_label: bool

    @classmethod
    def of(cls, stream: Stream, text_of: TextOf, answerer: Answerer, *, ending: str, safe: bool) -> Self:
        """How the rows of a stream are labelled by this answerer, in a file of this ending."""
        form = _format(ending, stream, answerer.added(), safe=safe)
        return cls(text_of, form, answerer.labels, answerer.multi_label)

    def texts(self, records: Sequence[Record]) -> list[str]:
        """The text of each row."""
        return [self.text_of(record) for record in records]

    def write(self, records: Sequence[Record], answers: Sequence[Answer], path: Path) -> None:
        """Rows and their answers in a file of their own, without a header."""
        self.form.write_part(self._labelled(records, answers), path)

    def _labelled(self, records: Sequence[Record], answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        joined = self.form.ending in (".csv", ".tsv")
        for record, answer in zip(records, answers, strict=True):
            remark = answer.reason or ("abstained" if answer.abstained else None)
            if not self.multi_label:
                own: dict[str, Any] = {"predicted_label": answer.label, "probability": answer.probability}
            else:
                own = _sets(answer, self.labels, joined=joined)
            yield {**record, **own, "truncated": answer.truncated, "remark": remark}


def set_aside() -> Answer:
    """What is said of a row that could not be computed."""
    return Answer(None, None, (), truncated=False, reason=FAILED)


def answers_or_aside(answer: Callable[[Sequence[str]], list[Answer]], texts: Sequence[str]) -> list[Answer]:
    """An answer for each text; a text at which `answer` fails again when it is alone is set aside.

    Whoever fails at any text is broken, and no text is to blame: the error goes on then.
    """
    try:
        return answer(texts)
    except Exception as error:  # noqa: BLE001 - whatever an engine raises at a text
        if len(texts) > 1:
            half = len(texts) // 2
            return answers_or_aside(answer, texts[:half]) + answers_or_aside(answer, texts[half:])
        try:
            answer([_HARMLESS])
        except Exception:  # noqa: BLE001
            raise error from None
        _logger.warning("A row could not be computed and is set aside: %s: %s", type(error).__name__, error)
        return [set_aside()]


def aside_of(answers: Sequence[Answer]) -> int:
    """How many were set aside."""
    return sum(answer.reason == FAILED for answer in answers)


def _sets(answer: Answer, names: Sequence[str], *, joined: bool) -> dict[str, Any]:
    if answer.reason:
        return {"predicted_labels": None} | {f"probability_{name}": None for name in names}
    found = BETWEEN.join(answer.labels) if joined else list(answer.labels)
    chances = zip(names, answer.probabilities, strict=True)
    return {"predicted_labels": found} | {f"probability_{name}": chance for name, chance in chances}


def _format(ending: str, stream: Stream, added: Sequence[str], *, safe: bool) -> Format:
    columns = (*stream.columns, *added)
    if ending != ".parquet":
        return Format(ending, columns, safe)
    try:
        import polars as pl
    except ImportError:
        raise SettingError(
            "Writing Parquet needs polars, which is not installed. Expected a .csv, .tsv or .jsonl here; choose one, "
            'or pip install "polars".'
        ) from None
    own: dict[str, Any] = {name: pl.Float64 for name in added if name.startswith("probability")}
    own |= {"truncated": pl.Boolean, "remark": pl.String, "predicted_label": pl.String}
    own |= {"predicted_labels": pl.List(pl.String)}
    return Format(ending, columns, safe, {**(stream.schema or {}), **{n: own[n] for n in added}})
