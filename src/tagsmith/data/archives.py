"""A table out of a zip, a gz or a zst: one layer, never past its folder, never a bomb."""

from __future__ import annotations

import gzip
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from tagsmith.data.files import EXPECTED, MOST_BYTES, File, first_line, listed
from tagsmith.errors import DataError

MOST_RATIO, RATIO_FROM_BYTES = 200, 64 * 2**20
TABLE_SUFFIXES = frozenset({
    ".csv", ".tsv", ".tab", ".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".pq", ".arrow", ".feather", ".ipc",
    ".xlsx", ".xlsm", ".xlsb", ".xls", ".ods",
})  # fmt: skip
_PIECE = 1 << 20
_ZIP, _GZIP, _ZSTD = b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_EMPTY_ZIP = b"PK\x05\x06"


def unpacked(file: File, scratch: Path) -> File:
    """The table in an archive, written into `scratch`; a file that is none as it is.

    DataError for an archive in an archive, one without a table, an encrypted or damaged one, one that leads out of its
    folder, and one that would fill the disk.
    """
    kind = _kind(file.path)
    if kind is None:
        return file
    inner = _from_zip(file, scratch) if kind == "zip" else _from_stream(file, scratch, kind)
    if _kind(inner.path) is not None:
        raise DataError(
            f"'{inner.name}' in '{file.name}' is an archive itself. Expected a table in it; unpack it and give the "
            "table itself."
        )
    return inner


def require_tame_zip(file: File) -> None:
    """DataError when the parts of a workbook would unpack to far more than they hold."""
    with zipfile.ZipFile(file.path) as archive:
        for entry in archive.infolist():
            _require_tame(entry, file.name)


def _kind(path: Path) -> str | None:
    with path.open("rb") as stream:
        start = stream.read(4)
    if start in (_ZIP, _EMPTY_ZIP):
        return None if _is_workbook(path) else "zip"
    return "gz" if start.startswith(_GZIP) else "zst" if start == _ZSTD else None


def _is_workbook(path: Path) -> bool:
    """Excel's and LibreOffice's files are zips too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return False
    return bool({"xl/workbook.xml", "xl/workbook.bin"} & names) or {"mimetype", "content.xml"} <= names


# --- zip ------------------------------------------------------------------------------------------------------------


def _from_zip(file: File, scratch: Path) -> File:
    try:
        with zipfile.ZipFile(file.path) as archive:
            entry, others = _table_in(archive, file.name)
            with archive.open(entry) as packed:
                path = _written(packed, scratch, name=f"'{entry.filename}' in the zip '{file.name}'", packed_size=None)
    except _DAMAGED as error:
        raise DataError(
            f"The zip '{file.name}' is damaged or of an unknown kind: {first_line(error)}. Pack or fetch it again."
        ) from None
    beside = f" (not {listed(others, 3)})" if others else ""
    note = f"'{entry.filename}' from the zip '{file.name}'{beside}"
    return File(PurePosixPath(entry.filename).name, path, (*file.notes, note))


_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError, OSError)


def _table_in(archive: zipfile.ZipFile, zip_name: str) -> tuple[zipfile.ZipInfo, list[str]]:
    """The entry that is read, and the names of the other tables."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
        if ".." in parts or entry.filename.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", entry.filename):
            raise DataError(
                f"The zip '{zip_name}' holds '{entry.filename}', a path that leads out of it. Expected plain names; "
                "such a zip is not read: unpack it with care and give the table itself."
            )
    ranked = sorted((rank, i) for i, entry in enumerate(entries) if (rank := _rank(entry.filename)) is not None)
    if not ranked:
        found = listed([entry.filename for entry in entries]) or "nothing"
        raise DataError(f"The zip '{zip_name}' holds no table, but {found}. {EXPECTED}.")
    _require_tame(entries[ranked[0][1]], zip_name)
    return entries[ranked[0][1]], [entries[i].filename for _, i in ranked[1:]]


def _rank(path: str) -> int | None:
    """Tables by their suffix come first; a plain name without one may be a table too (UCI's `SMSSpamCollection`)."""
    name = PurePosixPath(path).name.lower()
    suffix = PurePosixPath(name).suffix
    if path.startswith("__MACOSX/") or name.startswith((".", "readme", "license", "licence", "copying", "changelog")):
        return None
    if suffix in (".txt", ""):
        return 1
    return 0 if suffix in TABLE_SUFFIXES else None


def _require_tame(entry: zipfile.ZipInfo, zip_name: str) -> None:
    if entry.flag_bits & 1:
        raise DataError(
            f"'{entry.filename}' in the zip '{zip_name}' is encrypted. Unpack it and give the table itself."
        )
    if _is_bomb(entry.file_size, entry.compress_size):
        raise _bomb(f"'{entry.filename}' in the zip '{zip_name}'", entry.file_size, entry.compress_size)


# --- gz and zst -----------------------------------------------------------------------------------------------------


def _from_stream(file: File, scratch: Path, kind: str) -> File:
    opened: dict[str, Callable[[Path], IO[bytes]]] = {"gz": _open_gzip, "zst": _open_zstd}
    size = file.path.stat().st_size
    try:
        with opened[kind](file.path) as packed:
            path = _written(packed, scratch, name=f"'{file.name}'", packed_size=size)
    except (OSError, EOFError, zlib.error, *_errors_of(kind)) as error:
        raise DataError(f"'{file.name}' is damaged or cut off: {first_line(error)}. Pack or fetch it again.") from None
    name = PurePosixPath(file.name).stem if PurePosixPath(file.name).suffix.lower() in (".gz", ".zst") else file.name
    return File(name, path, (*file.notes, f"unpacked from '{file.name}'"))


def _open_gzip(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb"))


def _errors_of(kind: str) -> tuple[type[Exception], ...]:
    return (_zstandard().ZstdError,) if kind == "zst" else ()


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            "Unpacking a .zst needs the package zstandard, which is not installed. Expected it here, or the table as "
            "it is or in a gz; install it with pip install zstandard, or unpack the file first."
        ) from None
    return zstandard


def _open_zstd(path: Path) -> IO[bytes]:
    # The window is how much memory a file may ask for; 2^27 bytes is what the zstd program takes by default.
    reader = _zstandard().ZstdDecompressor(max_window_size=2**27)
    return reader.stream_reader(path.open("rb"), read_across_frames=True, closefd=True)


# --- both -----------------------------------------------------------------------------------------------------------


def _written(packed: IO[bytes], scratch: Path, *, name: str, packed_size: int | None) -> Path:
    """The unpacked bytes on disk, watched while they come: what an archive says about its size is not believed."""
    path, size = scratch / f"unpacked-{len(list(scratch.iterdir()))}", 0
    with path.open("wb") as target:
        while piece := packed.read(_PIECE):
            size += len(piece)
            if _is_bomb(size, MOST_BYTES if packed_size is None else packed_size):
                raise _bomb(name, size, packed_size)
            target.write(piece)
    if not size:
        raise DataError(f"{name} is empty. {EXPECTED}, with a text and a label in each row.")
    return path


def _is_bomb(size: int, packed_size: int) -> bool:
    return size > MOST_BYTES or (size > RATIO_FROM_BYTES and size / max(1, packed_size) > MOST_RATIO)


def _bomb(name: str, size: int, packed_size: int | None) -> DataError:
    times = f", {size / max(1, packed_size):.0f} times its packed size" if packed_size else ""
    return DataError(
        f"{name} would unpack to {size:,} bytes or more{times}. Expected at most {MOST_BYTES:,} bytes and {MOST_RATIO} "
        "times; if you trust it, unpack it and give the table itself."
    )
