"""The reports of several bundles, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagsmith.deployment.manifest import verify
from tagsmith.evaluation.side_by_side import Named, short_names, side_by_side


def compared(folders: Sequence[Path]) -> tuple[list[Named], dict[str, Any]]:
    """The reports of bundles, and what `side_by_side` says of them. BundleError for one that is damaged."""
    for folder in folders:
        verify(folder)
    names = short_names([str(folder.resolve()) for folder in folders])
    reports = [
        Named(name, _read(folder / "report.json"), _read(folder / "run.json"))
        for name, folder in zip(names, folders, strict=True)
    ]
    return reports, side_by_side(reports)


def draw_compared(reports: Sequence[Named], found: Mapping[str, Any]) -> str:
    """The page of it."""
    from tagsmith.evaluation.page.comparing import draw_comparison

    return draw_comparison(reports, found)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
