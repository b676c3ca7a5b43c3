"""What of a long work is done: parts beside the output, and a line for each in a journal.

A part is written aside, flushed and renamed, and only then its line is written and flushed: number, rows, SHA-256. So
whatever a `kill -9` leaves behind, a line speaks of a whole part, and a part without a line is made again. The folder
is gone once the output is there. Who writes the parts does not matter: a line says all that the assembling needs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tagsmith.errors import ResourceError, SettingError

NAME = "journal.jsonl"


@dataclass(frozen=True)
class Part:
    """A finished part: its number from 0, its rows, the hash of its file, and that of the texts it was made of.

    `aside` of the rows could not be computed.
    """

    part: int
    rows: int
    sha256: str
    texts_sha256: str
    aside: int = 0


class Journal:
    """The parts of one output. `plan` is what they depend on; a journal of another plan is not gone on with."""

    def __init__(self, folder: Path, file: BinaryIO, done: Mapping[int, Part]) -> None:
        self.folder = folder
        self._file = file
        self.done = dict(done)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Note what the parts depend on."""
        self._note({"format": 1, **plan})
        _flush(self.folder)

    def path(self, number: int) -> Path:
        """Where a part lies."""
        return self.folder / f"part-{number:06d}"

    def add(self, number: int, *, rows: int, texts_sha256: str, write: Callable[[Path], None], aside: int = 0) -> None:
        """Write a part and its line; it counts from the moment that the line is on the disk."""
        written = self.folder / f"part-{number:06d}.{os.getpid()}"
        write(written)
        sha256 = flushed(written)
        self.adopt(number, rows=rows, texts_sha256=texts_sha256, aside=aside, written=written, sha256=sha256)

    def adopt(self, number: int, *, rows: int, texts_sha256: str, written: Path, sha256: str, aside: int = 0) -> None:
        """Take a part that was written in the folder under a name of its own, and flushed, and note its line."""
        written.rename(self.path(number))
        _flush(self.folder)
        part = Part(number, rows, sha256, texts_sha256, aside)
        self._note(asdict(part))
        self.done[number] = part

    def assemble(self, target: Path, join: Callable[[list[Path], Path], None]) -> None:
        """Join all parts in order into `target`, which appears whole; then the folder is not needed any more."""
        aside = self.folder / "assembled"
        join([self.path(number) for number in sorted(self.done)], aside)
        _flush(aside)
        rows = sum(part.rows for part in self.done.values())
        self._note({"assembled": _sha256(aside), "rows": rows})
        aside.replace(target)
        _flush(target.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def flushed(path: Path) -> str:
    """The SHA-256 of a file whose bytes are on the disk from now on."""
    _flush(path)
    return _sha256(path)


def folder_of(target: Path) -> Path:
    """Where the parts of an output lie while it is being made."""
    return target.with_name(f".{target.name}.parts")


def finished(target: Path) -> int | None:
    """The rows of an output that was assembled by a run that was killed before it tidied up, which is done now."""
    path = folder_of(target) / NAME
    if not (target.is_file() and path.is_file()):
        return None
    lines = [_parsed(line) or {} for line in path.read_bytes().splitlines(keepends=True)]
    last = next((line for line in reversed(lines) if "assembled" in line), None)
    if last is None or last["assembled"] != _sha256(target):
        return None
    shutil.rmtree(path.parent, ignore_errors=True)
    return int(last["rows"])


@contextmanager
def journal(target: Path, plan: Mapping[str, Any], *, resume: bool, force: bool) -> Iterator[Journal]:
    """The journal of an output; with `resume` one that an interrupted run left, with `force` a new one in its place.

    Raises:
        SettingError: a run was interrupted and neither is given, its plan was another, or another process is at it.
        ResourceError: the disk is full or cannot be written.
    """
    folder = folder_of(target)
    path = folder / NAME
    try:
        if path.is_file() and not resume and not force:
            done = len(_read_whole(folder, path)[1])
            raise SettingError(
                f"'{target}' was begun before and not finished ({done} parts are done). Expected a word on that: go on "
                "with --resume, or begin anew with --force."
            )
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _lock(file, target)
            if not resume:
                _begin(folder, file)
            noted, done, whole = _read_whole(folder, path)
            if noted is None:
                _begin(folder, file)
            else:
                _require_same(noted, {"format": 1, **plan}, target)
                file.truncate(whole)  # a line that a kill cut short
            made = Journal(folder, file, done)
            try:
                if noted is None:
                    made.begin(plan)
                yield made
            except BaseException:
                if not made.done:  # there is nothing to go on with
                    shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        raise ResourceError(
            f"Cannot write '{target}': {error.strerror}. Free some space, or choose another --out; --resume goes on."
        ) from error


def _begin(folder: Path, file: BinaryIO) -> None:
    file.truncate(0)
    for old in folder.glob("part-*"):
        old.unlink()


def _lock(file: BinaryIO, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingError(
            f"Another process is making '{target}' at this moment. Expected one at a time; wait for it, or choose "
            "another --out."
        ) from None


def _require_same(noted: Mapping[str, Any], plan: Mapping[str, Any], target: Path) -> None:
    other = [key for key in plan if noted.get(key) != plan[key]]
    if other:
        raise SettingError(
            f"'{target}' was begun with another {', '.join(key.replace('_', ' ') for key in other)}. Expected the same "
            "as then, so that its parts fit together; begin anew with --force."
        )


def _read_whole(folder: Path, path: Path) -> tuple[dict[str, Any] | None, dict[int, Part], int]:
    """The plan, the parts that are whole, and where the last whole line ends."""
    noted: dict[str, Any] | None = None
    done: dict[int, Part] = {}
    end = 0
    for line in path.read_bytes().splitlines(keepends=True):
        values = _parsed(line)
        if values is None:
            break
        end += len(line)
        if noted is None:
            noted = values
        elif "assembled" not in values:
            part = Part(**values)
            file = folder / f"part-{part.part:06d}"
            if file.is_file() and _sha256(file) == part.sha256:
                done[part.part] = part
    return noted, done, end


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
