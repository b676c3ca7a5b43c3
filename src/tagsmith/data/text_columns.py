"""Which column of a table holds its text, and how a text is made of columns. No polars."""

from __future__ import annotations

import difflib
import string
from collections.abc import Callable, Mapping, Sequence

from tagsmith.data.files import listed
from tagsmith.errors import DataError

TEXT_NAMES = (
    "text", "texts", "message", "sentence", "review", "content", "body", "tweet", "comment", "description",
    "utterance", "question", "query", "document", "sms", "post", "headline",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "tag", "polarity", "y",
)  # fmt: skip


TO_DO = {role: f"name it with --set data.{role}=NAME" for role in ("text", "text_pair", "label", "group", "time")} | {
    "part": "name it with --set data.split_column=NAME",
    "slice": "leave it out of evaluation.slices",
}


def columns_of_text(columns: Sequence[str], text: str | None) -> list[str]:
    """The columns that a text is made of, each once: itself, or those in the braces of a template."""
    if text is None:
        return []
    if text in columns or "{" not in text:
        return [text]
    names = [name for _, name, *_ in template_of(text) if name is not None]
    if not names or "" in names:
        raise DataError(
            f"The text template {text!r} names no column in its braces. Expected something like '{{title}}. {{body}}' "
            f"with some of {listed(columns)}."
        )
    return list(dict.fromkeys(names))


def template_of(text: str) -> list[tuple[str, str | None]]:
    """Literal text and the column after it; a written backslash and n (or t) is a line end (or a tab)."""
    try:
        parsed = list(string.Formatter().parse(text.replace("\\n", "\n").replace("\\t", "\t")))
    except ValueError as error:
        raise DataError(
            f"The text template {text!r} cannot be read: {error}. Expected columns in braces, as in "
            "'{title}. {body}'; write a brace of the text itself twice."
        ) from None
    return [(literal, name if not spec else f"{name}:{spec}") for literal, name, spec, _ in parsed]


def require_column(columns: Sequence[str], name: str) -> None:
    """DataError, with the nearest name, where there is no such column."""
    if name in columns:
        return
    folded = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    hint = f" Did you mean '{folded[near[0]]}'?" if near else ""
    raise DataError(f"No column '{name}'.{hint} Found the columns {listed(columns)}; name one of them.")


def by_name(columns: Sequence[str], names: Sequence[str], *, role: str, strict: bool = True) -> str | None:
    """The one column with a usual name; the plainest name (`text`, `label`) wins over all others."""
    matches = [column for column in columns if column.strip().casefold() in names]
    plain = [column for column in matches if column.strip().casefold() == names[0]]
    if len(plain) == 1:
        return plain[0]
    if len(matches) > 1 and strict:
        raise DataError(f"The columns {listed(matches)} could all be the {role}. Expected one; {TO_DO[role]}.")
    return matches[0] if len(matches) == 1 else None


def find_text(
    columns: Sequence[str],
    asked: str | None,
    taken: Sequence[str],
    mean_lengths: Callable[[Sequence[str]], Mapping[str, float]],
) -> tuple[str, str]:
    """The column or template of the text, and in words why; `mean_lengths` of the cells is asked where no name tells.

    DataError where there is none, or more than one.
    """
    if asked is not None:
        return asked, f"text = '{asked}' (asked for)"
    free = [name for name in columns if name not in taken]
    if named := by_name(free, TEXT_NAMES, role="text"):
        return named, f"text = '{named}' (by its name)"
    lengths = mean_lengths(free)
    ranked = sorted(lengths, key=lambda name: -lengths[name])
    if not ranked or lengths[ranked[0]] == 0:
        raise DataError(f"Found no column with text among {listed(columns)}. Expected one; {TO_DO['text']}.")
    # Two columns of prose, say a question and its answer: a guess would be wrong half the time.
    rivals = [name for name in ranked[1:] if lengths[name] > 20 and lengths[name] > lengths[ranked[0]] / 2]
    if rivals:
        raise DataError(
            f"The columns {listed([ranked[0], *rivals])} all look like text. Expected one; {TO_DO['text']}, or join "
            "them with --set data.text='{ONE} {OTHER}'."
        )
    return ranked[0], f"text = '{ranked[0]}' (the longest cells)"
