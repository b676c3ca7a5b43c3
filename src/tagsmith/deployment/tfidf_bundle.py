"""The TF-IDF baseline of a bundle as a bundle of its own: a megabyte that answers with numpy alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsmith.data.earlier import SPLITS
from tagsmith.deployment.baselines import BASELINE, read_baselines, write_baselines
from tagsmith.deployment.bundle import Bundle
from tagsmith.deployment.recipe import SETTINGS, read_settings
from tagsmith.deployment.saving import write_probes
from tagsmith.deployment.tfidf_engine import open_tfidf
from tagsmith.model.decision import plain_of

if TYPE_CHECKING:
    from tagsmith.model.lexical import Lexical

KIND = "tfidf"
_KEPT = (SPLITS, "run.json")
_OF_THE_LLM = (
    *("before_tuning", "test_clean", "test_leaked", "seeds", "spread", "curves", "candidates", "forecast"),
    *("calibration", "book"),
)


def fill_tfidf(folder: Path, aside: Path) -> None:
    """Write into `aside` the baseline of the bundle in `folder`, its scores and all of the recipe that concerns it."""
    settings = read_settings(folder)
    shutil.copytree(folder / BASELINE, aside / BASELINE)
    for name in _KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, aside / name)
    own = _settings(folder, settings)
    (aside / SETTINGS).write_text(json.dumps(own, indent=1, ensure_ascii=False), encoding="utf-8")
    write_probes(aside, open_tfidf(aside, own))
    if (folder / "report.json").is_file():
        report = _report(json.loads((folder / "report.json").read_text(encoding="utf-8")))
        (aside / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(_card(report, own), encoding="utf-8")


def write_student(folder: Path, aside: Path, lexical: Lexical, counts: Sequence[float]) -> Bundle:
    """Write into `aside` a bundle, but for its report, for a student of the one in `folder`, and give it.

    `counts (C,)` are the labels' training rows.
    """
    write_baselines(aside, lexical, [count / sum(counts) for count in counts])
    if (folder / SPLITS).is_file():
        shutil.copyfile(folder / SPLITS, aside / SPLITS)
    own = _settings(aside, read_settings(folder))
    (aside / SETTINGS).write_text(json.dumps(own, indent=1, ensure_ascii=False), encoding="utf-8")
    engine = open_tfidf(aside, own)
    write_probes(aside, engine)
    return Bundle(aside, engine, own, {})


def write_student_report(bundle: Bundle, report: Mapping[str, Any], *, run: Mapping[str, Any]) -> None:
    """Write the report of a student, what differs from run to run, and the card."""
    for name, plain in (("report.json", report), ("run.json", run)):
        (bundle.folder / name).write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (bundle.folder / "README.md").write_text(_card(report, bundle.settings), encoding="utf-8")


def _settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    thresholds = read_baselines(folder).thresholds.get("tfidf")
    kept = {key: value for key, value in settings.items() if key not in ("engines", "backbone", "hybrid")}
    return {
        **kept,
        "kind": KIND,
        "hugging_face": False,
        "thresholds": plain_of(thresholds),
        "model": {"pairs": settings["model"]["pairs"]},
        "calibration": {"temperature": 1.0, "offset": None, "folded_into_head": True},
    }


def _report(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with TF-IDF in the place of the LLM; the verdict still says how the two compare."""
    own = {key: value for key, value in report.items() if key not in _OF_THE_LLM}
    model = {"backbone": "TF-IDF with a linear model", "hugging_face": False, "method": "lexical"}
    return {**own, "test": report["baselines"]["tfidf"], "model": model}


def _card(report: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    measure = "micro_f1" if settings["multi_label"] else "accuracy"
    score = 100 * report["test"][measure]["value"]
    return "\n".join(
        [
            "---",
            "library_name: tagsmith",
            "pipeline_tag: text-classification",
            "---",
            "",
            "# A TF-IDF classifier made with Tagsmith",
            "",
            f"Labels: {', '.join(json.dumps(name, ensure_ascii=False) for name in settings['labels'][:20])}",
            "",
            f"{measure.replace('_', ' ').capitalize()} on {report['test']['n']} test rows: {score:.1f} %.",
            f"It was fitted beside an LLM, and compares with it as follows. {report['verdict']['text']}",
            "",
            "`baseline/vocabulary.json` holds words of two or more training texts.",
            "",
        ]
    )
