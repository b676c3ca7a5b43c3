"""What a run is called: the command that repeats it, the folder that it writes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from tagsmith.config import Config, fields, parse_setting
from tagsmith.data.readers import is_url, redacted
from tagsmith.data.table import Table

Source = str | Path | Table


def reproduce(source: Source, *, validation: Source | None = None, test: Source | None = None, config: Config) -> str:
    """The command that repeats a run: every setting that is not the plan's own, spelt out."""
    words = ["tagsmith", "train", name_of(source), "--preset", "fixed"]
    for option, value in (("--validation", validation), ("--test", test)):
        words += [option, name_of(value)] if value is not None else []
    chosen = config.model_dump()
    for name, _, default in fields():
        section, _, key = name.rpartition(".")
        value = chosen[section][key] if section else chosen[key]
        if value != default:
            words += ["--set", _assignment(name, value)]
    return shlex.join(words)


def _assignment(name: str, value: Any) -> str:
    """`section.key=value`; a string is quoted where it would be read as something else, such as a column `2024`."""
    plain = f"{name}={'none' if value is None else value}"
    return f"{name}={_toml(value)}" if parse_setting(plain) != _nested(name, value) else plain


def _toml(value: Any) -> str:
    """A value as TOML writes it, which is JSON but for tables."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key, ensure_ascii=False)} = {_toml(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=False)


def _nested(name: str, value: Any) -> Any:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def default_out(source: Source, *, resume: bool = False) -> Path:
    """`./NAME-tagsmith`, or the first of `-2`, `-3` ... that is free; with `resume` the one that has a checkpoint."""
    name = "stdin" if name_of(source) == "-" else _stem(name_of(source))
    n = 1
    while True:
        folder = Path(f"{name}-tagsmith" + (f"-{n}" if n > 1 else ""))
        if resume and folder.with_name(f"{folder.name}.checkpoint").exists():
            return folder
        if not folder.exists():
            return folder
        n += 1


def _stem(name: str) -> str:
    """The name of a file without its endings, of a database, or of the folder where a pattern looks."""
    path = Path(name.partition("?")[0] if is_url(name) else name)
    stems = (re.sub(r"[*?\[\]:]+", "-", part.split(".")[0]).strip("-") for part in (path.name, path.parent.name))
    return next((stem for stem in stems if stem), "table")


def name_of(source: Source) -> str:
    """What a source is called in a command, without passwords; `TABLE` for one handed over in memory."""
    return "TABLE" if isinstance(source, Table) else redacted(source)
