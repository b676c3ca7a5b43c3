"""How often the same test rows were looked at: each look after the first may have chosen something by them.

The ledger is a file of lines for each set of rows, in the user's state folder, and never part of what must be the same
from run to run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LISTED = 20


@dataclass(frozen=True)
class Looks:
    """The looks at some rows, this one included; `count` is None where the ledger could not be kept, `note` says why.

    `earlier` are the latest looks before this one, each with its `date` and `what` looked.
    """

    rows_sha256: str
    count: int | None
    note: str
    earlier: tuple[dict[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The shape of `looks` in run.json."""
        told = {"rows_sha256": self.rows_sha256, "count": self.count, "note": self.note}
        return told | {"earlier": list(self.earlier)}


def rows_hash(texts: Iterable[str]) -> str:
    """SHA-256 by which test rows are known again, whatever their order."""
    hashes = sorted(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts)
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def look(texts: Iterable[str], *, what: str, date: str, folder: Path) -> Looks:
    """Enter a look at these test rows into the ledger in `folder`, and say which one it is."""
    key = rows_hash(texts)
    file = folder / "looks" / f"{key}.jsonl"
    try:
        earlier = _entries(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"date": date, "what": what}) + "\n")
    except OSError as error:
        told = f"Looks at these test rows are not counted: '{file.parent}' cannot be written ({error.strerror})."
        return Looks(key, None, f"{told} Name a folder that can be with TAGSMITH_STATE.")
    count = len(earlier) + 1
    note = (
        "First look at these test rows."
        if count == 1
        else f"Look {count} at these test rows; interval not corrected for selection."
    )
    return Looks(key, count, note, tuple(earlier[-_LISTED:]))


def _entries(file: Path) -> list[dict[str, str]]:
    """What the ledger says of earlier looks; a line that a crash left unfinished counts too."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = {}
        found.append({key: str(entry.get(key, "unknown")) for key in ("date", "what")})
    return found
