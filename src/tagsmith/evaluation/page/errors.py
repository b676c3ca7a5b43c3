"""Errors to act on: the surest mistakes with what speaks for them, and labels that may be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tagsmith.evaluation.page.texts import Mishap, NearestRow
from tagsmith.evaluation.page.wording import paragraph, section, share
from tagsmith.markup import Html, escape, number, quote, shorten, table_of, word

_MOST_LETTERS = 600
_STRENGTHS = 4


def mistakes_section(mistakes: Sequence[Mishap], test: Mapping[str, Any]) -> Html:
    """The surest wrong answers, each with the words that mattered and the training rows nearest to it."""
    if not mistakes:
        return Html("")
    wrong = test["n"] - round(test["n"] * test["accuracy"]["value"])
    told = (
        f"{len(mistakes)} of {number(wrong)} wrong answers, the surest first: where the label may be wrong, or the "
        "model is."
    )
    legend = ""
    if any(mistake.words for mistake in mistakes):
        legend = (
            '<p class="soft">Words that mattered, found by leaving each out: '
            '<mark class="for w3">for the answer</mark> <mark class="against w3">against it</mark>; '
            "the deeper, the more.</p>"
        )
    cards = "".join(f"<li>{_card(mistake)}</li>" for mistake in mistakes)
    return section("mistakes", "Its surest mistakes", paragraph(told) + legend + f'<ol class="cards">{cards}</ol>')


def _card(mistake: Mishap) -> str:
    head = (
        f'<p class="head"><span>truth {word(mistake.truth)}</span> <span>answer {word(mistake.predicted)}</span> '
        f"<span>{share(mistake.probability)} sure</span> <span>row {number(mistake.row)}</span></p>"
    )
    text = _coloured(mistake.words) if mistake.words else escape(shorten(mistake.text, _MOST_LETTERS))
    nearest = "".join(f"<li>{_nearest(each)}</li>" for each in mistake.nearest)
    rows = (
        f"<details><summary>Nearest training rows: {_labels(mistake.nearest)}</summary><ul>{nearest}</ul></details>"
        if nearest
        else ""
    )
    return f'{head}<blockquote><bdi dir="auto">{text}</bdi></blockquote>{rows}'


def _labels(nearest: Sequence[NearestRow]) -> str:
    return ", ".join(word(each.label) for each in nearest)


def _nearest(each: NearestRow) -> str:
    return f"{word(each.label)}, row {number(each.row)}, similarity {each.similarity:.2f}: {quote(each.text)}"


def _coloured(words: Sequence[tuple[str, float]]) -> str:
    """The pieces of a text, deeper where they matter more; the start of a long one."""
    strongest = max((abs(weight) for _, weight in words), default=0.0) or 1.0
    parts, letters = [], 0
    for piece, weight in words:
        strength = round(_STRENGTHS * abs(weight) / strongest)
        kind = "for" if weight > 0 else "against"
        shown = escape(piece)
        parts.append(f'<mark class="{kind} w{strength}">{shown}</mark>' if strength else shown)
        letters += len(piece)
        if letters > _MOST_LETTERS:
            parts.append(" …")
            break
    return "".join(parts)


def audit_section(audit: Mapping[str, Any] | None, training: Mapping[int, str]) -> Html:
    """Training rows whose label disagrees with what the other rows say of their text."""
    if not audit:
        return Html("")
    rows = [
        [
            number(each["row"]),
            word(each["given"]),
            word(each["suggested"]),
            share(each["confidence"]),
            quote(training[each["row"]]) if each["row"] in training else "",
        ]
        for each in audit["suspects"]
    ]
    table = table_of(
        ["row", "label", "suggested", "surety", "text"],
        rows,
        numbers=(0, 3),
        texts=(4,),
        caption="Rows whose label may be wrong, the likeliest first",
    )
    body = f'<p class="lead">{escape(audit["text"])}</p>' + paragraph(audit.get("note", ""), soft=True)
    return section("label-audit", "Labels that may be wrong", body + (table if rows else ""))
