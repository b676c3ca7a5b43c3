"""What a probability is worth: reliability, what a threshold does, and what is gained by not answering.

Axes: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagsmith.evaluation.page.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    SHARES,
    TOP,
    WIDTH,
    Axis,
    Picture,
    legend,
)
from tagsmith.evaluation.page.wording import paragraph, percent_of, section, share
from tagsmith.markup import Html, escape, figure_of, number, shorten, table_of

Plain = Mapping[str, Any]

STEPS = 100
"""A slider moves in hundredths."""


def reliability_section(report: Plain) -> Html:
    """How often answers of each surety are right, beside the band of a model that means what it says."""
    bins = report.get("reliability") or []
    if not bins:
        return Html("")
    low = min(min(each["confidence"], each["accuracy"], each["band"][0]) for each in bins)
    axis = _shares_from(low, "how sure")
    picture = Picture(axis, _shares_from(low, ""))
    picture.diagonal()
    lower, upper = ([(each["confidence"], each["band"][end]) for each in bins] for end in (0, 1))
    picture.band(lower, upper, "third")
    picture.line([(each["confidence"], each["accuracy"]) for each in bins], "first")
    picture.dots([(each["confidence"], each["accuracy"]) for each in bins], "first")
    rows = [
        [
            f"{share(each['low'])} to {share(each['high'])}",
            number(each["count"]),
            share(each["accuracy"]),
            f"{share(each['band'][0])} to {share(each['band'][1])}",
        ]
        for each in bins
    ]
    head = ["how sure", "rows", "right", "band"]
    table = table_of(head, rows, numbers=range(4), caption="The bins of the picture")
    outside = sum(not each["band"][0] <= each["accuracy"] <= each["band"][1] for each in bins)
    told = (
        f"{outside} of {len(bins)} dots lie outside the band in which 95 of 100 dots of a model would lie whose "
        "probabilities mean what they say."
    )
    chart = Html(picture.svg(told) + legend({"first": "this model", "third": "by chance"}))
    caption = "How often answers are right, by how sure they are; each dot stands for as many rows."
    body = paragraph(told) + _calibration_error(report["test"]) + figure_of(chart, caption)
    return section(
        "reliability", "What a probability is worth", body + f"<details><summary>As a table</summary>{table}</details>"
    )


def _calibration_error(test: Plain) -> str:
    if not test.get("ece_calibrated"):
        return ""
    return paragraph(
        f"Surety and truth are {percent_of(test['ece'])} apart on average (ECE); by chance alone a perfectly "
        f"calibrated model would show an ECE of {percent_of(test['ece_calibrated'])}."
    )


def _shares_from(low: float, title: str) -> Axis:
    """From a round number at or below `low` to 100 %."""
    step = 0.2 if low < 0.5 else 0.1 if low < 0.8 else 0.05
    first = max(0, int(low / step + 1e-9))
    ticks = tuple((i * step, f"{100 * i * step:.0f} %") for i in range(first, round(1 / step) + 1))
    return Axis(title, first * step, 1.0, ticks)


# --- the slider


def thresholds_section(report: Plain) -> Html:
    """A slider that says what a threshold on the probability would do; curves where no script runs."""
    table = report.get("score_table")
    if not table or not table["probabilities"]:
        return Html("")
    curves = threshold_curves(report)
    names = [option["name"] for option in curves["options"]]
    options = "".join(f'<option value="{i}">{escape(shorten(name, 60))}</option>' for i, name in enumerate(names))
    shown = number(len(table["truth"])) + (f" of {number(table['of'])}" if table["of"] > len(table["truth"]) else "")
    controls = (
        '<div class="controls needs-script">'
        f'<label>Label <select id="threshold-label">{options}</select></label>'
        '<label>answered from <input type="range" id="threshold" min="0" max="99" value="50" step="1" '
        'aria-describedby="threshold-told"> <output id="threshold-value">50 %</output></label></div>'
        '<ul class="live needs-script" aria-live="polite" id="threshold-told">'
        '<li><strong id="threshold-precision"></strong><span id="threshold-precision-name"></span></li>'
        '<li><strong id="threshold-recall"></strong><span id="threshold-recall-name"></span></li>'
        '<li><strong id="threshold-count"></strong>rows answered</li></ul>'
    )
    told = f"What another threshold would have done on {shown} test rows; one chosen here is chosen by the test rows."
    caption = "Both over the threshold; the dashed line is where it stands."
    return section(
        "thresholds",
        "What a threshold does",
        paragraph(told) + controls + figure_of(_threshold_picture(curves["options"][0]), caption),
    )


def threshold_curves(report: Plain) -> dict[str, Any]:
    """For the script: of each label, and of any, how many rows are answered from each hundredth on, and rightly so.

    `options[].answered` and `.right` have an entry for each threshold from 0 to 99 hundredths; `.all` is the number of
    rows that should be found. `independent` is the share of rows that count in an interval: near twins count once.
    `frame` is where the picture's axes lie.
    """
    table, names = report["score_table"], report["test"]["confusion"]["labels"]
    probs_NC = np.asarray(table["probabilities"], dtype=np.float64)
    truth_NC = _truth(table["truth"], probs_NC.shape)
    options = []
    if report["test"].get("kind") != "multi_label":
        places, answer_N = np.arange(len(probs_NC)), np.asarray(table["answer"])
        any_label = _counts(probs_NC[places, answer_N], truth_NC[places, answer_N])
        options.append({"name": "any: no answer below", "all": len(probs_NC), "any": True, **any_label})
    for i, name in enumerate(names):
        found = _counts(probs_NC[:, i], truth_NC[:, i])
        options.append({"name": shorten(str(name), 80), "all": int(truth_NC[:, i].sum()), "any": False, **found})
    test = report["test"]
    return {
        "options": options,
        "independent": test.get("groups", test["n"]) / test["n"],
        "frame": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM],
    }


def _truth(ids: Any, shape: tuple[int, ...]) -> np.ndarray:
    truth_NC = np.zeros(shape, dtype=bool)
    for row, labels in enumerate(ids):
        truth_NC[row, labels] = True
    return truth_NC


def _counts(probs_N: np.ndarray, right_N: np.ndarray) -> dict[str, list[int]]:
    places = np.minimum((probs_N * STEPS + 1e-9).astype(int), STEPS - 1)
    return {
        name: np.cumsum(np.bincount(places[kept], minlength=STEPS)[::-1])[::-1].tolist()
        for name, kept in (("answered", np.ones(len(places), dtype=bool)), ("right", right_N))
    }


def _threshold_picture(option: Plain) -> Html:
    """The curves of one option, which the script redraws for another."""
    picture = Picture(Axis("threshold", 0.0, 1.0, SHARES.ticks), SHARES)
    answered, right = np.array(option["answered"]), np.array(option["right"])
    places = np.arange(STEPS) / STEPS
    kept = answered > 0
    precision = right[kept] / answered[kept]
    recall = (answered if option["any"] else right) / max(option["all"], 1)
    picture.line(list(zip(places[kept].tolist(), precision.tolist(), strict=True)), "first")
    picture.line(list(zip(places.tolist(), recall.tolist(), strict=True)), "second")
    picture.rule(x=0.5)
    svg = picture.svg("Precision and recall over the threshold").replace("<svg ", '<svg id="threshold-picture" ', 1)
    names = ("right of those answered", "answered") if option["any"] else ("precision", "recall")
    return Html(svg + legend(dict(zip(("first", "second"), names, strict=True))))


# --- not answering


def abstention_section(report: Plain) -> Html:
    """The error among the surest answers, and what was proven of it."""
    found = report.get("abstention") or {}
    points = found.get("risk_coverage") or []
    if len(points) < 2:
        return Html("")
    picture = Picture(Axis("share answered, the surest first", 0.0, 1.0, SHARES.ticks), _errors(points))
    picture.line([(coverage, 100 * error) for coverage, error in points], "first")
    told = f"If only the surest are answered, fewer answers are wrong: {_at(points)}."
    lines = [paragraph(told), _guarantee(found)]
    caption = (
        f"The error among the answers by the share answered; its mean over all shares is {share(found['area'], 2)}."
    )
    return section("abstention", "If it may decline to answer", "".join(lines) + figure_of(picture.svg(told), caption))


def _errors(points: list[list[float]]) -> Axis:
    return Axis.of("", [0.0, max(100 * error for _, error in points) or 1.0], unit=" %", least=0.0)


def _at(points: list[list[float]]) -> str:
    told = []
    for wanted in (1.0, 0.9, 0.75, 0.5):
        coverage, error = min(points, key=lambda point: abs(point[0] - wanted))
        if abs(coverage - wanted) < 0.05:
            told.append(f"{share(error)} of {'all' if coverage > 0.999 else 'the surest ' + share(coverage, 0)}")
    return ", ".join(told)


def _guarantee(found: Plain) -> str:
    lines = paragraph(str(found["guarantee"])) if found.get("guarantee") else ""
    test = found.get("test")
    if test:
        lines += paragraph(
            f"Of the test rows {number(test['answered'])} are answered ({percent_of(test['coverage'])}), "
            f"{percent_of(test['error'])} of them wrongly."
        )
    return lines
