"""A page with several reports side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tagsmith.evaluation.page.charts import Scale, whisker_cell
from tagsmith.evaluation.page.drawing import assemble
from tagsmith.evaluation.page.wording import (
    KEYS,
    SETS,
    SINGLE,
    listed,
    measured,
    paragraph,
    percent_of,
    section,
    share,
)
from tagsmith.evaluation.side_by_side import Named
from tagsmith.markup import Html, escape, number, shorten, table_of, word

Plain = Mapping[str, Any]


def draw_comparison(reports: Sequence[Named], compared: Plain) -> str:
    """The page of `side_by_side`."""
    names = compared["names"]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in compared["notes"])
    first = compared["pairs"][0]["text"] if len(names) == 2 else f"{len(names)} reports: {listed(names)}"
    opening = Html(f'<p class="verdict">{escape(first)}</p>{notes}')
    sections = [
        section("scores", "How good they are", _scores(compared)),
        section("pairs", "Pair by pair", _pairs(compared) if len(names) > 2 else ""),
        section("labels", "Label by label", _labels(reports)),
        section("settings", "What is different about them", _settings(compared)),
        section("verdicts", "What each report says", _verdicts(reports)),
    ]
    return assemble("Tagsmith reports side by side", opening, sections, data={"labels": [], "cells": {}})


def _scores(compared: Plain) -> str:
    named = SETS if "micro_f1" in compared["measures"] else SINGLE
    titles = {key: title for title, key in named.items()}
    main = next(iter(compared["measures"]))
    points = [*compared["measures"][main], *compared["tfidf"]]
    scale = Scale.around([measure[end] for measure in points for end in KEYS if measure[end] is not None])
    rows = [
        [
            word(name),
            number(compared["rows"][i]),
            whisker_cell(compared["measures"][main][i], scale, kind="first"),
            percent_of(compared["measures"][main][i]),
            percent_of(compared["tfidf"][i]),
            *(measured(key, values[i]) for key, values in compared["measures"].items() if key != main),
        ]
        for i, name in enumerate(compared["names"])
    ]
    ends = Html(
        f'<span class="scale"><span>{share(max(0.0, scale.low), 0)}</span><span>{share(min(1.0, scale.high), 0)}</span>'
        "</span>"
    )
    heads = [titles.get(key, key) for key in compared["measures"]]
    head = ["", "rows", ends, heads[0], "of TF-IDF", *heads[1:]]
    caption = f"{heads[0][0].upper()}{heads[0][1:]} as a dot with its 95 % interval, then all measures"
    return table_of(head, rows, numbers=[1, *range(3, len(head))], pictures=(2,), caption=caption)


def _pairs(compared: Plain) -> str:
    return "".join(paragraph(pair["text"]) for pair in compared["pairs"])


def _labels(reports: Sequence[Named]) -> str:
    """F1 of each label in each report, where at least two share labels."""
    found = [{each["label"]: each["f1"] for each in named.report["test"]["per_label"]} for named in reports]
    shared = [label for label in found[0] if sum(label in each for each in found) > 1]
    if not shared:
        return ""
    rows = [
        [word(label), *(cell for each in found for cell in _label_cells(each.get(label)))]
        for label in sorted(shared, key=lambda label: found[0][label]["value"] or 0.0)
    ]
    head: list[object] = ["label"]
    for named in reports:
        head += [Html(f"<bdi>{escape(shorten(named.name, 40))}</bdi>"), "F1"]
    width = len(head)
    return table_of(
        head, rows, pictures=range(1, width, 2), numbers=range(2, width, 2), caption="F1 of each label, the worst first"
    )


def _label_cells(measure: Plain | None) -> list[object]:
    if measure is None:
        return ["", ""]
    return [whisker_cell(measure, Scale(-0.03, 1.03), kind="first"), percent_of(measure)]


def _settings(compared: Plain) -> str:
    if not compared["settings"]:
        return paragraph("Nothing: settings and models are the same.")
    rows = [
        [word(name), *(word("none" if value is None else str(value)) for value in values)]
        for name, values in compared["settings"].items()
    ]
    return table_of(["", *map(word, compared["names"])], rows, caption="Settings and models where they differ")


def _verdicts(reports: Sequence[Named]) -> str:
    rows = [[word(named.name), named.report["verdict"]["text"]] for named in reports]
    return table_of(["", "verdict"], rows, texts=(1,), caption="The verdict of each report")
