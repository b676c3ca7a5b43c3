"""A table in, the same table with labels out: part by part, of any size, and an interrupted one goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsmith.data.streaming import Record, Stream, TextOf, opened, shown
from tagsmith.deployment.engine import Answer
from tagsmith.deployment.journal import Journal, finished, journal
from tagsmith.deployment.labelled import FAILED, Answerer, Labelling, answers_or_aside, aside_of
from tagsmith.deployment.manifest import MANIFEST, refuse_existing
from tagsmith.deployment.written import BETWEEN, require_format
from tagsmith.errors import DataError, SettingError
from tagsmith.events import Event, Listener, silent

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle

ROWS_AT_ONCE = 1024
"""Rows of a part: what a `kill -9` can cost, and what is held in memory."""


def score(
    bundle: Bundle,
    source: str | Path,
    *,
    out: str | Path,
    text: str | None = None,
    query: str | None = None,
    force: bool = False,
    resume: bool = False,
    spreadsheet_safe: bool = False,
    listen: Listener = silent,
) -> int:
    """Write the rows of `source` to `out` with the columns `predicted_label`, `probability`, `truncated` and `remark`.

    Where a text may have several labels they are `predicted_labels`, a list or in a CSV joined by `;`, and a column
    `probability_LABEL` for each label.

    The ending of `out` chooses the format. Rows keep their order and their columns; an empty text gets no label and the
    remark `empty`, one that cannot be computed the remark `failed`. Gives the number of rows. The file appears whole or
    not at all: until then its parts lie in a hidden folder beside it, from which `resume` goes on, each row exactly
    once. With `spreadsheet_safe` a cell that a spreadsheet would take for a formula begins with an apostrophe.

    Raises:
        DataError: `source` has a column of one of these names, or on resuming holds other rows than before.
        SettingError: an unknown ending, `out` exists and `force` is not given, a label holds the `;` of a CSV, or
            `resume` with another bundle, engine, column or format than before.
        ResourceError: the disk is full or cannot be written.
    """
    target = Path(out)
    if resume and (rows := finished(target)) is not None:
        return rows
    answerer = Answerer.of(bundle, manifest_sha256=manifest_hash(bundle.folder))
    named = bundle.settings["config"]["data"]
    with begun(
        answerer,
        source,
        out=target,
        text=text or named["text"],
        text_pair=named.get("text_pair"),
        query=query,
        force=force,
        resume=resume,
        spreadsheet_safe=spreadsheet_safe,
        listen=listen,
    ) as work:
        for portion in work.left():
            work.add(portion, answers_or_aside(bundle.engine.answer, portion.texts))
        return work.finish()


@dataclass(frozen=True)
class Portion:
    """Some rows of a source, one after the other: a part by its number, with the hash of its texts."""

    number: int
    records: list[Record]
    texts: list[str]
    texts_sha256: str


@dataclass
class Work:
    """The scoring of one source, whoever answers: which parts are left, which are done, and the file at the end."""

    stream: Stream
    labelling: Labelling
    parts: Journal
    source: str
    target: Path
    listen: Listener
    _read: int = 0
    _done: int = 0
    _made: int = 0
    _began: float = field(default_factory=time.monotonic)

    def left(self) -> Iterator[Portion]:
        """The parts that are not done, in order, as they are read; DataError where a done one holds other texts now."""
        for number, records in enumerate(_batched(self.stream.read())):
            texts = self.labelling.texts(records)
            digest = _digest(texts)
            self._read += len(records)
            known = self.parts.done.get(number)
            if known is None:
                yield Portion(number, records, texts, digest)
                continue
            if (known.rows, known.texts_sha256) != (len(records), digest):
                raise DataError(
                    f"Part {number} of '{self.source}' holds other texts than when this was begun. Expected the same "
                    "rows in the same order; sort them (a query by ORDER BY), or begin anew with --force."
                )
            self._tell(len(records), made=0)

    def add(self, portion: Portion, answers: Sequence[Answer]) -> None:
        """Write a part."""
        rows = len(portion.records)
        self.parts.add(
            portion.number,
            rows=rows,
            texts_sha256=portion.texts_sha256,
            aside=aside_of(answers),
            write=lambda path: self.labelling.write(portion.records, answers, path),
        )
        self._tell(rows, made=rows)

    def adopt(self, portion: Portion, *, aside: int, written: Path, sha256: str) -> None:
        """Take over a part that somebody else wrote and flushed."""
        rows = len(portion.records)
        self.parts.adopt(
            portion.number,
            rows=rows,
            texts_sha256=portion.texts_sha256,
            aside=aside,
            written=written,
            sha256=sha256,
        )
        self._tell(rows, made=rows)

    def finish(self) -> int:
        """Join the parts into the file, and give the number of its rows."""
        done = sum(part.rows for part in self.parts.done.values())
        if done != self._read:
            raise DataError(
                f"'{self.source}' has {self._read} rows, and {done} were labelled before. Expected the same rows; "
                "begin anew with --force."
            )
        aside = sum(part.aside for part in self.parts.done.values())
        self.parts.assemble(self.target, self.labelling.form.join)
        if aside:
            text = (
                f"{aside} of {done} rows could not be computed and have no label; their remark is '{FAILED}'. All "
                "others are labelled."
            )
            self.listen(Event("deployment", "note", values={"text": text}))
        return done

    def _tell(self, rows: int, *, made: int) -> None:
        self._done += rows
        self._made += made
        seconds = time.monotonic() - self._began
        self.listen(_progress(self._done, self.stream.count, made=self._made, seconds=seconds))


@contextmanager
def begun(
    answerer: Answerer,
    source: str | Path,
    *,
    out: Path,
    text: str | None,
    text_pair: str | None,
    query: str | None,
    force: bool,
    resume: bool,
    spreadsheet_safe: bool,
    listen: Listener,
) -> Iterator[Work]:
    """The scoring of a source, begun or gone on with; errors as in `score`."""
    ending = require_format(out, safe=spreadsheet_safe)
    refuse_existing(out, force=force)
    _require_joinable(answerer, out)
    with opened(source, query=query) as stream:
        text_of = TextOf.find(stream, text=text, pair=text_pair)
        taken = [name for name in answerer.added() if name in stream.columns]
        if taken:
            raise DataError(
                f"'{shown(source)}' has columns {taken} already, which scoring adds. Rename or drop them first."
            )
        labelling = Labelling.of(stream, text_of, answerer, ending=ending, safe=spreadsheet_safe)
        plan = _plan(answerer, labelling, source, query)
        with journal(out, plan, resume=resume, force=force) as parts:
            yield Work(stream, labelling, parts, shown(source), out, listen)


def manifest_hash(folder: Path) -> str:
    """What tells one bundle from any other."""
    return json.loads((folder / MANIFEST).read_bytes())["sha256"]


def _require_joinable(answerer: Answerer, target: Path) -> None:
    joined = target.suffix in (".csv", ".tsv")
    if answerer.multi_label and joined and any(BETWEEN in label for label in answerer.labels):
        raise SettingError(
            f"A label holds '{BETWEEN}', which joins the labels of a row in '{target.name}'. "
            "Write a .jsonl or .parquet file, which has lists."
        )


def _plan(answerer: Answerer, labelling: Labelling, source: str | Path, query: str | None) -> dict[str, Any]:
    """What parts depend on."""
    return {
        "bundle": answerer.bundle,
        "engine": answerer.engine,
        "source": shown(source),
        "query": query,
        "text": labelling.text_of.text,
        "columns": list(labelling.form.columns),
        "ending": labelling.form.ending,
        "spreadsheet_safe": labelling.form.safe,
        "rows_per_part": ROWS_AT_ONCE,
    }


def _batched(records: Iterable[Record]) -> Iterator[list[Record]]:
    rest = iter(records)
    while part := list(itertools.islice(rest, ROWS_AT_ONCE)):
        yield part


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _progress(rows: int, count: int | None, *, made: int, seconds: float) -> Event:
    """How far it is; `seconds_left` by the rows that this process made."""
    left = None if count is None or made <= 0 else round(seconds * (count - rows) / made, 1)
    return Event("deployment", "progress", rows, count, values={} if left is None else {"seconds_left": left})
