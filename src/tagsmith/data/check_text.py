"""Check -> lines of at most 80 columns: plain, and safe for a terminal whatever a text holds."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tagsmith.markup import UNSEEN

Facts = Mapping[str, Any]
WIDTH = 80
_BAR, _MOST_LABELS, _MOST_EXAMPLES, _LONGEST_NAME = 28, 20, 5, 24


def lines_of(check: Facts, *, bar: str = "█") -> Iterator[str]:
    """The lines of `Check.as_dict()`; those that are titles have no white space in front and end without a full stop.

    `bar` is what bars are made of: something else for an output that is not UTF-8.
    """
    yield f"{_seen(check.get('source', 'table'))}: {check['rows']:,} rows"
    for line in check["history"]:
        if line["rows_before"] != line["rows_after"] or line["step"] in ("read", "columns"):
            yield from _paragraph(f"{line['step']}: {line['reason']}")
    for note in check.get("notes", ()):
        yield from _paragraph(f"note: {note}")
    yield from _labels(check["labels"], rows=check["rows"], bar=bar)
    yield from _lengths(check)
    yield from _duplicates(check)
    yield from _leak(check)
    yield from _giveaways(check["giveaways"])
    yield from _scripts(check)
    yield from _cleaning(check)
    yield from _test(check["test"])
    yield from _findings(check["findings"])


def _labels(labels: Facts, *, rows: int, bar: str) -> Iterator[str]:
    if labels["kind"] == "none":
        return
    kind = ", several a row" if labels["kind"] == "multi" else ""
    yield from ("", f"Labels ({labels['number']:,}{kind})")
    shown = labels["counts"][:_MOST_LABELS]
    cells = [[each["label"], f"{each['rows']:,}", _percent(each["rows"] / rows)] for each in shown]
    for line, each in zip(_columns(cells, numbers=(1, 2)), shown, strict=True):
        yield f"{line}  {bar * max(1, round(_BAR * each['rows'] / shown[0]['rows']))}"
    if labels["number"] > len(shown):
        last = labels["smallest"]
        yield f"  and {labels['number'] - len(shown):,} more, the last '{_name(last['label'])}' with {last['rows']:,}"
    if labels["without"]:
        yield f"  {labels['without']:,} rows have no label"


def _lengths(check: Facts) -> Iterator[str]:
    yield from ("", "Lengths")
    rows = [["", "least", "median", "95 %", "most"]]
    for name, spread in check["lengths"].items():
        rows.append([name, *(f"{spread[key]:,.0f}" for key in ("least", "median", "p95", "most"))])
    tokens = check["tokens"]
    if tokens is not None:
        rows.append(["tokens", "", *(f"{tokens[key]:,.0f}" for key in ("median", "p95", "longest"))])
    yield from _columns(rows, numbers=(1, 2, 3, 4))
    if tokens is not None:
        yield from _paragraph(
            f"{check.get('backbone', 'the backbone')}: {tokens['per_word']:.2f} tokens a word, "
            f"{_percent(tokens['unknown'])} unknown; {_percent(tokens['cut'])} of the texts are longer than "
            f"{tokens['max_tokens']} tokens"
        )


def _duplicates(check: Facts) -> Iterator[str]:
    found, conflicts = check["duplicates"], check["conflicts"]
    yield from ("", "Duplicates and conflicts")
    yield from _paragraph(
        f"{found['exact_rows']:,} rows repeat an earlier one, {found['near_rows']:,} have a near twin (Jaccard from "
        f"{found['threshold']:g}); the largest group has {found['largest']:,} rows" + (":" if found["examples"] else "")
    )
    yield from _examples(found["examples"])
    yield from _paragraph(f"{conflicts['texts']:,} texts carry different labels in {conflicts['rows']:,} rows")
    for example in conflicts["examples"][:_MOST_EXAMPLES]:
        labels = ", ".join(f"{_name(name)} {rows}" for name, rows in example["labels"].items())
        yield from _examples([example["text"]])
        yield f"      {cut(labels, WIDTH - 6)}"


def _leak(check: Facts) -> Iterator[str]:
    leak = check["leak"]
    if leak is None:
        return
    yield from ("", f"Against {_seen(check.get('against', 'the other file'))}")
    yield from _paragraph(
        f"{leak['near']:,} of its {leak['rows']:,} rows have a near twin here (Jaccard from {leak['threshold']:g}), "
        f"{leak['exact']:,} of them word for word"
    )
    yield from _examples([example["text"] for example in leak["examples"]])


def _giveaways(giveaways: Facts | None) -> Iterator[str]:
    if giveaways is None:
        return
    guesses = [
        f"  the {guess['by']} of a text alone guesses {_percent(guess['accuracy'])}; always the commonest label "
        f"{_percent(guess['always'])}"
        for guess in giveaways["guesses"]
    ]
    if not (guesses or giveaways["words"] or giveaways["in_front"]):
        return
    yield from ("", "What gives labels away")
    for label, share in giveaways["in_front"].items():
        yield f"  {_percent(share)} of '{_name(label)}' begin with their label's name"
    if giveaways["words"]:
        rows = [["word", "where", "label", "rows", "right", "of label"]]
        rows += [
            [each["word"], each["where"], each["label"], f"{each['groups']:,}", _percent(each["precision"])]
            + [_percent(each["recall"])]
            for each in giveaways["words"][:10]
        ]
        yield from _columns(rows, numbers=(3, 4, 5))
    yield from guesses


def _scripts(check: Facts) -> Iterator[str]:
    yield from ("", "Scripts and languages")
    for name in ("scripts", "languages"):
        shown = [f"{each} {_percent(share)}" for each, share in check[name].items() if share >= 0.005]
        if shown:
            yield from _paragraph(f"{name}: {', '.join(shown)}")


def _cleaning(check: Facts) -> Iterator[str]:
    yield from ("", f"What cleaning would change, in {check['looked_at']:,} rows")
    counts = ", ".join(f"{step} {rows:,}" for step, rows in check["cleaning"].items())
    yield from _paragraph(f"{counts}; switched on with --set data.clean=STEP,STEP")


def _test(test: Facts) -> Iterator[str]:
    yield from ("", f"What {test['rows']:,} test rows can show")
    least, seen = test["minimum_difference"], test["detectable_difference"]
    yield (
        "  no difference between two models can be significant"
        if least is None
        else f"  no difference under {least:.2g} points can ever be significant"
    )
    if seen is not None:
        yield from _paragraph(
            f"a difference of {seen:.1f} points is seen with 80 % power, if two models disagree about "
            f"{test['discordance']:.1%} of the rows"
        )


def _findings(findings: Sequence[Facts]) -> Iterator[str]:
    yield from ("", "Findings, the worst first" if findings else "Findings: none")
    for number, finding in enumerate(findings, start=1):
        mark = {"error": "ERROR", "warning": "WARNING"}.get(finding["severity"], "note")
        yield from _paragraph(f"{number}. {mark}: {finding['text']}", indent=2, hanging=5)
        yield from _paragraph(finding["advice"], indent=5, hanging=5)


# --- lines ----------------------------------------------------------------------------------------------------------


def _columns(rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> Iterator[str]:
    cells = [[_name(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (
            " " * (widths[i] - _width(cell)) + cell if i in numbers else cell + " " * (widths[i] - _width(cell))
            for i, cell in enumerate(row)
        )
        yield "  " + "  ".join(padded).rstrip()


def _paragraph(text: str, *, indent: int = 2, hanging: int = 4) -> Iterator[str]:
    """Wrapped at 80 columns, wide signs counted twice."""
    line, room = " " * indent, indent
    # What belongs together stays on one line: a setting with its option, a number with its sign.
    for word in _seen(text).replace("--set ", "--set\0").replace(" %", "\0%").split():
        for piece in _pieces(word, WIDTH - hanging):
            if room + _width(piece) > WIDTH:
                yield line.rstrip()
                line, room = " " * hanging, hanging
            line, room = f"{line}{piece} ".replace("\0", " "), room + _width(piece) + 1
    yield line.rstrip()


def _pieces(word: str, most: int) -> Iterator[str]:
    while word:
        end = len(word)
        while _width(word[:end]) > most:
            end = max(1, end * 3 // 4)
        yield word[:end]
        word = word[end:]


def _examples(texts: Sequence[str]) -> Iterator[str]:
    for text in texts[:_MOST_EXAMPLES]:
        yield f"    | {cut(text, WIDTH - 6)}"


def _name(text: str) -> str:
    return cut(text, _LONGEST_NAME)


def cut(text: str, most: int) -> str:
    """The start of a text that takes at most so many columns, wide signs two."""
    seen, width = _seen(text), 0
    for i, sign in enumerate(seen):
        width += _width(sign)
        if width > most:
            return seen[: max(0, i - 2)].rstrip() + "…"
    return seen


def _seen(text: str) -> str:
    """On one line, and without characters that a terminal takes as orders."""
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(sign) else 1 + (unicodedata.east_asian_width(sign) in "WF") for sign in text)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
