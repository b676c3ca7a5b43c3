"""Texts as their authors meant them: each step optional and counted, the same in training and in serving.

A step is applied to one text at a time, and the whole row of steps until nothing changes any more, so that cleaning a
clean text does nothing. `column_cleaning` does the same in bulk; nothing here needs more than Python.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from html.entities import html5

from tagsmith.data.pairs import PAIR

STEPS = ("mojibake", "html", "email", "invisible", "nfc", "nfkc", "spaces")
"""Every step, in the order in which they are applied."""


def clean_texts(texts: Sequence[str], steps: Sequence[str]) -> list[str]:
    """`clean_text` for a few texts."""
    asked = in_order(steps)
    return [cleaned(text, asked, _unheard) for text in texts] if asked else list(texts)


def clean_text(text: str, steps: Sequence[str]) -> str:
    """The text after each of `steps`, in the order of `STEPS`; each side of a pair by itself.

    `mojibake`: text that was decoded with the wrong encoding (ftfy); `html`: tags, scripts and entities; `email`:
    headers, quoted lines, signature; `invisible`: characters that show nothing; `nfc` or `nfkc`: Unicode's composed or
    compatible form; `spaces`: each run of white space one space, or one line end where it holds one.
    """
    return cleaned(text, in_order(steps), _unheard)


def in_order(steps: Sequence[str]) -> tuple[str, ...]:
    """The steps in the order in which they are applied, each once."""
    return tuple(step for step in STEPS if step in steps)


# --- one text -------------------------------------------------------------------------------------------------------

_MOST_ROUNDS = 20


def cleaned(text: str, steps: Sequence[str], tell: Callable[[str], object]) -> str:
    """`clean_text` with steps that are in order; `tell` hears each one that changed something."""
    if PAIR in text:
        return PAIR.join(cleaned(side, steps, tell) for side in text.split(PAIR))
    for _ in range(_MOST_ROUNDS):
        before = text
        for step in steps:
            stepped = _FUNCTIONS[step](text)
            if stepped != text:
                tell(step)
                text = stepped
        if text == before:
            return text
    # Only markup made to be nested without end gets here; without its signs there is nothing left to unfold.
    rest = [step for step in steps if step != "html"]
    return cleaned(re.sub("[<&>]", " ", text), rest, tell) if "html" in steps else text


def _unheard(step: str) -> None:
    pass


def _mojibake(text: str) -> str:
    if text.isascii():
        return text
    from ftfy import fix_encoding

    fixed = fix_encoding(text)
    return text if _SURROGATE.search(fixed) else fixed


_SURROGATE = re.compile("[\ud800-\udfff]")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


# Python's own \s also holds the four separators U+001C to U+001F, one of which parts the two texts of a pair.
_LINE_ENDS = "\n\x0b\x0c\r\x85\u2028\u2029"
_BLANKS = "\t \xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_UNFOLDED = re.compile(
    f"[{_BLANKS}{_LINE_ENDS}]{{2,}}|[\t\x0b\x0c\r\x85\xa0\u1680\u2000-\u200a\u2028-\u202f\u205f\u3000]"
)
_LINE_END = re.compile(f"[{_LINE_ENDS}]")


def _spaces(text: str) -> str:
    return _UNFOLDED.sub(lambda run: "\n" if _LINE_END.search(run[0]) else " ", text).strip(" \n")


# --- HTML -----------------------------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BLOCKS = _words(
    "address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption "
    "figure footer form frame frameset h1 h2 h3 h4 h5 h6 head header hr html legend li link main menu meta nav "
    "noscript ol optgroup option p pre section select summary table tbody textarea tfoot thead title tr ul"
)
_CELLS = _words("td th")
_INLINE = _words(
    "a abbr acronym area audio b base basefont bdi bdo big blink button canvas cite code col colgroup data datalist "
    "del dfn em embed font i iframe img input ins kbd label map mark marquee meter object output param picture "
    "progress q rp rt ruby s samp script slot small source span strike strong style sub sup svg template time track tt "
    "u var video wbr"
)
# Known names and proper attributes only: "a <b and c> d", "<3", "<user>" and "x < y" are no tags. Nothing is tried
# twice (possessive), so that no text takes longer than in proportion to its length.
_TAG = re.compile(
    r"</?([a-z][a-z0-9]*+)"
    r"(?:\s++(?:[a-z_:@][\w:.@-]*+\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s\"'<>=`]++)"
    r"|(?:checked|disabled|selected|hidden|async|defer|controls|autoplay|loop|muted|required|readonly|multiple|open)\b"
    r"))*+\s*+/?>"
    r"|<!doctype\b[^<>]*+>|<\?xml\b[^<>]*+>",
    re.IGNORECASE | re.ASCII,
)
_ENTITY = re.compile(r"&(#\d{1,8}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_AMPERSANDS = re.compile(r"&(?:(?:amp|#0*+38|#x0*+26);)++", re.IGNORECASE)
_UNREAD = tuple(
    (re.compile(rf"<{name}(?:\s[^<>]*+)?>", re.IGNORECASE), re.compile(rf"</{name}\s*+>", re.IGNORECASE))
    for name in ("script", "style")
) + ((re.compile("<!--"), re.compile("-->")),)


def _html(text: str) -> str:
    if "<" in text:
        for opening, closing in _UNREAD:
            text = _without_between(text, opening, closing)
        text = _TAG.sub(_untagged, text)
    return _ENTITY.sub(_decoded, _AMPERSANDS.sub("&", text)) if "&" in text else text


def _without_between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    """Without what stands between the two; where nothing closes, nothing is taken away."""
    kept, position = [], 0
    while (start := opening.search(text, position)) and (end := closing.search(text, start.end())):
        kept += [text[position : start.start()], "\n"]
        position = end.end()
    return "".join([*kept, text[position:]])


def _untagged(tag: re.Match[str]) -> str:
    name = (tag[1] or "br").lower()
    if name in _INLINE:
        return ""
    return "\n" if name in _BLOCKS else " " if name in _CELLS else tag[0]


def _decoded(entity: re.Match[str]) -> str:
    name = entity[1]
    return html.unescape(f"&{name};") if name.startswith("#") or f"{name};" in html5 else entity[0]


# --- e-mail ---------------------------------------------------------------------------------------------------------

_HEADER = re.compile(
    r"(?:from|to|cc|bcc|subject|date|sent|reply-to|sender|return-path|received|delivered-to|message-id|in-reply-to|"
    r"references|mime-version|content-type|content-transfer-encoding|organization|lines|newsgroups|path|xref|"
    r"nntp-posting-host|distribution|keywords|summary|importance|x-[\w-]+)[ \t]*:",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"subject[ \t]*:[ \t]*(.*)", re.IGNORECASE)
_ATTRIBUTION = re.compile(
    r"(?:On|Am|Le|El|Il|Em|Op)\b.{5,200}\b(?:wrote|writes|schrieb|a écrit|escribió|ha scritto|escreveu|schreef)\s*:\s*"
)
_LONGEST_SIGNATURE = 10


def _email(text: str) -> str:
    if "\n" not in text:
        return text
    lines = text.split("\n")
    kept = _without_signature(_without_quotes(_without_headers(lines)))
    return text if len(kept) == len(lines) and kept == lines else "\n".join(kept)


def _without_headers(lines: list[str]) -> list[str]:
    """The lines after blocks of two or more headers at the top, led by the subject, which the author wrote."""
    start = 0
    while (end := _end_of_headers(lines, start)) is not None:
        subjects = [found[1].strip() for line in lines[start:end] if (found := _SUBJECT.match(line))]
        if any(subjects):
            return [max(subjects, key=bool), *lines[end:]]
        start = end
    return lines[start:]


def _end_of_headers(lines: list[str], start: int) -> int | None:
    """Where the headers that begin at `start`, or below empty lines there, end; None where there are no two."""
    end, headers = start, 0
    while end < len(lines) and not lines[end].strip():
        end += 1
    while end < len(lines) and lines[end].strip():
        if _HEADER.match(lines[end]):
            headers += 1
        elif not (headers and lines[end][:1] in (" ", "\t")):
            return None
        end += 1
    return end if headers >= 2 else None


def _without_quotes(lines: list[str]) -> list[str]:
    """Without quoted lines, two or more together or below "On ... wrote:"; a single ">" may be the author's own."""
    kept: list[str] = []
    position = 0
    while position < len(lines):
        end = position
        while end < len(lines) and lines[end].lstrip(" ").startswith(">"):
            end += 1
        said = _place_of_attribution(kept)
        if end - position >= 2 or (end > position and said is not None):
            kept = kept if said is None else kept[:said]
        else:
            end = max(end, position + 1)
            kept += lines[position:end]
        position = end
    return kept


def _place_of_attribution(lines: list[str]) -> int | None:
    """Where the last line that says something stands, if it is "On ... wrote:"."""
    last = len(lines) - 1
    while last >= 0 and not lines[last].strip():
        last -= 1
    return last if last >= 0 and _ATTRIBUTION.fullmatch(lines[last].strip()) else None


def _without_signature(lines: list[str]) -> list[str]:
    """Without the last lines below the one "-- "; where there are more of them, they part something else."""
    marks = [i for i, line in enumerate(lines) if line.rstrip("\r") in ("-- ", "--")]
    if len(marks) != 1 or len(lines) - marks[0] > _LONGEST_SIGNATURE + 1:
        return lines
    return lines[: marks[0]] if any(line.strip() for line in lines[: marks[0]]) else lines


# --- invisible characters -------------------------------------------------------------------------------------------

# Scripts whose letters change their shape at a joiner, by blocks; and the signs after which a joiner ends a letter.
_JOINING = (
    "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ua840-\ua9ff\ufb50-\ufdff\ufe70-\ufefc\U0001e900-\U0001e95f"
)
_VIRAMAS = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca\u1039\u17d2"
_EMOJI = "\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_NOTHING_SEEN = (
    "\x00-\x08\x0e-\x1d\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufeff\ufff9-\ufffb"
)
_INVISIBLE = re.compile(
    f"[{_NOTHING_SEEN}]"
    # Tag characters spell the region of a flag, and nothing else.
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+"
    f"|[\u200c\u200d](?!(?<=[{_VIRAMAS}].)|(?<=[{_JOINING}].)(?=[{_JOINING}])"
    f"|(?<=[{_EMOJI}\ufe0f]\u200d)(?=[{_EMOJI}]))"
)


def _invisible(text: str) -> str:
    return _INVISIBLE.sub("", text)


_FUNCTIONS: Mapping[str, Callable[[str], str]] = {
    "mojibake": _mojibake,
    "html": _html,
    "email": _email,
    "invisible": _invisible,
    "nfc": _nfc,
    "nfkc": _nfkc,
    "spaces": _spaces,
}


# --- which rows could change ----------------------------------------------------------------------------------------

# A text in which no pattern of the asked steps is found is left as it is by each of them, and so by all in a row.
SUSPICIONS = {
    "mojibake": r"[^\x00-\x7f]",
    "html": r"<[A-Za-z/!?]|&[A-Za-z#]",
    "email": r"\n",
    "invisible": f"[{_NOTHING_SEEN}\u200c\u200d\U000e0000-\U000e007f]",
    "nfc": r"[^\x00-\u{2ff}]",
    "nfkc": r"[^\x00-\x9f]",
    "spaces": (
        f"^[{_BLANKS}{_LINE_ENDS}]|[{_BLANKS}{_LINE_ENDS}]$|[{_BLANKS}{_LINE_ENDS}]{{2}}"
        "|[\t\x0b\x0c\r\x85\xa0\u1680\u2000-\u200a\u2028-\u202f\u205f\u3000]"
    ),
}
