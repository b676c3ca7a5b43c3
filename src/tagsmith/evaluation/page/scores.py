"""The verdict, and the scores of model and rivals on the same rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tagsmith.evaluation.page.charts import Scale, whisker_cell
from tagsmith.evaluation.page.wording import (
    FURTHER,
    KEYS,
    has_sets,
    measured,
    measures_of,
    paragraph,
    percent_of,
    section,
    share,
    signed,
)
from tagsmith.markup import Html, escape, number, table_of, word

Report = Mapping[str, Any]

_RIVALS = {"tfidf": "TF-IDF", "probe": "frozen probe", "majority": "majority guess"}
_PARTS = {
    "before_tuning": "before tuning",
    "test_clean": "rows without a twin in training",
    "test_leaked": "rows with a twin in training",
}


def verdict_of(report: Report, run: Report) -> Html:
    """The sentence that everybody reads, with what it costs where run.json knows, and the figures behind it."""
    verdict = report["verdict"]
    tone = {"better": " better", "worse": " worse"}.get(verdict["value"], "")
    told = str(run.get("verdict") or verdict["text"])
    text = escape(re.sub(r"p ([<=]) ", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", told))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.get("notes") or [])
    tiles = "".join(f"<li><strong>{escape(big)}</strong>{escape(small)}</li>" for big, small in _tiles(report))
    return Html(f'<p class="verdict{tone}">{text}</p><ul class="tiles">{tiles}</ul>{notes}')


def _tiles(report: Report) -> Iterator[tuple[str, str]]:
    test, verdict = report["test"], report["verdict"]
    measures = measures_of(test, verdict)
    title, key = next((t, k) for t, k in measures.items() if k == verdict.get("measure", "accuracy"))
    value, low, high = (test[key][end] for end in KEYS)
    yield share(value), f"{title}" + (f", {100 * low:.1f} to {100 * high:.1f}" if low is not None else "")
    difference = verdict.get("difference")
    if difference and difference["value"] is not None:
        ends = f", {signed(difference['low'])} to {signed(difference['high'])}" if difference["low"] is not None else ""
        yield f"{signed(difference['value'])} points", f"against TF-IDF{ends}"
    frequent = f", {number(test['groups'])} groups of near twins" if test.get("groups", test["n"]) < test["n"] else ""
    yield number(test["n"]), f"test rows{frequent}"
    yield number(len(report["data"].get("labels") or test["per_label"])), "labels"


def scores_section(report: Report, run: Report) -> Html:
    """Model and rivals as dots with whiskers, then all measures as numbers."""
    models, measures = _scored(report), measures_of(report["test"], report["verdict"])
    compared = report["verdict"].get("measure", "accuracy")
    title = next(title for title, key in measures.items() if key == compared)
    told = "".join(paragraph(remark, soft=True) for remark in _remarks(report["test"], report["verdict"]))
    further = _comparisons(report) + _further(models) + _looks(run.get("looks"))
    body = _whiskers(models, compared, title) + _numbers(models, measures) + further + told
    return section("scores", "How good it is", body)


def _scored(report: Report) -> dict[str, Mapping[str, Any]]:
    known = [name for name in _RIVALS if name in report["baselines"]]
    names = [*known, *(name for name in report["baselines"] if name not in _RIVALS)]
    models = {"this model": report["test"]} | {_RIVALS.get(name, name): report["baselines"][name] for name in names}
    return models | {title: report[key] for key, title in _PARTS.items() if report.get(key)}


def _whiskers(models: Mapping[str, Mapping[str, Any]], key: str, title: str) -> str:
    """The scale fits the model and its best rivals; who is far off is an arrow at the edge."""
    near = [scores[key] for name, scores in models.items() if name in _ON_SCALE]
    ends = [measure[end] for measure in near for end in KEYS if measure[end] is not None]
    scale = Scale.around(ends)
    rows = [
        [
            word(name),
            whisker_cell(scores[key], scale, kind="first" if i == 0 else "third"),
            percent_of(scores[key]),
        ]
        for i, (name, scores) in enumerate(models.items())
    ]
    head = ["", Html(f'<span class="scale"><span>{share(max(0.0, scale.low), 0)}</span>'
                     f"<span>{share(min(1.0, scale.high), 0)}</span></span>"), f"{title} (95 % interval)"]  # fmt: skip
    caption = (
        f"{title[0].upper()}{title[1:]} on the test rows: a dot with its 95 % interval; an arrow lies off the scale."
    )
    return table_of(head, rows, caption=caption, pictures=(1,), numbers=(2,))


_ON_SCALE = ("this model", "TF-IDF", "frozen probe")


def _numbers(models: Mapping[str, Mapping[str, Any]], measures: Mapping[str, str]) -> str:
    rows = [
        [word(name), number(scores["n"]), *(measured(key, scores[key]) for key in measures.values())]
        for name, scores in models.items()
    ]
    return table_of(
        ["", "rows", *measures], rows, numbers=range(1, len(measures) + 2), caption="The main measures of each"
    )


def _further(models: Mapping[str, Mapping[str, Any]]) -> str:
    shown = {title: key for title, key in FURTHER.items() if key in models["this model"]}
    shown = {title: key for title, key in shown.items() if title not in measures_of(models["this model"])}
    if not shown:
        return ""
    chosen = {name: scores for name, scores in models.items() if name not in _PARTS.values()}
    rows = [[title, *(measured(key, scores.get(key)) for scores in chosen.values())] for title, key in shown.items()]
    table = table_of(["", *map(word, chosen)], rows, numbers=range(1, len(chosen) + 1), caption="Further measures")
    return f"<details><summary>Further measures</summary>{table}</details>"


def _comparisons(report: Report) -> str:
    """Every comparison with its verdict, where there was more than one."""
    verdicts = report.get("comparisons") or []
    if len(verdicts) < 2:
        return ""
    rows = [[word(f"{each['model']} against {each['baseline']}"), each["text"]] for each in verdicts]
    return table_of(["compared", "verdict"], rows, texts=(1,), caption="All comparisons, corrected for their number")


def _looks(looks: Mapping[str, Any] | None) -> str:
    """How often these test rows were opened, where that was more than once."""
    return paragraph(looks["note"]) if looks and looks.get("note") else ""


def _remarks(test: Mapping[str, Any], verdict: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"A score on {number(test['n'])} test rows estimates new rows from the same source, not live traffic, which "
        "drifts. Brackets hold 95 % intervals; near duplicates count as one observation where they agree."
    )
    if has_sets(test):
        yield (
            "A text may have several labels, or none: F1 counts labels (micro over all decisions, macro as the mean of "
            "the labels), exact sets are rows whose labels are all right and complete. Of all decisions "
            f"{percent_of(test['hamming_loss'])} are wrong (Hamming loss). TF-IDF's thresholds are fitted as the "
            "model's, on the same rows."
        )
    if test.get("macro_f1_frequent") not in (None, test["macro_f1"]):
        yield f"Macro F1 of the labels with 10 or more test rows: {percent_of(test['macro_f1_frequent'])}."
    if verdict.get("minimum_difference") is not None:
        yield f"On these rows no difference under {verdict['minimum_difference']:.2g} points can be significant."
    if verdict.get("detectable_difference") is not None:
        yield f"A difference of {verdict['detectable_difference']:.1f} points would be seen with 80 % power."


def seeds_section(report: Report) -> Html:
    """What each seed's tuning scores, with mean and spread; nothing where there was but one."""
    seeds: Sequence[Mapping[str, Any]] = report.get("seeds") or []
    spread: Mapping[str, Any] = report.get("spread") or {}
    if not seeds:
        return Html("")
    shares = {title: key for title, key in measures_of(report["test"]).items() if key in seeds[0]["test"]}
    rows: list[list[object]] = [
        [each["seed"], number(each["best_step"]), *(_point(name, each["test"][name]) for name in shares.values())]
        for each in seeds
    ]
    for title, key in (("mean", "mean"), ("standard deviation", "standard_deviation")):
        rows.append([title, "", *(_point(name, spread[name][key]) for name in shares.values())])
    told = (
        "Each seed draws its own head and order of rows, on the same parts; what that moves is luck. The first one is "
        "this model: it was set beforehand, and no test row had a say."
    )
    table = table_of(
        ["seed", "best step", *shares], rows, numbers=range(1, len(shares) + 2), caption="The scores of each seed"
    )
    return section("luck", "How much is luck", paragraph(told) + table)


def _point(measure: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if measure == "log_loss" else share(value)
