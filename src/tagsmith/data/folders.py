"""A folder as a source: one sub-folder of texts per label, or what `datasets.save_to_disk` left."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tagsmith.data.archives import TABLE_SUFFIXES
from tagsmith.data.cells import frame_of, joined
from tagsmith.data.columnar import named_classes, read_arrow
from tagsmith.data.encodings import decoded
from tagsmith.data.files import EXPECTED, MOST_BYTES, Raw, listed, refuse_binary
from tagsmith.data.sources import file_at
from tagsmith.errors import DataError

_PACKED = frozenset({".zip", ".gz", ".zst"})


def read_folder(folder: Path) -> Raw:
    """The texts of a folder; DataError for one that is neither of the two kinds, with what could be meant."""
    if (folder / "state.json").is_file():
        return _read_saved(folder)
    if (folder / "dataset_dict.json").is_file():
        return _read_saved_splits(folder)
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"The folder '{folder}' cannot be opened: {error.strerror}. Check its permissions.") from None
    labels = [entry for entry in entries if entry.is_dir()]
    tables = [entry.name for entry in entries if _is_table(entry)]
    if tables:
        raise DataError(
            f"'{folder}' is a folder with the tables {listed(tables)}. Expected one of them: name it, or all that "
            f"belong together with a pattern such as '{folder}/*{Path(tables[0]).suffix}'."
        )
    if not labels:
        raise DataError(f"'{folder}' is a folder without sub-folders. {EXPECTED}; name one file in it.")
    return _read_classes(folder, labels)


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (TABLE_SUFFIXES | _PACKED) - {".txt"}


# --- a sub-folder per label -----------------------------------------------------------------------------------------


def _read_classes(folder: Path, labels: list[Path]) -> Raw:
    nested = [entry for label in labels for entry in sorted(label.iterdir()) if entry.is_dir()]
    split_like = [label.name for label in labels if label.name.casefold() in ("train", "test", "validation", "dev")]
    if split_like and nested:
        raise DataError(
            f"'{folder}' has the sub-folders {listed(split_like)}, which look like splits. Expected a folder per "
            f"label: give '{folder / split_like[0]}', and the others with --validation and --test."
        )
    told: Counter[str] = Counter()
    frame, _ = frame_of(["text", "label", "file"], _texts(folder, labels, told))
    if not frame.height:
        raise DataError(f"The sub-folders of '{folder}' hold no files. Expected one text in each file; check the path.")
    hidden = told.pop("hidden", 0)
    ways = "".join(f"; {count:,} files decoded from {encoding}" for encoding, count in told.items())
    skipped = f"; {hidden:,} hidden files left out" if hidden else ""
    names = [label.name for label in labels]
    return Raw(
        frame, f"read as a folder per label, {listed(names)}, one text in each of {frame.height:,} files{ways}{skipped}"
    )


def _texts(folder: Path, labels: list[Path], told: Counter[str]) -> Iterator[tuple[str, str, str]]:
    size = 0
    for label in labels:
        for path in _files_below(label):
            if path.name.startswith("."):
                told["hidden"] += 1
                continue
            if path.stat().st_size == 0:
                yield "", label.name, str(path.relative_to(folder))
                continue
            data = file_at(path).path.read_bytes()
            size += len(data)
            if size > MOST_BYTES:
                raise DataError(f"The files below '{folder}' hold more than {MOST_BYTES:,} bytes. Give fewer of them.")
            text, encoding = decoded(data)
            if "\0" in text:
                refuse_binary(str(path), "a zero byte")
            if encoding not in ("utf-8", "utf-8-sig"):
                told[encoding] += 1
            yield text, label.name, str(path.relative_to(folder))


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(parent) / name


# --- saved by Hugging Face's datasets -------------------------------------------------------------------------------


def _read_saved_splits(folder: Path) -> Raw:
    splits = [str(name) for name in _json_of(folder / "dataset_dict.json").get("splits", [])]
    if len(splits) == 1:
        return _read_saved(folder / splits[0])
    raise DataError(
        f"'{folder}' holds the splits {listed(splits)}. Expected one of them: give "
        f"'{folder / (splits or ['train'])[0]}', and the others with --validation and --test."
    )


def _read_saved(folder: Path) -> Raw:
    files = [str(entry.get("filename")) for entry in _json_of(folder / "state.json").get("_data_files", [])]
    if not files or any(Path(name).name != name for name in files):
        raise DataError(f"'{folder / 'state.json'}' names no data files of its own folder. Save the data set again.")
    features = _json_of(folder / "dataset_info.json").get("features") or {}
    frame: pl.DataFrame = joined([read_arrow(file_at(folder / name)).frame for name in files])
    frame, told = named_classes(frame, features)
    return Raw(
        frame, f"read as a folder saved by Hugging Face's datasets, {len(files)} files, {listed(frame.columns)}{told}"
    )


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' could not be read ({type(error).__name__}). Save the data set again.") from None
    return content if isinstance(content, dict) else {}
