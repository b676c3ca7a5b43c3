"""What answers cost: time and size of each system, a cascade of two, and the cost of mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagsmith.evaluation.page.charts import SHARES, Axis, Picture
from tagsmith.evaluation.page.wording import measured, paragraph, percent_of, seconds, section, size
from tagsmith.markup import Html, figure_of, table_of, word

Plain = Mapping[str, Any]

NAMES = {
    "model": "this model",
    "served": "this model",
    "llm": "the LLM alone",
    "tfidf": "TF-IDF",
    "probe": "frozen probe",
    "majority": "majority guess",
    "cheapest_answers": "this model, answering what costs least",
}
"""Systems by the keys of report.json."""


def cost_section(report: Plain, run: Plain) -> Html:
    """What an answer costs, of each system, beside its score; then the cascade, and what mistakes cost."""
    body = _times(report, run) + _cascade(report.get("cascade")) + _mistakes(report.get("expected_cost"))
    return section("cost", "What an answer costs", body)


def _times(report: Plain, run: Plain) -> str:
    """Seconds stand in run.json, since no two runs agree on them; sizes in report.json."""
    cost = dict(report.get("cost") or {}) | dict(run.get("cost") or {})
    scores = {"model": report["test"]} | dict(report["baselines"])
    rows = [
        [
            word(NAMES.get(name, name)),
            percent_of((scores.get(name) or {}).get("accuracy")),
            *(seconds(each[key]) if each.get(key) is not None else "" for key in _SECONDS),
            size(each["bytes"]) if each.get("bytes") is not None else "",
        ]
        for name, each in cost.items()
        if isinstance(each, Mapping)
    ]
    head = ["", "accuracy", "1,000 texts together", "one text alone", "on disk"]
    return table_of(head, rows, numbers=range(1, 5), caption="Score and cost of each system") if rows else ""


_SECONDS = ("seconds_per_thousand", "seconds_per_text")


def _cascade(cascade: Plain | None) -> str:
    if not cascade:
        return ""
    points = [(each["share"], 100 * each["accuracy"]) for each in cascade["points"]]
    picture = Picture(
        Axis("share answered by TF-IDF", 0.0, 1.0, SHARES.ticks), Axis.of("", [y for _, y in points], unit=" %")
    )
    picture.rule(x=cascade["chosen"]["share"])
    picture.line(sorted(points), "first")
    picture.dots(points, "first")
    told = "Accuracy of the two together, by how much TF-IDF answers; the dashed line is what held-out rows chose."
    return f"<h3>TF-IDF first, the LLM for the rest</h3>{paragraph(cascade['text'])}" + figure_of(
        picture.svg(told), told
    )


def _mistakes(cost: Plain | None) -> str:
    if not cost:
        return ""
    rows = [
        [word(NAMES.get(name, name)), measured("expected_cost", each)]
        for name, each in cost.items()
        if isinstance(each, Mapping) and "value" in each
    ]
    caption = f"Expected cost of {cost['per']:,} texts, by the costs in the settings"
    return "<h3>What mistakes cost</h3>" + table_of(["", "cost"], rows, numbers=(1,), caption=caption)
