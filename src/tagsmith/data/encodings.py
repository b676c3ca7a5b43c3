"""From bytes in any encoding to UTF-8 that starts with its first row and ends with its last."""

from __future__ import annotations

import codecs
import itertools
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from tagsmith.data.files import EXPECTED, File, mapped, refuse_binary
from tagsmith.errors import DataError, SettingError

_PIECE = 4 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Of the hundred that could be meant, those in which tables are still written; a rare one would win by chance.
_ENCODINGS = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "iso8859_2", "koi8_r"),
    *("gb18030", "big5", "cp932", "euc_jp", "cp949"),
]
_NAMES = {"cp932": "Shift-JIS (cp932)", "gb18030": "GB18030"}


def as_utf8(file: File, scratch: Path, *, encoding: str | None = None) -> File:
    """The file itself where it is tidy UTF-8 already, or else a copy in `scratch` that is, and a note that says so.

    `encoding` is what the user asked for; without it the encoding is found by looking. DataError for what is no text.
    """
    with mapped(file.path) as data:
        found = _asked(encoding, data, file.name) if encoding else _encoding(data, file.name)
        if found == "utf-8" and _is_tidy(data):
            return file
    told = "" if found in ("utf-8", "utf-8-sig") else f"decoded from {_NAMES.get(found, found)}"
    path = scratch / f"utf-8-{len(list(scratch.iterdir()))}"
    if found == _MIXED:
        told = f"UTF-8, but for {_write_mixed(file.path, path):,} lines that were taken as cp1252"
    else:
        _write_decoded(file, path, found)
    _tidy(path, file.name)
    if not path.stat().st_size:
        raise DataError(f"'{file.name}' is empty. {EXPECTED}, with a text and a label in each row.")
    return file.moved(path, told + (" (asked for)" if encoding else ""))


def decoded(data: bytes) -> tuple[str, str]:
    """A short text and the encoding that it was in: UTF-8, one with a byte order mark, or else cp1252."""
    bom = next((encoding for mark, encoding in _BOMS if data.startswith(mark)), None)
    for encoding in (bom or "utf-8", "cp1252"):
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1"), "latin-1"


def _asked(encoding: str, data: mmap.mmap, name: str) -> str:
    try:
        info = codecs.lookup(encoding)
    except LookupError:
        info = None
    if info is None or not getattr(info, "_is_text_encoding", True):
        raise SettingError(f"'{encoding}' is no encoding. Expected a name such as utf-8, cp1252, shift_jis or gb18030.")
    if info.name != "utf-8":
        return info.name
    if not _is_utf8(data):
        refuse_binary(name, "bytes that are not valid utf-8")
    _require_no_zero(data, name)
    return "utf-8-sig" if data[:3] == codecs.BOM_UTF8 else "utf-8"


def _require_no_zero(data: mmap.mmap, name: str) -> None:
    if (position := data.find(b"\0")) >= 0:
        refuse_binary(name, f"a zero byte at position {position}")


# --- which one ------------------------------------------------------------------------------------------------------

_MIXED = "mixed"


def _encoding(data: mmap.mmap, name: str) -> str:
    start = data[:4]
    for bom, encoding in _BOMS:
        if start.startswith(bom):
            return encoding
    zero = data.find(b"\0")
    if zero >= 0:
        return _wide_encoding(data) or refuse_binary(name, f"a zero byte at position {zero}")
    return "utf-8" if _is_utf8(data) else _guessed_encoding(data, name)


def _wide_encoding(data: mmap.mmap) -> str | None:
    """UTF-16 without a byte order mark: every line end and blank has its zero byte on the same side."""
    sample = data[: 64 * 1024]
    for encoding, end, blank in (("utf-16-le", b"\n\0", b" \0"), ("utf-16-be", b"\0\n", b"\0 ")):
        sides = {match.start() % 2 for match in re.finditer(re.escape(end) + b"|" + re.escape(blank), sample)}
        text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(sample)
        strange = len(re.findall("[\x00-\x08\x0e-\x1f\ufffd\ue000-\uf8ff]", text))
        if sides == {0} and not strange:
            return encoding
    return None


def _is_utf8(data: mmap.mmap) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), _PIECE):
            decoder.decode(data[start : start + _PIECE], final=start + _PIECE >= len(data))
    except UnicodeDecodeError:
        return False
    return True


def _guessed_encoding(data: mmap.mmap, name: str) -> str:
    import charset_normalizer

    # Only lines with bytes above 127 tell encodings apart; a long start in plain ASCII would tell nothing.
    lines = [match[0] for match in itertools.islice(re.finditer(rb"[^\n]*[\x80-\xff][^\n]*\n?", data), 2000)]
    if sum(_is_valid(line) for line in lines) * 2 >= len(lines) > 1:
        return _MIXED
    sample = b"".join(lines)[: 256 * 1024]
    controls = len(re.findall(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]", sample))
    # Files in Mac Roman come from old Macs, with their line ends; else English with a few signs looks like it.
    encodings = [*_ENCODINGS, "mac_roman"] if _is_of_old_macs(data) else _ENCODINGS
    matches = charset_normalizer.from_bytes(sample, cp_isolation=encodings)
    best = matches.best() if controls * 100 <= len(sample) else None
    if best is None:
        refuse_binary(name, "bytes that are text in no known encoding")
    if _is_euc_jp(sample):
        return "euc_jp"
    # By far the most common of them, where the bytes are alike in it or too few to tell a language by (a pound sign).
    few = len(re.findall(rb"[\x80-\xff]", sample)) * 10 < len(sample)
    western = [match.coherence for match in matches if "cp1252" in match.could_be_from_charset]
    alike = max(western, default=-1) >= best.coherence - 0.05 or (few and best.coherence == 0)
    return "cp1252" if alike else best.encoding


def _is_euc_jp(sample: bytes) -> bool:
    """Whether much of it is kana then; the same bytes are letters of Korean words in cp949, but hardly ever so many."""
    text = codecs.getincrementaldecoder("euc_jp")(errors="replace").decode(sample)
    letters = len(re.findall(r"[^\x00-\x7f]", text))
    return "\ufffd" not in text and len(re.findall("[\u3041-\u30fe]", text)) > 0.35 * letters


def _is_valid(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# --- writing UTF-8 --------------------------------------------------------------------------------------------------


def _write_decoded(file: File, path: Path, encoding: str) -> None:
    position = 0
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("wb") as target:
        for piece, last in _pieces(file.path):
            try:
                target.write(decoder.decode(piece, final=last).encode("utf-8"))
            except UnicodeError as error:
                near = position + getattr(error, "start", 0)
                refuse_binary(file.name, f"bytes that are not valid {encoding} near position {near:,}")
            position += len(piece)


def _pieces(path: Path) -> Iterator[tuple[bytes, bool]]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece, stream.tell() >= size


def _write_mixed(source: Path, path: Path) -> int:
    """Lines that are no UTF-8 taken as cp1252 (its five unused bytes as Latin-1); gives their number."""
    strange = 0
    with source.open("rb") as stream, path.open("wb") as target:
        for line in stream:
            if not _is_valid(line):
                strange += 1
                line = decoded(line)[0].encode("utf-8")
            target.write(line)
    return strange


def _is_tidy(data: mmap.mmap) -> bool:
    """No blank lines around the rows, and line ends that a reader knows."""
    end = data[-4:]
    blank = end[len(end.rstrip(b"\r\n")) :]
    return data[:1] not in b"\r\n" and blank.count(b"\n") < 2 and not _is_of_old_macs(data)


def _is_of_old_macs(data: mmap.mmap) -> bool:
    return data.find(b"\n") < 0 <= data.find(b"\r")


def _tidy(path: Path, name: str) -> None:
    """Blank lines before the first row and after the last one removed, and the line ends of old Macs made new."""
    if not path.stat().st_size:
        return
    with mapped(path) as data:
        _require_no_zero(data, name)
        if _is_tidy(data):
            return
        first = re.search(rb"[^\r\n]", data)
        start, end = (first.start(), _last_content(data)) if first else (0, 0)
        macs = _is_of_old_macs(data)
        tidied = path.with_name(f"{path.name}-tidy")
        with tidied.open("wb") as target:
            for position in range(start, end, _PIECE):
                piece = data[position : min(end, position + _PIECE)]
                target.write(piece.replace(b"\r", b"\n") if macs else piece)
    tidied.replace(path)


def _last_content(data: mmap.mmap) -> int:
    end = len(data)
    while data[end - 1 : end] in (b"\r", b"\n"):
        end -= 1
    return end
