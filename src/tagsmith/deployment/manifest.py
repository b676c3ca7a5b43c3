"""Saved whole or not at all: a folder is written aside, hashed, flushed and renamed; altered files are never loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from safetensors import SafetensorError

from tagsmith.errors import BundleError, ResourceError, SettingError, disk_errno

FORMAT = 1
MANIFEST = "MANIFEST.json"
UNHASHED = frozenset({"README.md", "run.json", "report.html", MANIFEST})
"""Files for people, which may be edited or carry dates; nothing that answers reads them."""


@contextmanager
def staging(folder: Path, *, force: bool, manifest: bool = True) -> Iterator[Path]:
    """A folder beside `folder` to fill; it takes that name when the block ends well, and is gone when it does not.

    Without `manifest` it becomes no bundle.

    Raises:
        SettingError: `folder` exists and `force` is not given.
        ResourceError: the disk is full or cannot be written.
    """
    refuse_existing(folder, force=force)
    aside = folder.parent / f".{folder.name}.{os.getpid()}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if manifest:
            _write_manifest(aside)
        _open_to_readers(aside)
        _flush(aside)
        _swap(aside, folder, force=force)
    except (OSError, SafetensorError) as error:
        number = disk_errno(error) or 0
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG):
            raise ResourceError(
                f"Cannot write '{folder}': {os.strerror(number)}. Expected a folder with room for the bundle. "
                "Free some space, or choose another place with --out. Nothing was left behind."
            ) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open_to_readers(aside: Path) -> None:
    """Let whoever may read the folder read its files: safetensors writes weights that only their owner can.

    A server of another user would refuse the bundle otherwise. The folder's own rights are what the user's umask left.
    """
    shared = aside.stat().st_mode & 0o666
    for path in aside.rglob("*"):
        if path.is_file():
            path.chmod(shared)


def flush_meanwhile(aside: Path) -> None:
    """Begin to bring to the disk what lies in a staging folder, while the caller goes on with other work.

    `staging` flushes everything at its end in any case; what is on the disk by then costs nothing, and a gigabyte of
    weights took seconds.
    """
    Thread(target=_flush_what_is_left, args=(aside,), daemon=True).start()


def _flush_what_is_left(aside: Path) -> None:
    with suppress(OSError):  # the folder may be gone already; `staging` reports what is wrong with the disk
        _flush(aside)


def refuse_existing(folder: Path, *, force: bool) -> None:
    """SettingError when `folder` exists and was not given up by `force`."""
    if folder.exists() and not force:
        raise SettingError(f"'{folder}' exists. Choose another name with --out, or give --force to replace it.")


def verify(folder: Path) -> None:
    """Check every file of a bundle against its manifest.

    Raises:
        BundleError: no bundle, another format version, or a file that is absent, truncated or altered; it is named.
    """
    files = _read_manifest(folder)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(
                f"The bundle '{folder}' lacks '{name}'. Expected all files of its manifest; copy or train it anew."
            )
        size = path.stat().st_size
        if size != expected["size"]:
            raise BundleError(
                f"'{name}' in the bundle '{folder}' has {size} bytes; expected {expected['size']}. "
                "The file was truncated or altered; copy or train the bundle anew."
            )
        if _sha256(path) != expected["sha256"]:
            raise BundleError(
                f"'{name}' in the bundle '{folder}' is not the file that was saved (its SHA-256 differs). "
                "Copy or train the bundle anew."
            )


def _read_manifest(folder: Path) -> dict[str, dict[str, int | str]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"'{folder}' is no Tagsmith bundle: it has no {MANIFEST}. Expected a folder that `tagsmith train` wrote."
        )
    try:
        manifest = json.loads(path.read_bytes())
        files, version, digest = manifest["files"], manifest["format"], manifest["sha256"]
        whole = path.read_bytes() == _manifest_bytes(files, version)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole, version, digest, files = False, FORMAT, "", {}
    if not whole or digest != _digest(files):
        raise BundleError(
            f"'{MANIFEST}' in the bundle '{folder}' was truncated or altered. Copy or train the bundle anew."
        )
    if version != FORMAT:
        raise BundleError(
            f"The bundle '{folder}' has format {version} in its {MANIFEST}; this release reads format {FORMAT}. "
            "Install the release that wrote it."
        )
    return files


def _write_manifest(folder: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = {
        name: {"sha256": _sha256(folder / name), "size": (folder / name).stat().st_size}
        for name in names
        if name not in UNHASHED
    }
    (folder / MANIFEST).write_bytes(_manifest_bytes(files, FORMAT))


def _manifest_bytes(files: dict, version: int) -> bytes:
    return json.dumps({"format": version, "sha256": _digest(files), "files": files}, indent=1).encode()


def _digest(files: dict) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _swap(aside: Path, folder: Path, *, force: bool) -> None:
    old = folder.parent / f".{folder.name}.{os.getpid()}.old"
    if folder.exists() and force:
        folder.rename(old)
    try:
        aside.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def unlisted(folder: Path) -> Sequence[str]:
    """Files of a bundle that its manifest does not know: worth a warning, never read."""
    listed = _read_manifest(folder)
    return [
        name
        for name in sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if name not in listed and name not in UNHASHED
    ]
