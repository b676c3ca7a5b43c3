"""A table in, the same table with labels out: part by part, of any size, and an interrupted one goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsmith.data.streaming import Record, Stream, TextOf, opened, shown
from tagsmith.deployment.engine import Answer, Engine
from tagsmith.deployment.journal import Journal, finished, journal
from tagsmith.deployment.manifest import MANIFEST, refuse_existing
from tagsmith.deployment.written import BETWEEN, Format, require_format
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
    remark `empty`. Gives the number of rows. The file appears whole or not at all: until then its parts lie in a hidden
    folder beside it, from which `resume` goes on, each row exactly once. With `spreadsheet_safe` a cell that a
    spreadsheet would take for a formula begins with an apostrophe.

    Raises:
        DataError: `source` has a column of one of these names, or on resuming holds other rows than before.
        SettingError: an unknown ending, `out` exists and `force` is not given, a label holds the `;` of a CSV, or
            `resume` with another bundle, engine, column or format than before.
        ResourceError: the disk is full or cannot be written.
    """
    target = Path(out)
    ending = require_format(target, safe=spreadsheet_safe)
    if resume and (rows := finished(target)) is not None:
        return rows
    refuse_existing(target, force=force)
    _require_joinable(bundle, target)
    data = bundle.settings["config"]["data"]
    with opened(source, query=query) as stream:
        text_of = TextOf.find(stream, text=text or data["text"], pair=data.get("text_pair"))
        added = _added(bundle, joined=ending in (".csv", ".tsv"))
        taken = [name for name in added if name in stream.columns]
        if taken:
            raise DataError(
                f"'{shown(source)}' has columns {taken} already, which scoring adds. Rename or drop them first."
            )
        form = _format(ending, stream, bundle, added, safe=spreadsheet_safe)
        plan = _plan(bundle, text_of, form, source, query)
        with journal(target, plan, resume=resume, force=force) as parts:
            rows = _score_parts(bundle.engine, stream, text_of, form, parts, listen, source)
            parts.assemble(target, form.join)
    return rows


def _require_joinable(bundle: Bundle, target: Path) -> None:
    joined = target.suffix in (".csv", ".tsv")
    if bundle.multi_label and joined and any(BETWEEN in label for label in bundle.labels):
        raise SettingError(
            f"A label holds '{BETWEEN}', which joins the labels of a row in '{target.name}'. "
            "Write a .jsonl or .parquet file, which has lists."
        )


def _plan(bundle: Bundle, text_of: TextOf, form: Format, source: str | Path, query: str | None) -> dict[str, Any]:
    """What parts depend on."""
    manifest = json.loads((bundle.folder / MANIFEST).read_bytes())
    return {
        "bundle": manifest["sha256"],
        "engine": bundle.engine.name,
        "source": shown(source),
        "query": query,
        "text": text_of.text,
        "columns": list(form.columns),
        "ending": form.ending,
        "spreadsheet_safe": form.safe,
        "rows_per_part": ROWS_AT_ONCE,
    }


def _score_parts(
    engine: Engine,
    stream: Stream,
    text_of: TextOf,
    form: Format,
    parts: Journal,
    listen: Listener,
    source: str | Path,
) -> int:
    rows, began, before = 0, time.monotonic(), sum(part.rows for part in parts.done.values())
    for number, records in enumerate(_batched(stream.read())):
        texts = [text_of(record) for record in records]
        digest = _digest(texts)
        known = parts.done.get(number)
        if known is not None and (known.rows, known.texts_sha256) != (len(records), digest):
            raise DataError(
                f"Part {number} of '{shown(source)}' holds other texts than when this was begun. Expected the same "
                "rows in the same order; sort them (a query by ORDER BY), or begin anew with --force."
            )
        if known is None:
            answers = engine.answer(texts)
            labelled = _labelled(records, answers, engine, joined=form.ending in (".csv", ".tsv"))
            parts.add(
                number,
                rows=len(records),
                texts_sha256=digest,
                write=lambda path, labelled=labelled: form.write_part(labelled, path),
            )
        rows += len(records)
        listen(_progress(rows, stream.count, made=rows - before, seconds=time.monotonic() - began))
    _require_no_more(parts, rows, source)
    return rows


def _batched(records: Iterable[Record]) -> Iterator[list[Record]]:
    rest = iter(records)
    while part := list(itertools.islice(rest, ROWS_AT_ONCE)):
        yield part


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _require_no_more(parts: Journal, rows: int, source: str | Path) -> None:
    done = sum(part.rows for part in parts.done.values())
    if done != rows:
        raise DataError(
            f"'{shown(source)}' has {rows} rows, and {done} were labelled before. Expected the same rows; begin anew "
            "with --force."
        )


def _progress(rows: int, count: int | None, *, made: int, seconds: float) -> Event:
    """How far it is; `seconds_left` by the rows that this process made."""
    left = None if count is None or made <= 0 else round(seconds * (count - rows) / made, 1)
    return Event("deployment", "progress", rows, count, values={} if left is None else {"seconds_left": left})


# --- columns that are added


def _added(bundle: Bundle, *, joined: bool) -> tuple[str, ...]:
    if not bundle.multi_label:
        return ("predicted_label", "probability", "truncated", "remark")
    return ("predicted_labels", *(f"probability_{label}" for label in bundle.labels), "truncated", "remark")


def _labelled(
    records: Sequence[Record], answers: Sequence[Answer], engine: Engine, *, joined: bool
) -> Iterator[dict[str, Any]]:
    for record, answer in zip(records, answers, strict=True):
        remark = answer.reason or ("abstained" if answer.abstained else None)
        shared = {"truncated": answer.truncated, "remark": remark}
        if not engine.multi_label:
            own: dict[str, Any] = {"predicted_label": answer.label, "probability": answer.probability}
        else:
            own = _sets(answer, engine.labels.names, joined=joined)
        yield {**record, **own, **shared}


def _sets(answer: Answer, names: Sequence[str], *, joined: bool) -> dict[str, Any]:
    if answer.reason:
        return {"predicted_labels": None} | {f"probability_{name}": None for name in names}
    found = BETWEEN.join(answer.labels) if joined else list(answer.labels)
    chances = zip(names, answer.probabilities, strict=True)
    return {"predicted_labels": found} | {f"probability_{name}": chance for name, chance in chances}


def _format(ending: str, stream: Stream, bundle: Bundle, added: Sequence[str], *, safe: bool) -> Format:
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
