"""Check -> one self-contained HTML page, without script or request, which reads from top to bottom without pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from tagsmith.data.check_text import cut
from tagsmith.markup import Html, escape, figure_of, number, quote, style, table_of, word

Facts = Mapping[str, Any]
_MOST_BARS, _BAR_PX, _NAMES_PX, _WIDTH_PX = 30, 22, 185, 480


def draw_check(check: Facts) -> str:
    """The page of `Check.as_dict()`."""
    template = Template(files("tagsmith.data").joinpath("check.html").read_text(encoding="utf-8"))
    page = template.substitute(
        style=style(),
        title=f"{word(check.get('source', 'A table'))}: {number(check['rows'])} rows",
        findings=findings_section(check["findings"]),
        labels=_labels_section(check["labels"], rows=check["rows"]),
        lengths=lengths_section(check),
        duplicates=_duplicates_section(check),
        leak=_leak_section(check),
        giveaways=giveaways_section(check["giveaways"]),
        languages=shares_section(check),
        cleaning=_cleaning_section(check),
        test=_test_section(check["test"]),
        history=_history_section(check),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def findings_section(findings: Sequence[Facts], *, title: str = "Findings, the worst first") -> str:
    """The findings as a list, each with what to do about it."""
    items = "".join(
        f'<li class="is-{escape(each["severity"])}"><strong>{escape(each["severity"])}</strong>: {escape(each["text"])}'
        f'<br><span class="soft">{escape(each["advice"])}</span></li>'
        for each in findings
    )
    return f"<h2>{title}</h2>" + (
        f'<ol class="findings">{items}</ol>' if items else "<p>Nothing was found that could mislead.</p>"
    )


def giveaways_section(giveaways: Facts | None) -> str:
    """Words, lengths and names that give labels away; empty where nothing does or nothing was looked at."""
    if giveaways is None or not (giveaways["words"] or giveaways["guesses"] or giveaways["in_front"]):
        return ""
    rows = [
        [word(each["word"]), each["where"], word(each["label"]), number(each["groups"])]
        + [_percent(each["precision"]), _percent(each["low"]), _percent(each["recall"])]
        for each in giveaways["words"]
    ]
    head = ["word", "where", "label", "rows", "with the label", "at least", "of the label's rows"]
    words = table_of(head, rows, numbers=range(3, 7)) if rows else "<p>No word decides a label.</p>"
    lines = [
        f"<p>{_percent(share)} of the texts of {word(label)} begin with the name of the label.</p>"
        for label, share in giveaways["in_front"].items()
    ]
    lines += [
        f"<p>The {escape(each['by'])} of a text alone guesses {_percent(each['accuracy'])} of the labels; always the "
        f"commonest label is right for {_percent(each['always'])}.</p>"
        for each in giveaways["guesses"]
    ]
    soft = '<p class="soft">Near twins count once; "at least" is the lower end of a 99 % interval.</p>' if rows else ""
    return f"<h2>What gives labels away</h2>{words}{soft}{''.join(lines)}"


def _labels_section(labels: Facts, *, rows: int) -> str:
    if labels["kind"] == "none":
        return ""
    cells = [[word(each["label"]), number(each["rows"]), _percent(each["rows"] / rows)] for each in labels["counts"]]
    several = " A row may have several." if labels["kind"] == "multi" else ""
    none = f" {number(labels['without'])} rows have none." if labels["without"] else ""
    shown = labels["counts"][:_MOST_BARS]
    caption = f"Rows of {'the commonest' if labels['number'] > len(shown) else 'the'} labels."
    return (
        f"<h2>Labels</h2><p>{number(labels['number'])} labels.{several}{none}</p>{figure_of(_bars(shown), caption)}"
        f"<details><summary>As a table</summary>{table_of(['label', 'rows', 'share'], cells, numbers=(1, 2))}</details>"
    )


def _bars(counts: Sequence[Facts]) -> str:
    """Bars with numbers; names stand beside them as text, which a reader of screens gets from the table below."""
    most = max(each["rows"] for each in counts)
    height, left, room = _BAR_PX * len(counts), _NAMES_PX, _WIDTH_PX - _NAMES_PX - 60
    parts = []
    for i, each in enumerate(counts):
        y, length = i * _BAR_PX, max(1.0, room * each["rows"] / most)
        name = escape(cut(each["label"], 24))
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{name}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="{_BAR_PX - 6}"></rect>'
            f'<text x="{left + length + 6:.1f}" y="{y + 15}">{number(each["rows"])}</text>'
        )
    return (
        f'<svg class="bars" role="img" aria-label="Rows of each label, as in the table below" '
        f'viewBox="0 0 {_WIDTH_PX} {height}">{"".join(parts)}</svg>'
    )


def lengths_section(check: Facts) -> str:
    """Characters, words and tokens, and how well the tokenizer knows the texts."""
    rows = [[name, *(number(spread[key]) for key in _SPREAD)] for name, spread in check["lengths"].items()]
    tokens = check["tokens"]
    if tokens is not None:
        rows.append(["tokens", "", *(number(tokens[key]) for key in ("median", "p95", "longest"))])
    return (
        "<h2>Lengths</h2>" + table_of(["", *_HEAD], rows, numbers=range(1, 5)) + _tokens(tokens, check.get("backbone"))
    )


_SPREAD, _HEAD = ("least", "median", "p95", "most"), ("least", "median", "95 %", "most")


def _tokens(tokens: Facts | None, backbone: str | None) -> str:
    if tokens is None:
        return ""
    return (
        f"<p>{word(backbone or 'The backbone')}: {tokens['per_word']:.2f} tokens a word, {_percent(tokens['unknown'])} "
        f"of them unknown; {_percent(tokens['cut'])} of the texts are longer than {number(tokens['max_tokens'])} "
        "tokens.</p>"
    )


def _duplicates_section(check: Facts) -> str:
    found, conflicts = check["duplicates"], check["conflicts"]
    rows = [
        [quote(each["text"]), Html(", ".join(f"{word(name)} {number(n)}" for name, n in each["labels"].items()))]
        + [", ".join(map(str, each["rows"]))]
        for each in conflicts["examples"]
    ]
    return (
        f"<h2>Duplicates and conflicts</h2><p>{number(found['exact_rows'])} rows repeat an earlier one, "
        f"{number(found['near_rows'])} have a near twin (Jaccard from {found['threshold']:g}). The largest group has "
        f"{number(found['largest'])} rows.</p>"
        + (table_of(["texts of the largest group"], [[quote(text)] for text in found["examples"]], texts=(0,)))
        * bool(found["examples"])
        + f"<p>{number(conflicts['texts'])} texts carry different labels, in {number(conflicts['rows'])} rows.</p>"
        + table_of(["text", "labels", "rows"], rows, texts=(0,)) * bool(rows)
    )


def _leak_section(check: Facts) -> str:
    leak = check["leak"]
    if leak is None:
        return ""
    rows = [
        [number(each["row"]), "yes" if each["exact"] else "nearly", quote(each["text"])] for each in leak["examples"]
    ]
    return (
        f"<h2>Against {word(check.get('against', 'the other file'))}</h2><p>{number(leak['near'])} of its "
        f"{number(leak['rows'])} rows have a near twin in the source (Jaccard from {leak['threshold']:g}), "
        f"{number(leak['exact'])} of them word for word.</p>"
        + table_of(["row", "the same", "text"], rows, numbers=(0,), texts=(2,))
        * bool(rows)
    )


def shares_section(check: Facts) -> str:
    """Scripts by letters, and languages by rows, in two sentences."""
    lines = []
    for key, name in (("scripts", "Scripts, by letters"), ("languages", "Languages, by rows")):
        shown = ", ".join(f"{escape(each)} {_percent(share)}" for each, share in check[key].items() if share >= 0.005)
        lines.append(f"<p>{name}: {shown}.</p>" if shown else "")
    return f"<h2>Scripts and languages</h2>{''.join(lines)}"


def _cleaning_section(check: Facts) -> str:
    rows = [[step, number(count)] for step, count in check["cleaning"].items()]
    return (
        f"<h2>What cleaning would change</h2><p>In {number(check['looked_at'])} rows, each step alone; switched on "
        f"with <code>--set data.clean=STEP,STEP</code>.</p>{table_of(['step', 'rows'], rows, numbers=(1,))}"
    )


def _test_section(test: Facts) -> str:
    least, seen = test["minimum_difference"], test["detectable_difference"]
    limit = "no difference" if least is None else f"no difference under {least:.2g} points"
    power = (
        f" A difference of {seen:.1f} points is seen with 80 % power, if two models disagree about "
        f"{_percent(test['discordance'])} of the rows."
        if seen is not None
        else ""
    )
    return (
        f"<h2>What the test rows can show</h2><p>On {number(test['rows'])} test rows {limit} between two models can be "
        f"significant.{power}</p>"
    )


def _history_section(check: Facts) -> str:
    rows = [
        [line["step"], number(line["rows_before"]), number(line["rows_after"]), line["reason"]]
        for line in check["history"]
    ]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in check.get("notes", ()))
    history = table_of(["step", "before", "after", "what was done"], rows, numbers=(1, 2), texts=(3,))
    return f"<h2>How it was read</h2>{notes}{history}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
