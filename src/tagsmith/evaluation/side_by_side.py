"""Several reports side by side: where they were measured on the same rows, their paired differences.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.evaluation.comparison import compare_hits

Plain = Mapping[str, Any]

SHOWN = ("accuracy", "micro_f1", "macro_f1", "log_loss", "ece")
"""Measures that are set side by side where every report has them."""


@dataclass(frozen=True)
class Named:
    """A report.json and its run.json, under a name that tells it from the others."""

    name: str
    report: Plain
    run: Plain


def side_by_side(reports: Sequence[Named], *, margin: float = 1.0) -> dict[str, Any]:
    """Plain data: `measures` by report, `pairs` of the first with each other one, `settings` that differ, `notes`.

    A pair has `same_rows`, and where that holds the `difference` in points of the first from the other, with a verdict;
    elsewhere None, and its `text` says that the numbers cannot be compared. What was looked at to choose among reports
    is no longer a test: `notes` say so.
    """
    first, *others = reports
    pairs = [_pair(first, other, margin=margin) for other in others]
    notes = [
        "Whoever chooses among these by their test scores has chosen by the test rows: the best one's flatters it."
    ]
    if not all(pair["same_rows"] for pair in pairs):
        notes.append("Scores on different test rows cannot be compared: rows may be easier in one than in another.")
    kinds = {each.report["test"].get("kind", "single") for each in reports}
    keys = [key for key in SHOWN if all(key in each.report["test"] for each in reports)]
    if kinds == {"single"}:
        keys = [key for key in keys if key != "micro_f1"]  # the accuracy once more
    return {
        "names": [each.name for each in reports],
        "measures": {key: [each.report["test"][key] for each in reports] for key in keys},
        "rows": [each.report["test"]["n"] for each in reports],
        "tfidf": [each.report["baselines"]["tfidf"][keys[0]] for each in reports],
        "pairs": pairs,
        "settings": differing_settings(reports),
        "notes": notes,
    }


def _pair(first: Named, other: Named, *, margin: float) -> dict[str, Any]:
    told: dict[str, Any] = {"first": first.name, "other": other.name, "same_rows": same_rows(first, other)}
    if not told["same_rows"]:
        text = f"{first.name} and {other.name} were tested on different rows: their numbers cannot be compared."
        return told | {"difference": None, "value": None, "text": text}
    paired = _paired(first, other)
    if paired is None:
        text = (
            f"{first.name} and {other.name} were tested on the same rows, but a report that keeps no answers, or a "
            "sample of them only, allows no paired difference."
        )
        return told | {"difference": None, "value": None, "text": text}
    verdict = compare_hits(*paired, margin=margin, names=(first.name, other.name)).as_dict()
    return told | {"difference": verdict["difference"], "value": verdict["value"], "text": verdict["text"]}


def same_rows(first: Named, other: Named) -> bool:
    """Whether both were tested on the same texts with the same labels.

    By the hash of the texts where both have one, else by numbers of rows in the source; and by the truth.
    """
    hashes = [(each.run.get("looks") or {}).get("rows_sha256") for each in (first, other)]
    if all(hashes) and hashes[0] != hashes[1]:
        return False
    known = [_truth_by_row(each) for each in (first, other)]
    if all(known):
        return known[0] == known[1]
    return all(hashes)


def _truth_by_row(each: Named) -> dict[int, Any]:
    table = each.report.get("score_table")
    if not table:
        return {}
    names = each.report["test"]["confusion"]["labels"]
    return {row: _named(truth, names) for row, truth in zip(table["row"], table["truth"], strict=True)}


def _named(ids: Any, names: Sequence[str]) -> Any:
    """Names in place of ids, which two reports may number differently."""
    return frozenset(names[i] for i in ids) if isinstance(ids, list) else names[ids]


def _paired(first: Named, other: Named) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Which rows `(N,)` each answers rightly, and their groups; None where a table is absent or a sample."""
    rights = [_right_by_row(each) for each in (first, other)]
    if not all(rights):
        return None
    rows = sorted(rights[0])
    table = first.report["score_table"]
    group_of = dict(zip(table["row"], table.get("group") or table["row"], strict=True))
    hits, theirs = (np.array([right[row] for row in rows]) for right in rights)
    return hits, theirs, np.array([group_of[row] for row in rows])


def _right_by_row(each: Named) -> dict[int, bool]:
    table = each.report.get("score_table")
    if not table or table["of"] > len(table["row"]):
        return {}
    return {
        row: truth == answer for row, truth, answer in zip(table["row"], table["truth"], table["answer"], strict=True)
    }


def differing_settings(reports: Sequence[Named]) -> dict[str, list[Any]]:
    """Settings and facts of the model that are not the same in all reports: dotted names, one value a report."""
    flat = [dict(_flat(each.report.get("settings") or {})) | _about(each.report["model"]) for each in reports]
    names = dict.fromkeys(name for each in flat for name in each)
    rows = {name: [each.get(name) for each in flat] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def _about(model: Plain) -> dict[str, Any]:
    kept = ("backbone", "layers", "pooling", "parameters", "trained_parameters", "best_step", "steps")
    return {name: model[name] for name in kept if name in model}


def _flat(values: Plain, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def short_names(folders: Sequence[str]) -> list[str]:
    """The last part of each path, with as many parts before it as tell them apart."""
    parts = [folder.rstrip("/").split("/") for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(each)} ({i + 1})" for i, each in enumerate(parts)]
