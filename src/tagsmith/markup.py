"""Pieces of a self-contained HTML page: no script, no request, pictures inline.

Labels and texts come from strangers. Every cell is escaped unless it is `Html`, which only a page makes; each word
of theirs stands in its own `<bdi>`, and never in a picture.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib.resources import files

_MOST_LETTERS = 280


class Html(str):
    """Markup that the code of a page made; everything else is escaped."""

    __slots__ = ()


def escape(value: object) -> str:
    """Text that can neither end its element nor reach out of it; unseen characters become a replacement mark."""
    if isinstance(value, Html):
        return str(value)
    return html.escape(UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value)))


# Control characters, and those that turn the direction of what follows them.
UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def word(name: object) -> Html:
    """A label or another short name."""
    return Html(f"<bdi>{escape(shorten(str(name), 80))}</bdi>")


def quote(text: str) -> Html:
    """The start of a text."""
    return Html(f'<bdi dir="auto">{escape(shorten(text, _MOST_LETTERS))}</bdi>')


def shorten(text: str, most: int) -> str:
    """The start of a long text."""
    return text if len(text) <= most else text[:most].rstrip() + " …"


def number(value: int) -> str:
    """A count, with its thousands apart."""
    return f"{int(value):,}"


def part_of(part: int, whole: int) -> str:
    """A share in per cent."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def table_of(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    texts: Sequence[int] = (),
    pictures: Sequence[int] = (),
    caption: str = "",
) -> str:
    """A table in a box of its own, which scrolls where the screen is narrow; tall ones scroll too."""
    kinds = {i: ' class="n"' for i in numbers} | {i: ' class="text"' for i in texts}
    kinds |= {i: ' class="pic"' for i in pictures}
    top = "".join(f'<th scope="col"{kinds.get(i, "")}>{escape(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{kinds.get(i, '')}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    tall = " tall" if len(rows) > 40 else ""
    opening = f"<caption>{escape(caption)}</caption>" if caption else ""
    opening += f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="box{tall}" tabindex="0"><table>{opening}<tbody>{body}</tbody></table></div>'


def figure_of(picture: str, caption: str) -> str:
    """A picture with a line below it."""
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def style() -> str:
    """The style sheet of all pages, in light and dark."""
    return files("tagsmith").joinpath("markup.css").read_text(encoding="utf-8")
