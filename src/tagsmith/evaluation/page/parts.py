"""Parts of the rows and damaged rows: where accuracy differs, and what it does not stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagsmith.evaluation.page.charts import Scale, whisker_cell
from tagsmith.evaluation.page.wording import KEYS, paragraph, percent_of, section, share, signed
from tagsmith.markup import Html, escape, number, table_of, word

Plain = Mapping[str, Any]


def slices_section(report: Plain) -> Html:
    """Accuracy by length, source, language and the like; what differs beyond chance stands out."""
    slices = report.get("slices") or []
    if not slices:
        return Html("")
    scale = _scale([each["accuracy"] for each in slices])
    rows = [
        [
            each["by"],
            word(each["value"]),
            whisker_cell(each["accuracy"], scale, kind="second" if each["p_holm"] < _LEVEL else "first"),
            percent_of(each["accuracy"]),
            share(each["shrunk"]),
            number(each["n"]),
            Html(f"<strong>{_p(each['p_holm'])}</strong>") if each["p_holm"] < _LEVEL else _p(each["p_holm"]),
        ]
        for each in slices
    ]
    apart = sum(each["p_holm"] < _LEVEL for each in slices)
    told = (
        f"{apart} of {len(slices)} parts differ from the other rows beyond chance."
        if apart
        else f"None of {len(slices)} parts differs from the other rows beyond chance."
    )
    soft = (
        "Some part always looks bad by luck: the estimate draws small parts towards all rows, and p is corrected for "
        "the number of parts (Holm)."
    )
    head = ["by", "part", _scale_head(scale), "accuracy", "estimate", "rows", "p"]
    table = table_of(head, rows, numbers=(3, 4, 5, 6), pictures=(2,), caption="Accuracy of parts of the test rows")
    return section("slices", "Where it differs", paragraph(told) + table + paragraph(soft, soft=True))


_LEVEL = 0.05


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def prior_section(report: Plain) -> Html:
    """Accuracy and precision at the shares of labels where the classifier works, beside those of the test rows."""
    found = report.get("at_prior")
    if not found:
        return Html("")
    tested = {each["label"]: each for each in report["test"]["per_label"]}
    scale = _scale([found["accuracy"], *(each["precision"] for each in found["per_label"])])
    total = max(sum(each["support"] for each in tested.values()), 1)
    rows = [_row_at_prior("all texts", 1.0, 1.0, found["accuracy"], report["test"]["accuracy"], scale)]
    for each in found["per_label"]:
        name, here = each["label"], tested[each["label"]]
        shares = (here["support"] / total, found["shares"][name])
        rows.append(_row_at_prior(word(name), *shares, each["precision"], here["precision"], scale))
    told = (
        "The test rows have other shares of labels than the texts that come. There accuracy, and the precision of each "
        "label, are expected to be as follows, if texts of a label are as they are here."
    )
    head = ["", "share in test", "share there", _scale_head(scale), "there", "in the test"]
    caption = "Accuracy of all texts, and precision of each label"
    table = table_of(head, rows, numbers=(1, 2, 4, 5), pictures=(3,), caption=caption)
    return section("at-prior", "At the shares of labels that come", paragraph(told) + table)


def _row_at_prior(name: Any, tested: float, there: float, value: Plain, test: Plain, scale: Scale) -> list[object]:
    picture = whisker_cell(value, scale, kind="first")
    return [name, share(tested), share(there), picture, percent_of(value), percent_of(test)]


def robustness_section(report: Plain) -> Html:
    """How much accuracy typing errors, other case and look-alike letters cost."""
    damages = report.get("robustness") or []
    if not damages:
        return Html("")
    scale = _scale([each["accuracy"] for each in damages])
    rows = [
        [
            each["kind"],
            whisker_cell(each["accuracy"], scale, kind="first"),
            percent_of(each["accuracy"]),
            _points(each["drop"]),
            *([_points(each["tfidf"]["drop"])] if "tfidf" in each else []),
        ]
        for each in damages
    ]
    head = ["damage", _scale_head(scale), "accuracy", "drop in points"]
    if any("tfidf" in each for each in damages):
        head.append("drop of TF-IDF")
    table = table_of(head, rows, numbers=range(2, len(head)), pictures=(1,), caption="Accuracy on damaged test rows")
    return section("robustness", "What it does not stand", table)


def shift_section(report: Plain) -> Html:
    """Whether new rows differ from those that the model was tested on, how much, and what would have been missed."""
    shift = report.get("shift")
    if not shift:
        return Html("")
    scale = Scale(-0.02, max(0.3, *(each["distance"] for each in shift["features"])) * 1.05)
    rows = [
        [
            word(each["name"]),
            whisker_cell(
                {"value": each["distance"], "low": None, "high": None},
                scale,
                kind="second" if each["detected"] else "first",
            ),
            share(each["distance"]),
            Html(f"<strong>{_p(each['p_holm'])}</strong>") if each["detected"] else _p(each["p_holm"]),
        ]
        for each in shift["features"]
    ]
    soft = (
        "The share of rows that lie differently at the point where the two differ most; p is the chance of as much "
        "without a shift, corrected for the number of features (Holm). Where nothing is detected, the rows may differ "
        "all the same, by less than these rows can show or in ways that were not looked at."
    )
    table = table_of(
        ["feature", _scale_head(scale), "rows that moved", "p"],
        rows,
        numbers=(2, 3),
        pictures=(1,),
        caption=f"{number(shift['rows'])} new rows, one of each group, against {number(shift['reference_rows'])}",
    )
    return section("shift", "Are these rows like those tested on", _lead(shift) + table + paragraph(soft, soft=True))


def _lead(shift: Plain) -> str:
    kind = "note" if shift["detected"] else "lead"
    return f'<p class="{kind}">{escape(shift["text"])}</p>'


def _points(measure: Plain) -> str:
    """A difference in points with its interval."""
    if measure["low"] is None:
        return signed(measure["value"])
    return f"{signed(measure['value'])} ({signed(measure['low'])} to {signed(measure['high'])})"


def _scale(measures: list[Plain]) -> Scale:
    return Scale.around([measure[end] for measure in measures for end in KEYS if measure[end] is not None])


def _scale_head(scale: Scale) -> Html:
    low, high = share(max(0.0, scale.low), 0), share(min(1.0, scale.high), 0)
    return Html(f'<span class="scale"><span>{low}</span><span>{high}</span></span>')
