"""What is confused with what, and how well each label is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tagsmith.evaluation.page.charts import Scale, whisker_cell
from tagsmith.evaluation.page.wording import has_sets, paragraph, percent_of, section
from tagsmith.markup import Html, escape, number, part_of, shorten, table_of, word

MOST_LABELS_IN_TABLE = 25
"""With more labels the matrix is a map: one square a cell, whose names are read beside it."""
_MOST_PAIRS = 30
_DEPTHS = 10


def confusion_section(report: Mapping[str, Any]) -> Html:
    """The confusion matrix, whose cells show their texts, and the pairs that are confused most."""
    confusion = report["test"]["confusion"]
    if confusion.get("kind") == "per_label":
        return Html("")  # the table label by label says it
    names, counts = confusion["labels"], np.asarray(confusion["counts"], dtype=np.int64)
    matrix = _table(names, counts) if len(names) <= MOST_LABELS_IN_TABLE else _map(names, counts)
    panel = '<div id="cell-texts" class="panel" aria-live="polite" tabindex="-1" hidden></div>'
    return section("confusion", "What it confuses", matrix + panel + _pairs(names, counts))


def _table(names: Sequence[str], counts: np.ndarray) -> str:
    steep = " steep" if len(names) > 5 and max(map(len, names)) > 4 else ""
    depths = _depths(counts)
    head = "".join(f'<th scope="col">{word(name)}</th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(_cell(names, counts, depths, i, j) for j in range(len(names)))
        rows.append(f'<tr><th scope="row">{word(name)}</th>{cells}</tr>')
    return (
        '<p class="soft">Rows are the truth, columns the answers; the deeper a cell, the larger its share of the row. '
        '<span class="needs-script">Press a cell to read its texts; arrow keys go from cell to cell.</span></p>'
        f'<div class="box" tabindex="0"><table class="confusion{steep}" aria-label="Confusion matrix">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(names: Sequence[str], counts: np.ndarray, depths: np.ndarray, truth: int, answer: int) -> str:
    count = int(counts[truth, answer])
    if not count:
        return '<td class="none">0</td>'
    told = f"truth {shorten(names[truth], 80)}, answer {shorten(names[answer], 80)}: {count:,} rows"
    kind = "right" if truth == answer else "wrong"
    return (
        f'<td class="{kind} d{depths[truth, answer]}"><button type="button" data-cell="{truth}-{answer}" '
        f'aria-label="{escape(told)}">{count:,}</button></td>'
    )


def _depths(counts: np.ndarray) -> np.ndarray:
    """How deep the colour of each cell is, 0 to 9: the root of its share of the row, so that rare ones are seen."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.ceil(np.sqrt(shares) * (_DEPTHS - 1)).astype(int)


def _map(names: Sequence[str], counts: np.ndarray) -> str:
    size, depths = len(names), _depths(counts)
    squares = "".join(
        f'<rect class="{"right" if i == j else "wrong"} d{depths[i, j]}" x="{j}" y="{i}" width="1" height="1" '
        f'data-cell="{i}-{j}" data-rows="{counts[i, j]}"/>'
        for i, j in zip(*np.nonzero(counts), strict=True)
    )
    lines = "".join(f'<path class="grid" d="M{at} 0V{size}M0 {at}H{size}"/>' for at in range(0, size + 1, 10))
    told = f"{size} labels: rows are the truth, columns the answers, in the order of the labels' numbers."
    return (
        f'<figure><svg id="map" class="map" role="img" tabindex="0" viewBox="-1 -1 {size + 2} {size + 2}" '
        f'aria-label="{told}">{lines}{squares}<path id="cross" class="cross" d=""/></svg>'
        f'<output id="map-cell" class="readout needs-script">Point at a square, or press the arrow keys.</output>'
        f"<figcaption>{told} On the diagonal they agree; a square off it is a confusion. "
        '<span class="needs-script">Press a square, or Enter, to read its texts.</span></figcaption></figure>'
    )


def _pairs(names: Sequence[str], counts: np.ndarray) -> str:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [(int(i // len(names)), int(i % len(names))) for i in order if wrong.flat[i]]
    if not pairs:
        return "<p>No test row was answered wrongly.</p>"
    rows = [
        [
            word(names[t]),
            word(names[g]),
            Html(f'<button type="button" class="count" data-cell="{t}-{g}">{number(wrong[t, g])}</button>'),
            part_of(wrong[t, g], counts[t].sum()),
        ]
        for t, g in pairs
    ]
    head = ["truth", "answer", "rows", "of the truth"]
    return "<h3>Most confused pairs</h3>" + table_of(
        head, rows, numbers=(2, 3), caption="Pairs of truth and answer, the most frequent first"
    )


def labels_section(report: Mapping[str, Any]) -> Html:
    """Precision, recall and F1 of each label, the worst first."""
    test = report["test"]
    told, columns = "", {}
    if has_sets(test):
        told, columns = _about_thresholds(report), _tallies(test)
    scores = sorted(enumerate(test["per_label"]), key=lambda each: (each[1]["f1"]["value"] or 0.0, each[0]))
    rows = [
        [
            word(each["label"]),
            whisker_cell(each["f1"], Scale(-0.03, 1.03), kind="first"),
            percent_of(each["f1"]),
            percent_of(each["precision"]),
            percent_of(each["recall"]),
            number(each["support"]),
            *(column[place] for column in columns.values()),
        ]
        for place, each in scores
    ]
    head = ["label", Html('<span class="scale"><span>0 %</span><span>100 %</span></span>'), "F1"]
    head += ["precision", "recall", "rows", *columns]
    few = any(each["support"] < 10 for each in test["per_label"])
    soft = "The worst first." + (" Below 10 test rows no interval is given." if few else "")
    table = table_of(
        head, rows, numbers=range(2, len(head)), pictures=(1,), caption="F1 of each label with its 95 % interval"
    )
    return section("labels", "Label by label", told + paragraph(soft, soft=True) + table)


def _about_thresholds(report: Mapping[str, Any]) -> str:
    fitted = (report.get("calibration") or {}).get("thresholds") or {}
    if not fitted:
        return ""
    shared = fitted.get("shared") or []
    ending = f"; {len(shared)} labels share one" if shared else ""
    return paragraph(
        f"A label is answered from its threshold on, fitted on {number(fitted['rows'])} held-out rows{ending}.",
        soft=True,
    )


def _tallies(test: Mapping[str, Any]) -> dict[str, list[str]]:
    counts = np.asarray(test["confusion"]["counts"])
    return {
        "threshold": [f"{each['threshold']:.3f}" for each in test["per_label"]],
        "found": [number(each) for each in counts[:, 1, 1]],
        "missed": [number(each) for each in counts[:, 1, 0]],
        "false": [number(each) for each in counts[:, 0, 1]],
    }
