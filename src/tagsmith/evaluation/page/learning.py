"""How the model came about: its depth, the course of tuning, the candidates, and what more labels would bring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tagsmith.evaluation.page.charts import Axis, Picture, legend
from tagsmith.evaluation.page.wording import paragraph, seconds, section, share
from tagsmith.markup import Html, escape, figure_of, number, table_of, word

Plain = Mapping[str, Any]


def depth_section(report: Plain) -> Html:
    """What probes said of each depth and short tunings of three; nothing where the depth was given."""
    depth = report["model"].get("depth")
    if depth is None:
        return Html("")
    told = (
        f"{depth['layers']} blocks were chosen on {depth['rows']['validation']} rows that the short tunings did not "
        "learn from, before the test rows were opened. "
    ) + (
        f"The loss there is {depth['cost']:.3f} nats ({depth['low']:.3f} to {depth['high']:.3f}) above the best depth "
        "tried, which is deeper."
        if depth["cost"]
        else "None of the depths tried has a lower loss."
    )
    series = {
        f"probe, {pooling}": [(p["layers"], p["loss"]) for p in depth["probes"] if p["pooling"] == pooling]
        for pooling in dict.fromkeys(probe["pooling"] for probe in depth["probes"])
    }
    series["short tuning"] = [(tried["layers"], tried["loss"]) for tried in depth["tunings"]]
    picture = _lines(series, x="blocks kept", told="Validation loss by depth", rule=depth["layers"])
    body = paragraph(told) + _figure(
        picture, list(series), "Validation loss by depth, in nats; the dashed line is the depth that was taken."
    )
    return section("depth", "How deep", body)


def learning_section(report: Plain) -> Html:
    """Loss and accuracy over the steps of tuning."""
    curves: Sequence[Plain] = report.get("curves") or []
    if not curves:
        return Html("")
    figures = []
    for measure in ("loss", "accuracy"):
        series = {
            part: [
                (each.get("step", i), each[f"{part}_{measure}"])
                for i, each in enumerate(curves)
                if each.get(f"{part}_{measure}") is not None
            ]
            for part in ("train", "validation")
        }
        series = {name: points for name, points in series.items() if points}
        if series:
            shares = measure == "accuracy"
            picture = _lines(series, x="step", told=f"{measure} over steps", shares=shares, rule=_best_step(report))
            told = f"{measure.capitalize()} over steps{'' if shares else ', in nats'}; dashed: the step that was kept."
            figures.append(_figure(picture, list(series), told))
    return section("learning", "How it learned", f'<div class="pictures">{"".join(figures)}</div>')


def _best_step(report: Plain) -> float | None:
    return report["model"].get("best_step") or None


def _lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    told: str,
    shares: bool = False,
    rule: float | None = None,
) -> Html:
    across = [point[0] for points in series.values() for point in points]
    heights = [(100 if shares else 1) * point[1] for points in series.values() for point in points]
    unit = " %" if shares else ""
    picture = Picture(Axis.of(x, across), Axis.of("", heights, unit=unit))
    if rule is not None:
        picture.rule(x=rule)
    for kind, points in zip(_KINDS, series.values(), strict=False):
        scaled = [(at, (100 if shares else 1) * value) for at, value in points]
        picture.line(scaled, kind)
        picture.dots(scaled, kind)
    return picture.svg(f"{told}: {', '.join(series)}")


_KINDS = ("first", "second", "third", "fourth")


def _figure(picture: Html, names: Sequence[str], caption: str) -> str:
    return figure_of(Html(picture + legend(dict(zip(_KINDS, names, strict=False)))), caption)


def candidates_section(report: Plain) -> Html:
    """What else was tried, by what the validation rows said and what it cost."""
    candidates: Sequence[Plain] = report.get("candidates") or []
    if not candidates:
        return Html("")
    keys = [key for key in dict.fromkeys(key for each in candidates for key in each) if _is_plain(candidates, key)]
    rows = [[_shown(key, each.get(key)) for key in keys] for each in candidates]
    told = "Chosen by the validation rows alone; the winner's score there is flattering, and no test row was asked."
    table = table_of(
        [key.replace("_", " ") for key in keys],
        rows,
        numbers=[i for i, key in enumerate(keys) if _is_number(candidates, key)],
        caption="The candidates",
    )
    return section("candidates", "What else was tried", paragraph(told) + table)


def _is_plain(rows: Sequence[Plain], key: str) -> bool:
    return not any(isinstance(row.get(key), Mapping | list) for row in rows)


def _is_number(rows: Sequence[Plain], key: str) -> bool:
    return all(isinstance(row.get(key), int | float | None) and not isinstance(row.get(key), bool) for row in rows)


def _shown(key: str, value: Any) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        if "seconds" in key:
            return seconds(value)
        return share(value) if "accuracy" in key or "share" in key else f"{value:.4g}"
    return number(value) if isinstance(value, int) else word(str(value))


def labels_needed_section(report: Plain) -> Html:
    """The learning curve, and what twice as many labels are expected to bring."""
    curve = report.get("learning_curve")
    if not curve:
        return Html("")
    points = curve["points"]
    picture = _curve_picture(curve)
    rows = [
        [
            number(each["rows"]),
            share(each["accuracy"]["value"]),
            *(share(each["accuracy"][end]) for end in ("low", "high")),
        ]
        for each in points
    ]
    table = table_of(["training rows", "accuracy", "from", "to"], rows, numbers=range(4), caption="The measured points")
    body = (
        f'<p class="lead">{escape(curve["text"])}</p>'
        + figure_of(picture, "Accuracy by training rows; dots are measured, the band is where more rows may lead.")
        + paragraph(curve.get("note", ""), soft=True)
        + f"<details><summary>As a table</summary>{table}</details>"
    )
    return section("more-labels", "How many more labels", body)


def _curve_picture(curve: Plain) -> Html:
    points, ahead = curve["points"], curve.get("forecast") or []
    places = [math.log2(each["rows"]) for each in (*points, *ahead)]
    x = Axis.by_name(
        "training rows", {place: number(each["rows"]) for place, each in zip(places, (*points, *ahead), strict=True)}
    )
    ends = [100 * each["accuracy"][end] for each in (*points, *ahead) for end in ("value", "low", "high")]
    picture = Picture(x, Axis.of("", ends, unit=" %"))
    if ahead:
        begin = points[-1]
        path = [(math.log2(each["rows"]), each["accuracy"]) for each in (begin, *ahead)]
        tip = {"low": begin["accuracy"]["value"], "high": begin["accuracy"]["value"]}
        edges = [(place, tip if i == 0 else measure) for i, (place, measure) in enumerate(path)]
        lower, upper = ([(place, 100 * measure[end]) for place, measure in edges] for end in ("low", "high"))
        picture.band(lower, upper, "second")
        picture.line([(place, 100 * measure["value"]) for place, measure in path], "second")
    for each in points:
        picture.whisker(math.log2(each["rows"]), 100 * each["accuracy"]["low"], 100 * each["accuracy"]["high"], "first")
    picture.dots([(math.log2(each["rows"]), 100 * each["accuracy"]["value"]) for each in points], "first")
    return picture.svg("Accuracy by the number of training rows, and where more of them may lead")
