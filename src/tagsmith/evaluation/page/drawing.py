"""Report -> one self-contained HTML page: no request, pictures inline, one script that nobody else can add to.

Labels and texts come from strangers. Each is escaped where it stands in markup; those that the script shows lie in a
block of JSON, and reach the page as text only. The page's policy names the one style and the one script that may act,
by their SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from tagsmith.evaluation.page.answers import confusion_section, labels_section
from tagsmith.evaluation.page.chances import (
    abstention_section,
    reliability_section,
    threshold_curves,
    thresholds_section,
)
from tagsmith.evaluation.page.costs import cost_section
from tagsmith.evaluation.page.errors import audit_section, mistakes_section
from tagsmith.evaluation.page.learning import (
    candidates_section,
    depth_section,
    labels_needed_section,
    learning_section,
)
from tagsmith.evaluation.page.parts import prior_section, robustness_section, shift_section, slices_section
from tagsmith.evaluation.page.provenance import data_section, run_section
from tagsmith.evaluation.page.scores import scores_section, seeds_section, verdict_of
from tagsmith.evaluation.page.texts import CellText, PageTexts
from tagsmith.markup import UNSEEN, Html, escape, shorten, style

_MOST_TEXTS_A_CELL, _MOST_LETTERS, _MOST_LETTERS_IN_CELLS = 12, 280, 400_000
_NO_TEXTS = PageTexts()


def draw(report: Mapping[str, Any], run: Mapping[str, Any], texts: PageTexts = _NO_TEXTS) -> str:
    """The page of a report.json, with the facts of a run.json and the texts that it quotes."""
    report = _with_facts(report, run)
    sections = [
        scores_section(report, run),
        shift_section(report),
        prior_section(report),
        cost_section(report, run),
        confusion_section(report),
        labels_section(report),
        mistakes_section(texts.mistakes, report["test"]),
        audit_section(report.get("label_audit"), texts.training),
        labels_needed_section(report),
        reliability_section(report),
        thresholds_section(report),
        abstention_section(report),
        slices_section(report),
        robustness_section(report),
        learning_section(report),
        depth_section(report),
        candidates_section(report),
        seeds_section(report),
        data_section(report["data"]),
        run_section(report, run),
    ]
    data = {"labels": _names(report), "cells": _cells(texts.cells)}
    if (report.get("score_table") or {}).get("probabilities"):
        data |= {"thresholds": threshold_curves(report)}
    return assemble("Tagsmith report", verdict_of(report, run), sections, data=data)


def _with_facts(report: Mapping[str, Any], run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The report with what a run.json knows better: the verdict with its price, and the looks at the test rows."""
    verdict = report["verdict"] | ({"text": run["verdict"]} if run.get("verdict") else {})
    return {**report, "verdict": verdict, "looks": run.get("looks") or report.get("looks")}


def assemble(title: str, opening: Html, sections: Sequence[Html], *, data: Mapping[str, Any]) -> str:
    """A whole page: its opening, links to its sections, the sections, and what its script needs to know."""
    folder = files("tagsmith.evaluation.page")
    look = style() + folder.joinpath("page.css").read_text(encoding="utf-8")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    page = Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style_hash=_hash(look),
        script_hash=_hash(script),
        style=look,
        script=script,
        opening=opening,
        contents=_contents(sections),
        sections="".join(sections),
        data=_inert(data),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _inert(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = UNSEEN.sub("\N{REPLACEMENT CHARACTER}", json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _contents(sections: Sequence[Html]) -> str:
    """A link to each section, by the ids and titles that `section` wrote."""
    links = []
    for each in sections:
        if each:
            name, title = each.split('"', 2)[1], each[each.index("<h2>") + 4 : each.index("</h2>")]
            links.append(f'<li><a href="#{name}">{title}</a></li>')
    return "".join(links)


def _names(report: Mapping[str, Any]) -> list[str]:
    return [shorten(str(name), 80) for name in report["test"]["confusion"]["labels"]]


def _cells(texts: Sequence[CellText]) -> dict[str, list[list[Any]]]:
    """Texts by cell, the surest answers first; cells off the diagonal come first, since room is limited."""
    room, cells = _MOST_LETTERS_IN_CELLS, {}
    for each in sorted(texts, key=lambda each: (each.truth == each.answer, -each.probability, each.row)):
        shown = cells.setdefault(f"{each.truth}-{each.answer}", [])
        text = shorten(each.text, _MOST_LETTERS)
        if len(shown) < _MOST_TEXTS_A_CELL and len(text) <= room:
            shown.append([each.row, text, round(each.probability, 4)])
            room -= len(text)
    return {cell: shown for cell, shown in cells.items() if shown}
