"""What ideas bring where a set falls short, each against the recipe that a search tries first, on rows of the training.

A quarter of a set's training rows (at most 2,000) is held out and answered; the test rows are not read. From the others
`--rows` are drawn for each seed, and learnt from by the recipe as it is and by the recipe with one thing changed. All
of them answer the same rows, so that differences are paired; each is a cell in a process of its own (cells.py).

    python benchmarks/ideas.py --sets emotion,trec6 --rows 2000 --seeds 3 --write docs/benchmarks/ideas.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from cells import answered, cell, machine
from peers import DATA
from quality import ENCODER, GOALS, difference, score

MOST_HELD = 2000

RECIPE: Mapping[str, Any] = {
    "method": "last_layers",
    "blocks": 6,
    "learning_rate": 3e-4,
    "layer_decay": 0.9,
    "start": "probe",
    "epochs": 4,
    "batch_size": 32,
    "average": "best",
    "patience": 4,
    "choose_calibrated": True,
}
"""What a search tries first of an encoder of six blocks."""

IDEAS: Mapping[str, Mapping[str, Any]] = {
    "the recipe": {},
    "three tunings averaged": {"tuning": {"soup": 3}},
    "stacked with TF-IDF": {"tuning": {"hybrid": "stacking"}},
    "averaged with TF-IDF": {"tuning": {"hybrid": "average"}},
    "the validation rows learnt from too": {"tuning": {"refit": True}},
    "a random head": {"tuning": {"start": "random"}},
    "a moving average of the weights": {"tuning": {"average": "ema"}},
    "label smoothing of 0.1": {"tuning": {"label_smoothing": 0.1}},
    "focal loss": {"tuning": {"loss": "focal"}},
    "eight epochs": {"tuning": {"epochs": 8}},
    "one epoch": {"tuning": {"epochs": 1}},
    "two epochs": {"tuning": {"epochs": 2}},
    "the last two blocks for three epochs": {"tuning": {"blocks": 2, "epochs": 3}},
    "a head alone": {"tuning": {"method": "head", "average": "none"}},
    "a head alone stacked with TF-IDF": {"tuning": {"method": "head", "average": "none", "hybrid": "stacking"}},
    "a rate of 1e-4": {"tuning": {"learning_rate": 1e-4}},
    "a rate of 6e-4": {"tuning": {"learning_rate": 6e-4}},
    "no decay of the rate by block": {"tuning": {"layer_decay": 1.0}},
    "steps of 16 rows": {"tuning": {"batch_size": 16}},
    "adapters of rank 16": {"tuning": {"method": "lora", "learning_rate": 5e-4, "layer_decay": 1.0}},
    "the first token's state": {"model": {"pooling": "first"}},
    "four blocks": {"model": {"layers": 4}, "tuning": {"blocks": 4}},
}


def main() -> None:
    """Run the cells that were not run yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="emotion,trec6,sst2,banking77,clinc150", help="names with commas")
    parser.add_argument("--ideas", default=",".join(IDEAS), help="names with commas; the recipe is always there")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    ideas = list(dict.fromkeys(["the recipe", *arguments.ideas.split(",")]))
    seeds = range(1, arguments.seeds + 1)
    lines = [
        "# What ideas bring",
        "",
        f"Command: `python benchmarks/ideas.py --sets {arguments.sets} --rows {arguments.rows} --seeds {len(seeds)}`.",
        f"Machine: {machine()}. Date: {datetime.now(UTC):%Y-%m-%d}. Seeds from 1.",
        f"{ENCODER}, all six blocks, mean pooling, learns from {arguments.rows:,} rows. The measure, in per cent, is",
        f"that of training rows held out (up to {MOST_HELD:,}), which all answer; differences are points, paired, with",
        "95 % intervals (rows resampled): means over seeds, each of which draws rows of its own.",
        "",
    ]
    for name in arguments.sets.split(","):
        runs = {
            idea: [cell(__file__, "idea", data=name, idea=idea, rows=arguments.rows, seed=seed) for seed in seeds]
            for idea in ideas
        }
        lines += _table(name, runs)
    page = "\n".join(lines)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


def _idea(*, data: str, idea: str, rows: int, seed: int) -> dict[str, Any]:
    """What a training with one thing changed answers of the rows held out."""
    import tagsmith
    from tagsmith.config import Config, merge

    unseen, known = _drawn(data, seed=seed)
    changes: dict[str, Any] = {"data": {"test_share": 0.02}, "seed": seed}
    if GOALS[data][0] == "macro_f1":
        changes["evaluation"] = {"metric": "macro_f1"}
    model = {"backbone": ENCODER, "layers": 6, "pooling": "mean"}
    config = Config.of(merge({"model": model, "tuning": RECIPE}, changes, IDEAS[idea]))
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.parquet"
        known.head(rows).write_parquet(table)
        started = time.perf_counter()
        bundle = tagsmith.train(table, out=Path(folder) / "bundle", config=config)
        seconds = time.perf_counter() - started
        return {"answers": bundle.predict(unseen["text"].to_list()), "seconds": seconds}


def _drawn(data: str, *, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training rows that are held out, and the others; equal texts are on one side."""
    frame = pl.read_parquet(DATA / data / "train.parquet", columns=["text", "label"])
    frame = frame.with_columns(pl.col("label").cast(pl.String)).unique("text", maintain_order=True)
    frame = frame.sample(fraction=1.0, shuffle=True, seed=seed)
    held = min(len(frame) // 4, MOST_HELD)
    return frame.head(held), frame.slice(held)


def _table(name: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    measure = GOALS[name][0]
    truths = [_drawn(name, seed=seed)[0]["label"].to_list() for seed in range(1, len(runs["the recipe"]) + 1)]
    lines = [
        f"## {name}",
        "",
        f"| idea | {measure} | against the recipe | seconds |",
        "|---|---|---|---|",
    ]
    for idea, found in runs.items():
        own, plain = (
            [100 * score(truth, run["answers"], measure=measure) for truth, run in zip(truths, each, strict=True)]
            for each in (found, runs["the recipe"])
        )
        low, high = np.mean(
            [
                difference(truth, run["answers"], base["answers"], measure=measure)
                for truth, run, base in zip(truths, found, runs["the recipe"], strict=True)
            ],
            axis=0,
        )
        gain = statistics.mean(own) - statistics.mean(plain)
        told = "" if idea == "the recipe" else f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"
        seconds = statistics.mean(run["seconds"] for run in found)
        lines.append(f"| {idea} | {statistics.mean(own):.1f} | {told} | {seconds:.0f} |")
    return [*lines, ""]


CELLS = {"idea": _idea}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
