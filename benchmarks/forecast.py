"""What a forecast said before the first step, against what came: seconds, memory and disk of several plans.

Each plan runs in a process of its own (cells.py), its states not yet in the cache; finished ones are kept under
build/benchmarks and reused. Times count from the forecast to the saved bundle with its report. Where tuning stopped
early, the steps and evaluations that were not made are taken off the forecast: it is of all epochs.

    python benchmarks/forecast.py --write docs/benchmarks/forecast.md
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peers
from cells import answered, cell, machine

PLANS = {
    "book": "the book's recipe, its split: 30 blocks, the last one learns",
    "sms": "default settings, sms_spam",
    "trec": "trec6, 1,500 rows, 16 blocks, all learn, one epoch",
    "minilm": "banking77, 2,000 rows, all-MiniLM-L6, full",
    "lora": "trec6, 1,000 rows, 16 blocks, LoRA, one epoch",
    "head": "trec6, 2,000 rows, 16 blocks, the head alone",
}


def main() -> None:
    """Run the plans that were not run yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=",".join(PLANS), help="names with commas")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    names = arguments.plans.split(",")
    page = _page({name: cell(__file__, "run", plan=name) for name in names})
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


def _page(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Forecast and truth",
        "",
        "Command: `python benchmarks/forecast.py --write docs/benchmarks/forecast.md`.",
        f"Machine: {machine()}. Date: {datetime.now(UTC):%Y-%m-%d}.",
        "The error is that of the forecast against the truth. Seconds are from the forecast to the saved bundle; those",
        "of measuring stand apart. Where tuning stopped early, the forecast is that of the steps that were made.",
        "Memory is the most that the process held; disk is that of the bundle and of kept states.",
        "",
        "| plan | seconds | truth | error | measuring | GiB of memory | truth | error | MiB of disk | truth | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        cells = [PLANS[name], *_pair(each["seconds"], 1), f"{each['took']:.1f}"]
        cells += [*_pair(each["memory"], 2**30), *_pair(each["disk"], 2**20)]
        lines.append("| " + " | ".join(cells) + " |")
    parts = [f"- {PLANS[name]}: {_told(each['parts'])}; came {_told(each['came'])}" for name, each in found.items()]
    return "\n".join([*lines, "", "Parts of the forecast, and what came, in seconds:", "", *parts, ""])


def _pair(pair: list[float], unit: float) -> list[str]:
    forecast, truth = (value / unit for value in pair)
    return [f"{forecast:.1f}", f"{truth:.1f}", f"{100 * (forecast / truth - 1):+.0f} %"]


def _told(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())


# ---- cells


def _run(*, plan: str) -> dict[str, Any]:
    import tagsmith
    from tagsmith.tuning import loop

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        loop.cache_folder = lambda: folder / "cache"  # each run is a first run
        sources, config = _sources(plan, folder)
        listener = Stopwatch()
        report = tagsmith.train(**sources, out=folder / "bundle", config=config, listen=listener).report
        run = json.loads((folder / "bundle" / "run.json").read_text(encoding="utf-8"))
        states = sum(path.stat().st_size for path in (folder / "cache").rglob("*.states"))
    forecast, truth, planned = run["forecast"], run["truth"], report["forecast"]
    parts = {part: value for part, value in forecast["seconds"].items() if part not in ("total", "least")}
    share = report["model"]["steps"] / planned["steps"] if planned["steps"] else 1.0
    seconds = forecast["seconds"]["total"] - (1 - share) * (parts["steps"] + parts["evaluations"])
    disk = planned["disk_bytes"]
    return {
        "seconds": [seconds, truth["seconds"]],
        "memory": [forecast["memory_bytes"], truth["memory_bytes"]],
        "disk": [disk["bundle"] + disk["cache"], truth["bundle_bytes"] + states],
        "took": forecast["took"],
        "parts": parts,
        "came": {**listener.seconds, **{stage: run["timing"][stage] for stage in ("deployment", "evaluation")}},
    }


class Stopwatch:
    """A listener that adds up seconds between events of tuning, by the later one's name, from the forecast on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._before: float | None = None

    def __call__(self, event: Any) -> None:
        """Count the time since the event before."""
        now = time.perf_counter()
        if self._before is not None and event.name in ("frozen", "step", "evaluated", "probe"):
            self.seconds[event.name] = self.seconds.get(event.name, 0.0) + now - self._before
        if self._before is not None or event.name == "forecast":
            self._before = now


def _sources(name: str, folder: Path) -> tuple[dict[str, Path], Any]:
    from tagsmith.config import Config, settings_of

    if name == "book":
        changes = {"data": {"text": "Text", "label": "Label", "split": "group"}, "model": {"backbone": peers.BACKBONE}}
        split = peers.DATA / "sms_spam" / "book_split"
        given = {"source": split / "train.csv", "validation": split / "validation.csv", "test": split / "test.csv"}
        return given, Config.of(settings_of("book")).with_settings(changes)
    if name == "sms":
        return {"source": peers.DATA / "sms_spam" / "SMSSpamCollection.tsv"}, Config()
    if name == "minilm":
        model = {"backbone": "minilm-l6", "layers": "all"}
        return _drawn("banking77", 2000, folder), Config.of({"model": model, "tuning": {"method": "full"}})
    rows, tuning = {
        "trec": (1500, {"blocks": 16, "epochs": 1}),
        "lora": (1000, {"method": "lora", "epochs": 1}),
        "head": (2000, {"method": "head"}),
    }[name]
    return _drawn("trec6", rows, folder), Config.of({"model": {"layers": 16}, "tuning": tuning})


def _drawn(dataset: str, rows: int, folder: Path) -> dict[str, Path]:
    import polars as pl

    path = peers.DATA / dataset / "train.parquet"
    if not path.exists():
        sys.exit(f"{dataset} is not at {path.parent}: this benchmark needs it.")
    source = folder / f"{dataset}.csv"
    frame = pl.read_parquet(path).sample(rows, seed=1)
    frame.select("text", pl.col("label").cast(pl.String)).write_csv(source)
    return {"source": source}


CELLS = {"run": _run}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
