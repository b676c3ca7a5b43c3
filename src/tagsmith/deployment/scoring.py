"""A table in, the same table with labels out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tagsmith.data.readers import find_columns, read_frame, redacted, texts_of
from tagsmith.deployment.engine import Answer
from tagsmith.deployment.manifest import refuse_existing
from tagsmith.errors import DataError, ResourceError, SettingError
from tagsmith.events import Event, Listener, silent

if TYPE_CHECKING:
    import polars as pl

    from tagsmith.deployment.bundle import Bundle

ROWS_AT_ONCE = 2048
ADDED = ("predicted_label", "probability", "truncated", "remark")
_BETWEEN = ";"
FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


def score(
    bundle: Bundle,
    source: str | Path,
    *,
    out: str | Path,
    text: str | None = None,
    query: str | None = None,
    force: bool = False,
    listen: Listener = silent,
) -> int:
    """Write the rows of `source` to `out` with the columns `predicted_label`, `probability`, `truncated` and `remark`.

    Where a text may have several labels they are `predicted_labels`, a list or in a CSV joined by `;`, and a column
    `probability_LABEL` for each label.

    The ending of `out` chooses the format. Rows keep their order and their columns; an empty text gets no label and the
    remark `empty`. Gives the number of rows. The file appears whole or not at all.

    Raises:
        DataError: `source` has a column of one of these names.
        SettingError: an unknown ending, `out` exists and `force` is not given, or a label holds the `;` of a CSV.
        ResourceError: the disk is full or cannot be written.
    """
    target = Path(out)
    if target.suffix not in FORMATS:
        raise SettingError(f"'{target.name}' ends in '{target.suffix}'; expected one of {', '.join(FORMATS)}.")
    refuse_existing(target, force=force)
    joined = target.suffix in (".csv", ".tsv")
    if bundle.multi_label and joined and any(_BETWEEN in label for label in bundle.labels):
        raise SettingError(
            f"A label holds '{_BETWEEN}', which joins the labels of a row in '{target.name}'. "
            "Write a .jsonl or .parquet file, which has lists."
        )
    frame = read_frame(source, query=query).frame
    data = bundle.settings["config"]["data"]
    columns = find_columns(frame, text=text or data["text"], text_pair=data.get("text_pair"), labelled=False)
    taken = [name for name in _added(bundle) if name in frame.columns]
    if taken:
        raise DataError(
            f"'{redacted(source)}' has columns {taken} already, which scoring adds. Rename or drop them first."
        )
    texts = texts_of(frame, columns).fill_null("").to_list()
    answers = list(_answers(bundle, texts, listen))
    labelled = _with_sets(frame, answers, bundle.labels, joined) if bundle.multi_label else _labelled(frame, answers)
    _write(labelled, target)
    return len(answers)


def _answers(bundle: Bundle, texts: list[str], listen: Listener) -> Iterator[Answer]:
    for start in range(0, len(texts), ROWS_AT_ONCE):
        yield from bundle.answer(texts[start : start + ROWS_AT_ONCE])
        listen(Event("deployment", "progress", min(start + ROWS_AT_ONCE, len(texts)), len(texts)))


def _labelled(frame: pl.DataFrame, answers: list[Answer]) -> pl.DataFrame:
    import polars as pl

    return frame.with_columns(
        pl.Series("predicted_label", [answer.label for answer in answers], dtype=pl.String),
        pl.Series("probability", [answer.probability for answer in answers], dtype=pl.Float64),
        pl.Series("truncated", [answer.truncated for answer in answers], dtype=pl.Boolean),
        pl.Series("remark", [answer.reason for answer in answers], dtype=pl.String),
    )


def _added(bundle: Bundle) -> tuple[str, ...]:
    if not bundle.multi_label:
        return ADDED
    return ("predicted_labels", *(f"probability_{label}" for label in bundle.labels), "truncated", "remark")


def _with_sets(frame: pl.DataFrame, answers: list[Answer], labels: tuple[str, ...], joined: bool) -> pl.DataFrame:
    import polars as pl

    found = [None if answer.reason else list(answer.labels) for answer in answers]
    sets = pl.Series("predicted_labels", found, dtype=pl.List(pl.String))
    probabilities = (
        pl.Series(f"probability_{label}", [None if a.reason else a.probabilities[i] for a in answers], dtype=pl.Float64)
        for i, label in enumerate(labels)
    )
    return frame.with_columns(
        sets.list.join(_BETWEEN) if joined else sets,
        *probabilities,
        pl.Series("truncated", [answer.truncated for answer in answers], dtype=pl.Boolean),
        pl.Series("remark", [answer.reason for answer in answers], dtype=pl.String),
    )


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists and records as JSON, which a cell of a CSV can hold."""
    import polars as pl

    nested = [column for column in frame if column.dtype.is_nested()]
    words = (
        [None if value is None else json.dumps(value, ensure_ascii=False) for value in c.to_list()] for c in nested
    )
    return frame.with_columns(pl.Series(c.name, word, dtype=pl.String) for c, word in zip(nested, words, strict=True))


def _write(frame: pl.DataFrame, target: Path) -> None:
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            if target.suffix == ".parquet":
                frame.write_parquet(file)
            elif target.suffix == ".jsonl":
                frame.write_ndjson(file)
            else:
                _flat(frame).write_csv(file, separator="\t" if target.suffix == ".tsv" else ",")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError as error:
        raise ResourceError(
            f"Cannot write '{target}': {error.strerror}. Free some space, or choose another --out."
        ) from error
    finally:
        aside.unlink(missing_ok=True)
