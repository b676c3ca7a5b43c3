"""From what the user names to files at hand: a path, a glob, standard input."""

from __future__ import annotations

import difflib
import glob
import os
import shutil
import stat
import sys
from pathlib import Path

from tagsmith.data.files import EXPECTED, File, listed, mapped
from tagsmith.errors import DataError

_PATTERN = frozenset("*?[")
_MOST_FILES = 10_000


def is_folder(source: str | Path) -> bool:
    """Whether a source is the path of a folder."""
    return os.path.isdir(source)  # noqa: PTH112 - Path.is_dir raises for a name that is too long


def find_files(source: str | Path, scratch: Path) -> list[File]:
    """The files that a path, a glob or `-` names, in order of their names; DataError where there is none."""
    if str(source) == "-":
        return [_nonempty(_standard_input(scratch))]
    path = Path(source)
    if _PATTERN & set(str(source)) and not os.path.exists(path):  # noqa: PTH110 - as above
        return [_at_hand(found, scratch) for found in _matches(str(source))]
    return [_at_hand(path, scratch)]


def file_at(path: Path) -> File:
    """A file at hand by its path; DataError for what is not there, is empty, or is no file (a pipe, a device)."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise _absent(path) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{listed([str(path)])} could not be read: {_reason(error)}. {EXPECTED}; check it.") from None
    if stat.S_ISDIR(mode):
        raise DataError(f"'{path}' is a folder. {EXPECTED}; name one file in it.")
    if not stat.S_ISREG(mode):
        raise DataError(
            f"'{path}' is a pipe, a socket or a device. {EXPECTED}; to read what another program writes, give '-' and "
            "pipe it in."
        )
    return _nonempty(File(path.name, path.absolute()))


def _at_hand(path: Path, scratch: Path) -> File:
    file = file_at(path)
    if not _PATTERN & set(str(file.path)):
        return file
    # Polars takes these characters for a glob.
    copy = scratch / f"copy-{len(list(scratch.iterdir()))}"
    shutil.copyfile(file.path, copy)
    return file.moved(copy)


def _standard_input(scratch: Path) -> File:
    path = scratch / "standard-input"
    with path.open("wb") as target:
        shutil.copyfileobj(sys.stdin.buffer, target)
    return File("standard input", path)


def _nonempty(file: File) -> File:
    try:
        empty = not file.path.stat().st_size
        if not empty:
            with mapped(file.path) as data:
                empty = not data[:4096].strip() and not data[:].strip()
    except OSError as error:
        raise DataError(f"'{file.path}' could not be read: {_reason(error)}. {EXPECTED}; check the file.") from None
    if empty:
        raise DataError(f"'{file.name}' is empty. {EXPECTED}, with a text and a label in each row.")
    return file


def _matches(pattern: str) -> list[Path]:
    paths = sorted(Path(found) for found in glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute ones
    files = [path for path in paths if path.is_file()]
    if not files:
        raise DataError(f"No file matches '{pattern}'. {EXPECTED}; check the pattern.")
    if len(files) > _MOST_FILES:
        raise DataError(f"{len(files):,} files match '{pattern}'. Expected at most {_MOST_FILES:,}; join them first.")
    return files


def _absent(path: Path) -> DataError:
    if path.is_symlink():
        return DataError(f"'{path}' is a link to '{path.readlink()}', where there is nothing. Mend the link.")
    return DataError(f"No file at '{path}'.{_nearest(path)} {EXPECTED}; check the path.")


def _nearest(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f" There is no folder '{path.parent}' either." if not path.parent.exists() else ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
