"""How good `tagsmith train` is with nothing set by hand, on real data sets and several seeds, within a budget.

Training sees the training rows (and the validation rows where a set has its own); a fiftieth of them is the test part
that every training wants, so that the labels of the real test rows are nowhere near it. The bundle then answers the
test texts, and a scorer of its own, which has never seen a model, reads the labels once. Each training is a cell in a
process of its own (cells.py). What the scorer found stands in docs/benchmarks/quality, a file for each set and seed,
with the machine and the commit: what is there is not run again, so that the table can be filled in over several days.

    python benchmarks/quality.py --seeds 3 --budget 10m --write docs/benchmarks/quality.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
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

SCORED = Path(__file__).parents[1] / "docs" / "benchmarks" / "quality"
RESAMPLES = 1000


def main() -> None:
    """Run the trainings that were not run yet, score them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(GOALS), help="names with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    found = {
        name: [scored(name, seed=seed, budget=arguments.budget) for seed in seeds] for name in arguments.sets.split(",")
    }
    page = _page(found, arguments)
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


def scored(name: str, *, seed: int, budget: str) -> dict[str, Any]:
    """What is known of a run, or what it comes to now: its measure beside TF-IDF's, in per cent, and its times."""
    kept = SCORED / f"{name}-{budget}-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    run = cell(__file__, "auto", data=name, seed=seed, budget=budget)
    truth = pl.read_parquet(DATA / name / "test.parquet")["label"].to_list()
    measure, _ = GOALS[name]
    own, plain = run["answers"]["auto"], run["answers"]["tfidf"]
    found = {
        "auto": 100 * _score(truth, own, measure=measure),
        "tfidf": 100 * _score(truth, plain, measure=measure),
        "difference": _difference(truth, own, plain, measure=measure),
        "rows": len(truth),
        **{key: run[key] for key in ("winner", "seconds", "chosen_after")},
        "machine": machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
    }
    SCORED.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _difference(truth: Sequence[Any], own: Sequence[Any], plain: Sequence[Any], *, measure: str) -> list[float]:
    """The 95 % interval of the paired difference, in points, by 1,000 resamples of the test rows."""
    random, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = random.integers(0, len(truth), len(truth))
        drawn = ([each[i] for i in rows] for each in (truth, own, plain))
        of_truth, of_own, of_plain = drawn
        found.append(_score(of_truth, of_own, measure=measure) - _score(of_truth, of_plain, measure=measure))
    return [100 * float(end) for end in np.quantile(found, [0.025, 0.975])]


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return told.stdout.strip()


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
        "no training saw; a fiftieth of the training rows is left out of training. Differences are points, with the",
        "mean of the seeds' 95 % intervals (test rows resampled, paired). Seconds are those until the weights were",
        "chosen, imports among them. Each run's machine, date and commit stand in docs/benchmarks/quality.",
        "",
        "| set | measure | aim | Tagsmith | TF-IDF | difference | seconds | winner (first seed) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        measure, aim = GOALS[name]
        values = [_spread([run[system] for run in runs]) for system in ("auto", "tfidf")]
        seconds = _spread([run["chosen_after"] for run in runs], digits=0)
        low, high = np.mean([run["difference"] for run in runs], axis=0)
        apart = f"{np.mean([run['auto'] - run['tfidf'] for run in runs]):+.1f} ({low:+.1f} to {high:+.1f})"
        told = f"| {name} | {measure} | {aim or 'TF-IDF'} | {values[0]} | {values[1]} | {apart} | {seconds} |"
        lines.append(f"{told} {runs[0]['winner']} |")
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float], digits: int = 1) -> str:
    middle = statistics.mean(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


CELLS = {"auto": _auto}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
