"""Corrections of wrong answers, as the web page keeps them: rows to learn from, and never to measure on.

They are no fair sample, since somebody looked for mistakes: they join the training rows alone, after the split. One
that has a twin among the held-out rows is left out, or those rows would no longer be held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tagsmith.data.duplicates import leak
from tagsmith.data.earlier import Earlier
from tagsmith.data.folding import fold_all
from tagsmith.data.pairs import PAIR
from tagsmith.data.preparing import Prepared
from tagsmith.data.table import Table
from tagsmith.errors import DataError


def read_corrections(path: str | Path) -> Table:
    """The corrections in a file, the last one of each text; DataError names the first line that is none."""
    latest: dict[str, Any] = {}
    for text, labels in _records(Path(path)):
        latest.pop(text, None)
        latest[text] = labels
    if not latest:
        raise DataError(
            f"'{path}' holds no corrections. Expected lines of JSON with a text and its label; leave it out."
        )
    return Table.of(list(latest), list(latest.values()))


def learn_corrections(prepared: Prepared, corrections: Table, *, near: float) -> Prepared:
    """The splits with corrections among their training rows, in place of training rows of the same texts.

    `near` is the Jaccard similarity from which on texts are twins. DataError for labels that the other rows lack.
    """
    splits, train = prepared.splits, prepared.splits.train
    _require_known(corrections, train)
    held_out = pl.concat([part.frame["text"] for name, part in splits.items() if name != "train"])
    twins = leak(held_out, corrections.frame["text"], near=near).near
    kept = corrections.frame.filter(~pl.Series(twins))
    folded = fold_all(kept["text"])
    replaced = fold_all(train.frame["text"]).is_in(folded.implode()).to_numpy()
    rest = train.frame.filter(~pl.Series(replaced))
    first_row = 1 + max(int(part.rows.max(initial=0)) for _, part in splits.items())
    first_group = 1 + max(int(part.groups.max(initial=0)) for _, part in splits.items())
    numbers = np.arange(len(kept), dtype=np.uint32)
    added = kept.with_columns(
        pl.Series("row", numbers + np.uint32(first_row)), pl.Series("group", numbers + np.uint32(first_group))
    )
    frame = pl.concat([rest, added], how="diagonal")
    reason = (
        f"{len(kept):,} corrections joined the training rows, {int(replaced.sum()):,} of which had the same text; "
        f"{int(twins.sum()):,} more were left out, for they have a twin among the held-out rows"
    )
    table = train.changed(frame, step="corrections", reason=reason, rows=added["row"].to_list())
    splits = replace(splits, train=table)
    return replace(
        prepared,
        splits=splits,
        history=(*prepared.history, table.history[-1]),
        remembered=Earlier.of(splits, prepared.remembered),
    )


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The corrections '{path}' cannot be read ({type(error).__name__}). Expected the file that "
            "`tagsmith serve --corrections` keeps."
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _record(json.loads(line))
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"Line {number} of the corrections '{path}' is none. Expected JSON with a text and its label, as in "
                '{"text": "...", "label": "..."}; mend or delete the line.'
            ) from None


def _record(plain: Mapping[str, Any]) -> tuple[str, Any]:
    text, pair = plain["text"], plain.get("text_pair")
    labels = plain["labels"] if "labels" in plain else plain["label"]
    names = labels if isinstance(labels, list) else [labels]
    if not all(isinstance(each, str) for each in (text, *names)) or not text.strip() or PAIR in text:
        raise ValueError
    return (text if pair is None else f"{text}{PAIR}{pair}"), labels


def _require_known(corrections: Table, train: Table) -> None:
    if corrections.multi_label != train.multi_label:
        one, other = ("lists of labels", "one label") if corrections.multi_label else ("one label", "lists of labels")
        raise DataError(f"The corrections have {one} a text, and the other rows {other}. Expected the same in both.")
    known = {name for names in train.label_sets for name in names}
    unknown = sorted({name for names in corrections.label_sets for name in names} - known)
    if unknown:
        raise DataError(
            f"Labels of the corrections that the other rows lack: {unknown[:5]}; known: {sorted(known)[:20]}. Correct "
            "or delete these lines, or add rows that carry them."
        )
