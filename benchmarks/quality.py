"""How good `tagsmith train` is with nothing set by hand, on real data sets and several seeds, within a budget.

Training sees the training rows (and the validation rows where a set has its own); a fiftieth of them is the test part
that every training wants, so that the labels of the real test rows are nowhere near it. The bundle then answers the
test texts, and a scorer of its own, which has never seen a model, reads the labels once. Each training is a cell in a
process of its own (cells.py): finished ones are kept under build/benchmarks and reused, `--fresh` forgets them.

    python benchmarks/quality.py --seeds 3 --budget 10m --write docs/benchmarks/quality.md
"""

from __future__ import annotations

import argparse
import json
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

GOALS = {
    "trec6": ("accuracy", 97.0),
    "sst2": ("accuracy", 90.0),
    "emotion": ("macro_f1", 79.0),
    "banking77": ("accuracy", 94.0),
    "clinc150": ("accuracy", 96.5),
    "ag_news_10k": ("accuracy", 91.5),
    "imdb": ("accuracy", 91.2),
    "goemotions": ("macro_f1", 44.0),
    "hate": ("macro_f1", None),
    "xlmt_sentiment": ("macro_f1", None),
    "chnsenticorp": ("accuracy", None),
}
"""Measure and aim, in per cent, of each set; None where the aim is not to be worse than TF-IDF."""


def main() -> None:
    """Run the trainings that were not run yet, score them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(GOALS), help="names with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    found = {
        name: [
            cell(__file__, "auto", data=name, seed=seed, budget=arguments.budget)
            for seed in range(1, arguments.seeds + 1)
        ]
        for name in arguments.sets.split(",")
    }
    page = _page({name: [_scored(name, each) for each in runs] for name, runs in found.items()}, arguments)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


# ---- Trainings: they see no test label


def _auto(*, data: str, seed: int, budget: str) -> dict[str, Any]:
    """Train on a set with nothing but a budget and a seed, and answer its test texts."""
    import tagsmith
    from tagsmith.config import Config, merge, settings_of

    changes = {"tuning": {"budget": budget}, "data": {"test_share": 0.02}, "seed": seed}
    texts = pl.read_parquet(DATA / data / "test.parquet", columns=["text"])["text"].to_list()
    validation = DATA / data / "validation.parquet"
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        bundle = tagsmith.train(
            DATA / data / "train.parquet",
            validation=validation if validation.exists() else None,
            out=Path(folder) / "bundle",
            config=Config.of(merge(settings_of("auto"), changes)),
        )
        seconds = time.perf_counter() - started
        answers = {"auto": bundle.predict(texts), **_of_tfidf(bundle, texts)}
        timing = json.loads((bundle.folder / "run.json").read_text(encoding="utf-8"))["timing"]
    winner = next(each["name"] for each in bundle.report["candidates"] if each["chosen"])
    chosen_after = sum(timing[stage] for stage in ("data", "imports", "search", "model", "tuning"))
    return {"answers": answers, "seconds": seconds, "winner": winner, "chosen_after": chosen_after}


def _of_tfidf(bundle: Any, texts: Sequence[str]) -> dict[str, Any]:
    """What TF-IDF, fitted on the same rows, answers."""
    probs_NC = bundle.baseline_probabilities(texts)["tfidf"]
    if bundle.multi_label:
        chosen = probs_NC >= bundle.thresholds["tfidf"]
        return {"tfidf": [[bundle.labels[i] for i in np.flatnonzero(row)] for row in chosen]}
    return {"tfidf": [bundle.labels[i] for i in probs_NC.argmax(axis=1)]}


# ---- The scorer: it sees answers and labels, and no model


def _scored(name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """The measure of the set for each system's answers, in per cent, and how long it took."""
    truth = pl.read_parquet(DATA / name / "test.parquet")["label"].to_list()
    measure, _ = GOALS[name]
    scores = {system: 100 * _score(truth, answers, measure=measure) for system, answers in run["answers"].items()}
    return {**scores, "winner": run["winner"], "seconds": run["seconds"], "chosen_after": run["chosen_after"]}


def _score(truth: Sequence[Any], answers: Sequence[Any], *, measure: str) -> float:
    if truth and isinstance(truth[0], list):
        return _macro([set(row) for row in truth], [set(row or ()) for row in answers])
    truth = [str(label) for label in truth]
    if measure == "accuracy":
        return float(np.mean([one == two for one, two in zip(truth, answers, strict=True)]))
    return _macro([{label} for label in truth], [{label} for label in answers])


def _macro(truth: Sequence[set[str]], answers: Sequence[set[str]]) -> float:
    scores = []
    for label in sorted(set.union(*truth)):
        hits = sum(label in one and label in two for one, two in zip(truth, answers, strict=True))
        asked = sum(label in row for row in truth) + sum(label in row for row in answers)
        scores.append(2 * hits / asked)
    return float(np.mean(scores))


# ---- The page


def _page(found: Mapping[str, Sequence[Mapping[str, Any]]], arguments: argparse.Namespace) -> str:
    words = f"--sets {arguments.sets} --seeds {arguments.seeds} --budget {arguments.budget}"
    lines = [
        "# Quality with nothing set by hand",
        "",
        f"Command: `python benchmarks/quality.py {words}`.",
        f"Machine: {machine()}. Date: {datetime.now(UTC):%Y-%m-%d}. Seeds from 1.",
        "Means over seeds, smallest and largest in brackets, in per cent, on the test rows of each set, whose labels",
        "no training saw; a fiftieth of the training rows is left out of training. Seconds are those until the weights",
        "were chosen, imports among them.",
        "",
        "| set | measure | aim | Tagsmith | TF-IDF | seconds | winner (first seed) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        measure, aim = GOALS[name]
        values = [_spread([run[system] for run in runs]) for system in ("auto", "tfidf")]
        seconds = _spread([run["chosen_after"] for run in runs], digits=0)
        lines.append(
            f"| {name} | {measure} | {aim or 'TF-IDF'} | {values[0]} | {values[1]} | {seconds} | {runs[0]['winner']} |"
        )
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float], digits: int = 1) -> str:
    middle = statistics.mean(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


CELLS = {"auto": _auto}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
