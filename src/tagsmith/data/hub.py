"""A data set of the Hugging Face hub as files at hand: its tables only, none of its code is ever run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from tagsmith.assets import is_offline, require_hub
from tagsmith.data.archives import TABLE_SUFFIXES
from tagsmith.data.files import File, first_line, listed
from tagsmith.data.sources import file_at
from tagsmith.errors import DataError

_SPLITS = {"train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation"} | {
    "val": "validation", "dev": "validation",
}  # fmt: skip
_CONVERTED = "refs/convert/parquet"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class _Wanted:
    repository: str
    folder: str | None
    split: str | None


def is_hub(source: str | Path) -> bool:
    """Whether a source is `hf:NAME`."""
    return isinstance(source, str) and source.startswith("hf:")


def hub_files(source: str) -> list[File]:
    """The tables of `hf:NAME`, `hf:NAME:SPLIT` or `hf:OWNER/NAME/FOLDER:SPLIT`, fetched or from the hub's own cache.

    AssetError when the hub cannot be reached, DataError when it has no such tables.
    """
    wanted = _wanted(source)
    if is_offline():
        folder = _cached(wanted.repository, source)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        chosen = _chosen(names, wanted, source)
        note = f"{source} at revision {folder.name[:12]}, from the cache"
        return [File(name, file_at(folder / name).path, (note,)) for name in chosen]
    return _fetched(wanted, source, require_hub(f"datasets/{wanted.repository}"))


def _wanted(source: str) -> _Wanted:
    found = re.fullmatch(r"hf:([\w.-]+(?:/[\w.-]+)?)(?:/([\w./-]+))?(?::([\w.-]+))?", source)
    if found is None:
        raise DataError(f"'{source}' names no data set. Expected hf:OWNER/NAME or hf:OWNER/NAME:SPLIT, as on the hub.")
    return _Wanted(found[1], found[2], found[3])


def _cached(repository: str, source: str) -> Path:
    """The folder of the revision that was fetched last."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}" / "snapshots"
    revisions = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime)
    if not revisions:
        _refuse(source, "offline is set, and the hub's cache does not hold it")
    return revisions[-1]


def _fetched(wanted: _Wanted, source: str, endpoint: str) -> list[File]:
    from huggingface_hub import HfApi, hf_hub_download

    api, revision = HfApi(endpoint=endpoint), None
    try:
        info = api.dataset_info(wanted.repository, timeout=_PATIENCE_S)
        names = [entry.rfilename for entry in info.siblings or ()]
        if not _tables(names):
            # Made by code of its own; the hub keeps a copy of what that gives.
            info = api.dataset_info(wanted.repository, revision=_CONVERTED, timeout=_PATIENCE_S)
            names = [entry.rfilename for entry in info.siblings or ()]
        chosen, revision = _chosen(names, wanted, source), info.sha
        paths = [
            hf_hub_download(
                wanted.repository, name, repo_type="dataset", revision=revision, endpoint=endpoint,
                etag_timeout=_PATIENCE_S,
            )
            for name in chosen
        ]  # fmt: skip
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - the client lets errors of its HTTP library through
        _refuse(source, first_line(error))
    note = f"{source} at revision {str(revision)[:12]}"
    return [File(name, file_at(Path(path)).path, (note,)) for name, path in zip(chosen, paths, strict=True)]


# --- which of its files ---------------------------------------------------------------------------------------------


def _tables(names: Sequence[str]) -> list[str]:
    """The tables, those in Parquet alone where there are any: they have types, and the others tend to be copies."""
    tables = [
        name
        for name in names
        if TABLE_SUFFIXES & set(PurePosixPath(name.lower()).suffixes[-2:])
        and not re.match(r"(readme|licen[cs]e|dataset_infos?|state|dataset_dict)\.", PurePosixPath(name.lower()).name)
    ]
    return [name for name in tables if name.endswith(".parquet")] or tables


def _chosen(names: Sequence[str], wanted: _Wanted, source: str) -> list[str]:
    tables = _tables(names)
    if wanted.folder:
        tables = [name for name in tables if f"/{name}".startswith(f"/{wanted.folder.strip('/')}/")]
    splits: dict[str | None, list[str]] = {}
    for name in sorted(tables):
        splits.setdefault(_split_of(name), []).append(name)
    if not splits:
        _refuse(source, f"it holds no table, but {listed(names) or 'nothing'}")
    asked = _SPLITS.get(wanted.split, wanted.split) if wanted.split else None
    split = asked or ("train" if "train" in splits else next(iter(splits)))
    if split not in splits or (asked is None and split != "train" and len(splits) > 1):
        _refuse(source, f"it has the splits {listed([str(name) for name in splits])}; name one as in hf:NAME:test")
    folders = {str(PurePosixPath(name).parent) for name in splits[split]}
    if len(folders) > 1:
        _refuse(source, f"it has the folders {listed(sorted(folders))}; name one as in hf:OWNER/NAME/FOLDER")
    return splits[split]


def _split_of(name: str) -> str | None:
    """The split that the words of a path name, the file's own before its folders'."""
    for part in reversed(PurePosixPath(name.lower()).parts):
        for word in re.split(r"[^a-z]+", part):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _refuse(source: str, reason: str) -> NoReturn:
    raise DataError(
        f"'{source}' could not be read from the hub: {reason.rstrip('.')}. Check the name and the network, or give "
        "a file."
    ) from None
