"""Corrections of wrong answers, kept for the next training, and the hashes of what was asked, for labelling later.

Both are files of JSON lines that only ever grow: a line is there whole or not at all, and others may append meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.errors import ResourceError


class Journal:
    """A file of JSON lines that only its owner may read. ResourceError where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.append([])
        with path.open("rb") as file:
            self.lines = sum(1 for _ in file)

    def append(self, records: Sequence[Mapping[str, Any]], *, flush: bool = True) -> None:
        """Add lines, all or none; with `flush` they are on the disk when this returns."""
        whole = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        try:
            self._append(whole, flush=flush)
        except OSError as error:
            raise ResourceError(
                f"Cannot write '{self.path}': {error.strerror}. Expected a file that may grow; free some space, or "
                "name another one."
            ) from error
        self.lines += len(records)

    def _append(self, whole: bytes, *, flush: bool) -> None:
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            end = os.fstat(handle).st_size
            if end and os.pread(handle, 1, end - 1) != b"\n":  # a line that a crash cut short stays one bad line
                whole = b"\n" + whole
            try:
                if os.write(handle, whole) < len(whole):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if flush:
                    os.fsync(handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, end)
                raise
        finally:
            os.close(handle)


class Corrections:
    """Where the page keeps the right labels of texts; `tagsmith train --corrections FILE` learns from them."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)

    def keep(self, text: str, labels: Sequence[str], *, pair: str | None, multi_label: bool, version: str) -> int:
        """Keep one, and say how many there are."""
        record: dict[str, Any] = {"text": text} if pair is None else {"text": text, "text_pair": pair}
        record |= {"labels": list(labels)} if multi_label else {"label": labels[0]}
        self._journal.append([record | {"model": version, "time": _now()}])
        return self._journal.lines


class HashLog:
    """SHA-256 of the texts that were asked, with their answers and no text: who has the texts can label them later."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)

    def note(self, texts: Sequence[str], probs_NC: np.ndarray, *, labels: Sequence[str], version: str) -> None:
        """Note the likeliest label of each text with its probability."""
        self._journal.append(
            [
                {
                    "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
                    "label": labels[int(probs_C.argmax())],
                    "probability": round(float(probs_C.max()), 4),
                    "model": version,
                    "time": _now(),
                }
                for text, probs_C in zip(texts, probs_NC, strict=True)
            ],
            flush=False,
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
