"""What a bundle says about itself: probes to check copies by, the report as data and as a page, the card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagsmith.deployment.engine import Engine
    from tagsmith.evaluation.page.texts import PageTexts
    from tagsmith.evaluation.report import Report

PROBES = (
    "Your parcel is waiting, confirm the address to receive it today.",
    "Could you send me the notes from this morning's meeting?",
    "The room was clean and the staff were kind, but breakfast was cold.",
    "How do I change the limit on my card?",
)
"""Synthetic texts whose logits are kept in the bundle, so that any copy of it can be checked in a second."""


def write_probes(folder: Path, engine: Engine) -> None:
    """Keep synthetic texts with their logits, to check copies and exports by."""
    logits_NC = engine.logits_of(engine.encode(PROBES))
    lines = [
        json.dumps({"text": text, "logits": [float(x) for x in row]})
        for text, row in zip(PROBES, logits_NC, strict=True)
    ]
    (folder / "probe.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_report(folder: Path, report: Mapping[str, Any], *, run: Mapping[str, Any], texts: PageTexts) -> None:
    """Write the report as JSON and as a page, which alone has `texts`, the facts of the run, and the model card."""
    from tagsmith.deployment.card import card
    from tagsmith.evaluation.page.drawing import draw

    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(draw(report, run, texts), encoding="utf-8")
    (folder / "README.md").write_text(card(report), encoding="utf-8")


def refuse_evaluation(out: str | Path | None, page: str | Path | None, *, force: bool) -> None:
    """SettingError when a file of an evaluation exists and was not given up by `force`."""
    from tagsmith.errors import SettingError

    files = [] if out is None else [Path(out) / name for name in ("report.json", "report.html")]
    for file in [*files, *([] if page is None else [Path(page)])]:
        if file.exists() and not force:
            raise SettingError(f"'{file}' exists. Expected a new name; choose another, or give --force to replace it.")


def write_evaluation(
    report: Report,
    texts: PageTexts,
    *,
    run: Mapping[str, Any],
    out: str | Path | None,
    page: str | Path | None,
) -> None:
    """Write what was measured on other rows into `out`, and its page alone as `page`; `run` is what run.json says."""
    from tagsmith.evaluation.page.drawing import draw

    pages = [] if page is None else [Path(page)]
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "report.json").write_text(report.to_json(), encoding="utf-8")
        (Path(out) / "run.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        pages.append(Path(out) / "report.html")
    if pages:
        drawn = draw(report.as_dict(), run, texts)
        for path in pages:
            path.write_text(drawn, encoding="utf-8")
