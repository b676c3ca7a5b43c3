"""Report -> one self-contained HTML page: no script, no request, pictures inline.

Labels and texts come from strangers. Every cell is escaped unless it is `Html`, and never stands in a picture.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.data.check_page import findings_section, giveaways_section, lengths_section, shares_section
from tagsmith.markup import Html, escape, figure_of, number, part_of, quote, shorten, style, table_of, word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROW_NUMBERS = 12
_NUMBERED_LABELS = 25
_MOST_PAIRS = 20
# Colours that matplotlib writes and that are replaced by the page's own, so that pictures follow the theme.
_INK, _ACCENT, _SECOND, _LINE = "#010203", "#010204", "#010205", "#010206"
_THEME = {_INK: "currentColor", _ACCENT: "var(--accent)", _SECOND: "var(--second)", _LINE: "var(--line)"}


@dataclass(frozen=True)
class Mishap:
    """A test row that was answered wrongly: its number in the source, its text, both labels, the answer's chance."""

    row: int
    text: str
    truth: str
    predicted: str
    probability: float


def draw(report: Mapping[str, Any], run: Mapping[str, Any], mistakes: Sequence[Mishap]) -> str:
    """The page of a report.json, with the timing of a run.json and the surest mistakes with their texts."""
    template = Template(files("tagsmith.evaluation").joinpath("page.html").read_text(encoding="utf-8"))
    verdict = report["verdict"]
    tone = {"better": "better", "worse": "worse"}.get(verdict["value"], "")
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.get("notes", []))
    page = template.substitute(
        style=style(),
        tone=tone,
        verdict=escape(re.sub(r"p ([<=]) ", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", verdict["text"])),
        notes=notes,
        scores=_scores_section(report),
        learning=_depth_section(report["model"].get("depth"))
        + _learning_section(report.get("curves") or [])
        + _seeds_section(report.get("seeds") or [], report.get("spread") or {}),
        confusion=_confusion_section(report["test"]["confusion"]),
        labels=_sets_section(report) if _has_sets(report["test"]) else _labels_section(report["test"]["per_label"]),
        mistakes=_mistakes_section(mistakes, report["test"]),
        data=_data_section(report["data"]),
        model=_model_section(report, run),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


# --- sections


def _scores_section(report: Mapping[str, Any]) -> str:
    models, measures = _scored(report), _SET_MEASURES if _has_sets(report["test"]) else _MEASURES
    rows = [
        [name, number(s["n"]), *((_nats if key == "log_loss" else _percent)(s[key]) for key in measures.values())]
        for name, s in models.items()
    ]
    drawn = {name: scores for name, scores in models.items() if name not in _PARTS.values()}
    compared = report["verdict"].get("measure", "accuracy")
    title = next(title for title, key in measures.items() if key == compared)
    return (
        "<h2>How good it is</h2>"
        + figure_of(
            _bars(drawn, compared, title),
            f"{title[0].upper()}{title[1:]} on the test rows; whiskers are 95 % intervals.",
        )
        + table_of(["", "rows", *measures], rows, numbers=range(1, len(measures) + 2))
        + "".join(f'<p class="soft">{escape(remark)}</p>' for remark in _remarks(report["test"], report["verdict"]))
    )


_MEASURES = {"accuracy": "accuracy", "macro F1": "macro_f1", "log loss": "log_loss", "ECE": "ece"}
_SET_MEASURES = {
    "micro F1": "micro_f1",
    "macro F1": "macro_f1",
    "exact sets": "accuracy",
    "log loss": "log_loss",
    "ECE": "ece",
}
_PARTS = {
    "test_clean": "this model, rows without a twin in training",
    "test_leaked": "this model, rows with a twin in training",
}


def _has_sets(test: Mapping[str, Any]) -> bool:
    return test.get("kind") == "multi_label"


def _scored(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    titles = {"tfidf": "TF-IDF", "majority": "majority guess"}
    models = {"this model": report["test"]}
    models |= {titles.get(name, name): scores for name, scores in sorted(report["baselines"].items(), reverse=True)}
    parts = {"before_tuning": "before tuning"} | _PARTS
    return models | {title: report[key] for key, title in parts.items() if report.get(key)}


def _remarks(test: Mapping[str, Any], verdict: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"A score on {number(test['n'])} test rows estimates new rows from the same source, not live traffic, which "
        "drifts. Brackets hold 95 % intervals; near duplicates count as one observation where they agree."
    )
    if _has_sets(test):
        yield (
            "A text may have several labels, or none: F1 counts labels (micro over all decisions, macro as the mean of "
            "the labels), exact sets are rows whose labels are all right and complete. Of all decisions "
            f"{_percent(test['hamming_loss'])} are wrong (Hamming loss). TF-IDF's thresholds are fitted as the "
            "model's, on the same rows."
        )
    if test.get("macro_f1_frequent") not in (None, test["macro_f1"]):
        yield f"Macro F1 of the labels with 10 or more test rows: {_percent(test['macro_f1_frequent'])}."
    if test.get("ece_calibrated"):
        yield f"By chance alone a perfectly calibrated model would show an ECE of {_percent(test['ece_calibrated'])}."
    if verdict.get("minimum_difference") is not None:
        yield f"On these rows no difference under {verdict['minimum_difference']:.2g} points can be significant."
    if verdict.get("detectable_difference") is not None:
        yield f"A difference of {verdict['detectable_difference']:.1f} points would be seen with 80 % power."


def _learning_section(curves: Sequence[Mapping[str, Any]]) -> str:
    if not curves:
        return ""
    pictures = [
        figure_of(_curve(curves, measure), f"{measure.capitalize()} over steps.") for measure in ("loss", "accuracy")
    ]
    return f'<h2>How it learned</h2><div class="pictures">{"".join(pictures)}</div>'


def _seeds_section(seeds: Sequence[Mapping[str, Any]], spread: Mapping[str, Any]) -> str:
    """What each seed's tuning scores, with mean and spread; nothing where there was but one."""
    if not seeds:
        return ""
    named = _SET_MEASURES if "micro_f1" in seeds[0]["test"] else _MEASURES
    shares = {title: key for title, key in named.items() if key in seeds[0]["test"]}
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
    table = table_of(["seed", "best step", *shares], rows, numbers=range(1, len(shares) + 2))
    return f"<h2>How much is luck</h2><p>{told}</p>{table}"


def _point(measure: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if measure == "log_loss" else f"{100 * value:.1f} %"


def _depth_section(depth: Mapping[str, Any] | None) -> str:
    """What probes said of each depth and short tunings of three; nothing where the depth was given."""
    if depth is None:
        return ""
    told = (
        f"{depth['layers']} blocks were chosen on {depth['rows']['validation']} validation rows, before the test rows "
        "were opened. "
    ) + (
        f"The loss there is {depth['cost']:.3f} nats ({depth['low']:.3f} to {depth['high']:.3f}) above the best depth "
        "tried, which is deeper."
        if depth["cost"]
        else "None of the depths tried has a lower loss."
    )
    picture = figure_of(
        _depth_picture(depth), "Validation loss by depth: probes of the frozen backbone, short tunings."
    )
    return f'<h2>How deep</h2><p>{escape(told)}</p><div class="pictures">{picture}</div>'


def _confusion_section(confusion: Mapping[str, Any]) -> str:
    if confusion.get("kind") == "per_label":
        return ""  # the table label by label says it
    names, counts = confusion["labels"], np.asarray(confusion["counts"], dtype=np.int64)
    if len(names) <= _NUMBERED_LABELS:
        picture = _confusion_table(names, counts)
    else:
        picture = figure_of(
            _confusion_picture(counts), "Labels are numbered from 0 in the order of the table label by label."
        )
    return "<h2>What it confuses</h2>" + picture + _pairs(names, counts)


def _pairs(names: Sequence[str], counts: np.ndarray) -> str:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [(int(i // len(names)), int(i % len(names))) for i in order if wrong.flat[i]]
    if not pairs:
        return "<p>No test row was answered wrongly.</p>"
    rows = [
        [word(names[t]), word(names[g]), number(wrong[t, g]), part_of(wrong[t, g], counts[t].sum())] for t, g in pairs
    ]
    return "<h3>Most confused pairs</h3>" + table_of(["truth", "answer", "rows", "of the truth"], rows, numbers=(2, 3))


def _labels_section(per_label: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [word(s["label"]), number(s["support"]), *(_percent(s[key]) for key in ("precision", "recall", "f1"))]
        for s in per_label
    ]
    head = ["label", "rows", "precision", "recall", "F1"]
    return "<h2>Label by label</h2>" + table_of(head, rows, numbers=range(1, 5)) + _few(per_label)


def _few(per_label: Sequence[Mapping[str, Any]]) -> str:
    if all(s["support"] >= 10 for s in per_label):
        return ""
    return '<p class="soft">Below 10 test rows no interval is given.</p>'


def _sets_section(report: Mapping[str, Any]) -> str:
    """What is found of each label, and from which probability on it is answered."""
    test, fitted = report["test"], (report.get("calibration") or {}).get("thresholds") or {}
    rows = []
    for s, counts in zip(test["per_label"], test["confusion"]["counts"], strict=True):
        (_, false), (missed, found) = counts
        tallies = map(number, (s["support"], found, missed, false))
        bar = _bar(s["f1"]["value"] or 0.0)
        f1, precision, recall = (_percent(s[key]) for key in ("f1", "precision", "recall"))
        rows.append([word(s["label"]), bar, f1, f"{s['threshold']:.3f}", *tallies, precision, recall])
    head = ["label", "", "F1", "threshold", "rows", "found", "missed", "false", "precision", "recall"]
    shared = fitted.get("shared") or []
    told = (
        f'<p class="soft">A label is answered from its threshold on, fitted on {number(fitted["rows"])} held-out rows'
        f"{f'; {len(shared)} labels share one' if shared else ''}.</p>"
        if fitted
        else ""
    )
    return "<h2>Label by label</h2>" + told + table_of(head, rows, numbers=range(2, 10)) + _few(test["per_label"])


def _bar(share: float) -> Html:
    return Html(
        '<span aria-hidden="true" style="display: block; width: 6rem; margin-top: .4rem; background: var(--line)">'
        f'<span style="display: block; height: .6rem; width: {100 * share:.1f}%; background: var(--accent)"></span>'
        "</span>"
    )


def _mistakes_section(mistakes: Sequence[Mishap], test: Mapping[str, Any]) -> str:
    wrong = test["n"] - round(test["n"] * test["accuracy"]["value"])
    if not mistakes:
        return ""
    rows = [
        [number(m.row), word(m.truth), word(m.predicted), f"{100 * m.probability:.1f} %", quote(m.text)]
        for m in mistakes
    ]
    table = table_of(["row", "truth", "answer", "surety", "text"], rows, numbers=(0, 3), texts=(4,))
    return (
        f"<h2>Its surest mistakes</h2><p>{len(mistakes)} of {number(wrong)} wrong answers, the surest first: "
        f"where the label may be wrong, or the model is.</p>{table}"
    )


def _data_section(data: Mapping[str, Any]) -> str:
    facts = [f"{number(data['rows'])} rows were read."]
    splits = ", ".join(f"{name} {number(rows)}" for name, rows in (data.get("splits") or {}).items())
    facts.append(f"Parts: {splits}.")
    leak, cut = data.get("leak") or {}, data.get("truncated") or {}
    if leak:
        facts.append(
            f"Test rows that stand word for word in training: {number(leak.get('exact', 0))}; with a near twin there "
            f"(Jaccard from {leak.get('threshold')}): {number(leak.get('near', 0))}."
        )
    if cut:
        facts.append(
            f"Texts cut at the token limit: {number(cut.get('rows', 0))} ({100 * (cut.get('share') or 0):.1f} %)."
        )
    if padding := data.get("padding"):
        facts.append(f"Of what tuning computed, {100 * padding['share']:.1f} % was padding.")
    rows = [
        [h["step"], number(h["rows_before"]), number(h["rows_after"]), h["reason"], _row_numbers(h)]
        for h in data.get("history", [])
    ]
    history = table_of(["step", "before", "after", "reason", "rows concerned"], rows, numbers=(1, 2), texts=(3, 4))
    lines = "".join(f"<p>{escape(fact)}</p>" for fact in facts)
    return f"<h2>What happened to the data</h2>{lines}{history}{_check_section(data)}"


def _check_section(data: Mapping[str, Any]) -> str:
    """What was found in the rows before training, as `tagsmith check` shows it."""
    check = data.get("check")
    if not check:
        return ""
    found = {**check, "tokens": data.get("tokens")}
    return (
        findings_section(check["findings"], title="What was found in the data")
        + lengths_section(found)
        + giveaways_section(check["giveaways"])
        + shares_section(found)
    )


def _model_section(report: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    parts = [
        ("The model", report.get("model") or {}),
        ("Calibration", report.get("calibration") or {}),
        ("Time in seconds", run.get("timing") or {}),
        ("Forecast and truth", _forecast_facts(report, run)),
        ("Environment", (run.get("environment") or {}) | ({"date": run["date"]} if run.get("date") else {})),
    ]
    tables = "".join(f"<h3>{title}</h3>{_facts(facts)}" for title, facts in parts if facts)
    settings = f"<details><summary>All settings</summary>{_facts(report.get('settings') or {})}</details>"
    command = (
        f"<h3>To repeat it</h3><pre>{escape(report.get('reproduce') or '')}</pre>" if report.get("reproduce") else ""
    )
    made = f'<p class="soft">Made by Tagsmith {escape(report.get("tagsmith", ""))}.</p>'
    return f"<h2>What was run</h2>{command}{tables}{settings}{made}"


def _forecast_facts(report: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    """What was forecast before the first step, beside what came; nothing where nobody forecast."""
    forecast, truth, plan = run.get("forecast"), run.get("truth"), report.get("forecast")
    if not (forecast and truth and plan):
        return {}
    total, least = forecast["seconds"]["total"], forecast["seconds"]["least"]
    sooner = f" ({least:.1f} if tuning stops as early as it can)" if least < total else ""
    steps = f"with {number(report['model']['steps'])} of {number(plan['steps'])} steps"
    memory, came = (each["memory_bytes"] / 2**30 for each in (forecast, truth))
    bundle, written = plan["disk_bytes"]["bundle"] / 2**20, truth["bundle_bytes"] / 2**20
    return {
        "seconds from tuning to the bundle": f"forecast {total:.1f}{sooner}, came {truth['seconds']:.1f} {steps}",
        "most memory": f"forecast {memory:.2f} GiB, came {came:.2f} GiB",
        "bundle": f"forecast {bundle:.0f} MiB, came {written:.0f} MiB",
        "states": plan["states"]["text"],
    }


# --- words and numbers


def _row_numbers(change: Mapping[str, Any]) -> str:
    rows = change.get("rows") or []
    shown, all_rows = ", ".join(str(row) for row in rows[:_MOST_ROW_NUMBERS]), change.get("concerned") or len(rows)
    return shown if all_rows <= _MOST_ROW_NUMBERS else f"{shown} … ({all_rows:,} in all)"


def _percent(measure: Mapping[str, Any]) -> str:
    return _measured(measure, scale=100, digits=1, unit=" %")


def _nats(measure: Mapping[str, Any]) -> str:
    return _measured(measure, scale=1, digits=3, unit="")


def _measured(measure: Mapping[str, Any], *, scale: float, digits: int, unit: str) -> str:
    if measure["value"] is None:
        return ""
    value, low, high = (None if measure[key] is None else f"{scale * measure[key]:.{digits}f}" for key in _KEYS)
    return f"{value}{unit}" if low is None else f"{value}{unit} ({low} to {high})"


_KEYS = ("value", "low", "high")


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [[word(name), value if isinstance(value, Html) else _long(value)] for name, value in _flat(facts)]
    return table_of([], rows, texts=(1,))


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _long(value: object) -> Html:
    shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else value
    return Html(f"<bdi>{escape('none' if shown is None else shorten(str(shown), 400))}</bdi>")


def _confusion_table(names: Sequence[str], counts: np.ndarray) -> str:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    head = "".join(f'<th scope="col">{word(name)}</th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(_confusion_cell(counts[i, j], shares[i, j], right=i == j) for j in range(len(names)))
        rows.append(f'<tr><th scope="row">{word(name)}</th>{cells}</tr>')
    return (
        '<p class="soft">Rows are the truth, columns the answers; the deeper, the larger the share of the row.</p>'
        '<div class="box" tabindex="0"><table class="confusion">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confusion_cell(count: int, share: float, *, right: bool) -> str:
    colour = "--accent" if right else "--second"
    depth = round(45 * share**0.5)
    return f'<td style="background: color-mix(in srgb, var({colour}) {depth}%, transparent)">{count:,}</td>'


# --- pictures


def _bars(models: Mapping[str, Mapping[str, Any]], measure: str, title: str) -> str:
    with _picture(f"{measure}-bars", height=0.5 + 0.42 * len(models)) as (axes, result):
        for i, scores in enumerate(models.values()):
            value, low, high = (100 * scores[measure][key] for key in _KEYS)
            axes.barh(i, value, color=_ACCENT if i == 0 else _LINE, height=0.62)
            axes.errorbar(value, i, xerr=[[value - low], [high - value]], color=_INK, capsize=3, linewidth=1.2)
            axes.text(103, i, f"{value:.1f} %", va="center", color=_INK, fontweight="bold")
        axes.set_yticks(range(len(models)), list(models))
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{title}, %")
    return result[0]


def _curve(curves: Sequence[Mapping[str, Any]], measure: str) -> str:
    with _picture(f"{measure}-curve", height=2.6) as (axes, result):
        for part, colour, dashes in (("train", _SECOND, "--"), ("validation", _ACCENT, "-")):
            points = [(c.get("step", i), c.get(f"{part}_{measure}")) for i, c in enumerate(curves)]
            points = [point for point in points if point[1] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), dashes, color=colour, marker="o", markersize=3, label=part)
        axes.grid(color=_LINE, linewidth=0.6)
        axes.set_xlabel("step")
        axes.set_ylabel(measure)
        if axes.lines:
            axes.legend(frameon=False, labelcolor=_INK)
    return result[0]


def _depth_picture(depth: Mapping[str, Any]) -> str:
    with _picture("depth", height=2.6) as (axes, result):
        for dashes, pooling in zip(("-", ":"), dict.fromkeys(p["pooling"] for p in depth["probes"]), strict=False):
            points = [(probe["layers"], probe["loss"]) for probe in depth["probes"] if probe["pooling"] == pooling]
            axes.plot(
                *zip(*points, strict=True), dashes, color=_ACCENT, marker="o", markersize=3, label=f"probe, {pooling}"
            )
        points = [(tried["layers"], tried["loss"]) for tried in depth["tunings"]]
        axes.plot(*zip(*points, strict=True), "--", color=_SECOND, marker="s", markersize=4, label="short tuning")
        axes.axvline(depth["layers"], color=_LINE, linewidth=1)
        axes.grid(color=_LINE, linewidth=0.6)
        axes.set_xlabel("blocks kept")
        axes.set_ylabel("validation loss")
        axes.legend(frameon=False, labelcolor=_INK)
    return result[0]


def _confusion_picture(counts: np.ndarray) -> str:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = np.zeros((*counts.shape, 4))
    colours[:] = (0.85, 0.42, 0.08, 0)
    colours[np.eye(len(counts), dtype=bool)] = (0.25, 0.52, 0.95, 0)
    colours[..., 3] = np.sqrt(shares)
    with _picture("confusion", height=4.6) as (axes, result):
        axes.imshow(colours, interpolation="none", aspect="equal")
        axes.set_xlabel("answer, number of the label")
        axes.set_ylabel("truth, number of the label")
    return result[0]


@contextmanager
def _picture(name: str, *, height: float) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on, 4.8 inches wide to stay legible on a phone, and a list that holds the SVG after the block."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"tagsmith-{name}",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
    }
    result: list[str] = []
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _tint(axes)
        yield axes, result
        result.append(_svg(figure, name))


def _tint(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    for spine in axes.spines.values():
        spine.set_color(_LINE)
    axes.tick_params(colors=_INK, which="both")
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _svg(figure: Figure, name: str) -> str:
    """The figure's SVG element, in the page's colours and fonts, with ids of its own and without dates."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, replacement in _THEME.items():
        svg = svg.replace(colour, replacement)
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)
