"""A few rows of each label: `tagsmith train` with nothing set by hand beside SetFit with the same encoder.

Each draw takes so many training rows of each label by chance; both learn from the same ones, and answer the test texts,
whose labels a scorer of its own reads once. SetFit has its recipe's defaults (`num_iterations=20`, one epoch) in an
environment of its own:

    python -m venv ENV && ENV/bin/pip install setfit
    python benchmarks/few_labels.py --setfit ENV/bin/python --write docs/benchmarks/few_labels.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from cells import answered, cell, machine
from peers import DATA, folder_of
from quality import score

SETS = {"emotion": ("macro_f1", 8), "ag_news_10k": ("accuracy", 8), "banking77": ("accuracy", 10)}
"""Measure, and rows of each label."""

MOST_TEST_ROWS = 2000
ENCODER = "minilm-l6"


def main() -> None:
    """Run the draws that were not run yet, score them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help="names with commas, each may end in :ROWS")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--budget", default="60s", help="of Tagsmith's search")
    parser.add_argument("--setfit", required=True, help="the Python of an environment with setfit")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    found = {}
    for named in arguments.sets.split(","):
        name, _, rows = named.partition(":")
        each = int(rows) if rows else SETS[name][1]
        common = [{"data": name, "each": each, "seed": seed} for seed in range(1, arguments.draws + 1)]
        found[name, each] = [
            (
                cell(__file__, "tagsmith", budget=arguments.budget, **one),
                cell(__file__, "setfit", python=arguments.setfit, **one),
            )
            for one in common
        ]
    page = _page(found, arguments)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


def drawn(data: str, each: int, seed: int) -> tuple[list[str], list[str]]:
    """So many training rows of each label."""
    frame = pl.read_parquet(DATA / data / "train.parquet", columns=["text", "label"])
    frame = frame.with_columns(pl.col("label").cast(pl.String)).unique("text", maintain_order=True)
    frame = frame.sample(fraction=1.0, shuffle=True, seed=seed).group_by("label", maintain_order=True).head(each)
    return frame["text"].to_list(), frame["label"].to_list()


def test_rows(data: str) -> tuple[list[str], list[str]]:
    """The test rows, of many the first two thousand in an order of chance."""
    frame = pl.read_parquet(DATA / data / "test.parquet", columns=["text", "label"])
    frame = frame.with_columns(pl.col("label").cast(pl.String)).sample(fraction=1.0, shuffle=True, seed=0)
    return frame["text"][:MOST_TEST_ROWS].to_list(), frame["label"][:MOST_TEST_ROWS].to_list()


def _tagsmith(*, data: str, each: int, seed: int, budget: str) -> dict[str, Any]:
    """Nothing but a budget, the encoder, and a refit on the validation rows; test rows are opened at the end."""
    import tagsmith
    from tagsmith.config import Config, merge, settings_of
    from tagsmith.data.table import Table

    changes = {
        "tuning": {"budget": budget, "refit": True},
        "model": {"backbone": ENCODER},
        "evaluation": {"audit": False, "robustness_rows": 0},
        "seed": seed,
    }
    texts, labels = drawn(data, each, seed)
    asked, truth = test_rows(data)
    with tempfile.TemporaryDirectory() as folder:
        bundle = tagsmith.train(
            Table.of(texts, labels),
            test=Table.of(asked, truth),  # opened when all is chosen
            out=Path(folder) / "bundle",
            config=Config.of(merge(settings_of("auto"), changes)),
        )
        timing = json.loads((bundle.folder / "run.json").read_text(encoding="utf-8"))["timing"]
        seconds = sum(timing[stage] for stage in ("data", "imports", "search", "model", "tuning", "refit"))
        winner = next(one["name"] for one in bundle.report["candidates"] if one["chosen"])
        return {"answers": bundle.predict(asked), "seconds": seconds, "winner": winner}


_SETFIT = """
import json, sys, time
from pathlib import Path
started = time.perf_counter()
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
told = json.loads(Path(sys.argv[1]).read_text())
words = models.Transformer(told["encoder"], max_seq_length=256)
pooled = models.Pooling(words.get_word_embedding_dimension())
body = SentenceTransformer(modules=[words, pooled, models.Normalize()], device="cpu")
model = SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=1000))
names = sorted(set(told["labels"]))
rows = Dataset.from_dict({"text": told["texts"], "label": [names.index(each) for each in told["labels"]]})
arguments = TrainingArguments(
    output_dir=told["out"], num_iterations=20, num_epochs=1, batch_size=16, seed=told["seed"], report_to="none",
    save_strategy="no", show_progress_bar=False,
)
ready = time.perf_counter()
Trainer(model=model, args=arguments, train_dataset=rows).train()
ended = time.perf_counter()
answers = [names[int(each)] for each in model.predict(told["asked"])]
print(json.dumps({"answers": answers, "seconds": ended - started, "training": ended - ready}))
"""


def _setfit(*, data: str, each: int, seed: int, python: str) -> dict[str, Any]:
    """SetFit on the same rows, in its own environment."""
    texts, labels = drawn(data, each, seed)
    asked, _ = test_rows(data)
    with tempfile.TemporaryDirectory() as folder:
        told = {"texts": texts, "labels": labels, "asked": asked, "seed": seed, "out": folder}
        given = Path(folder) / "given.json"
        given.write_text(json.dumps(told | {"encoder": str(folder_of(ENCODER))}), encoding="utf-8")
        own = {**os.environ, "HF_HUB_OFFLINE": "1"}
        own.pop("PYTHONPATH", None)
        done = subprocess.run([python, "-c", _SETFIT, str(given)], capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- The scorer and the page


def _page(
    found: dict[tuple[str, int], list[tuple[dict[str, Any], dict[str, Any]]]], arguments: argparse.Namespace
) -> str:
    words = f"--sets {arguments.sets} --draws {arguments.draws} --budget {arguments.budget}"
    lines = [
        "# A few rows of each label",
        "",
        f"Command: `python benchmarks/few_labels.py --setfit ENV/bin/python {words}`.",
        f"Machine: {machine()}. Date: {datetime.now(UTC):%Y-%m-%d}. Encoder: {ENCODER}, for both. Seeds from 1.",
        "Both see the same rows; seconds are those until weights are chosen, imports among them. The interval is of",
        "the mean paired difference over draws (t, 95 %); it does not hold the chance of the test rows.",
        "",
        "| set | rows of a label | measure | Tagsmith | SetFit | difference | seconds | SetFit's | winners |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, each), draws in found.items():
        measure, truth = SETS[name][0], test_rows(name)[1]
        scores = np.array([[100 * score(truth, one["answers"], measure=measure) for one in pair] for pair in draws])
        seconds = [statistics.mean(one["seconds"] for one in side) for side in zip(*draws, strict=True)]
        winners = ", ".join(dict.fromkeys(own["winner"].split(": ")[-1] for own, _ in draws))
        lines.append(
            f"| {name} | {each} | {measure} | {_spread(scores[:, 0])} | {_spread(scores[:, 1])} | "
            f"{_difference(scores[:, 0] - scores[:, 1])} | {seconds[0]:.0f} | {seconds[1]:.0f} | {winners} |"
        )
    return "\n".join([*lines, ""])


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"


def _difference(values: np.ndarray) -> str:
    from scipy.stats import t

    if len(values) < 2:
        return f"{values.mean():+.1f}"
    wide = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1f} ({values.mean() - wide:+.1f} to {values.mean() + wide:+.1f})"


CELLS = {"tagsmith": _tagsmith, "setfit": _setfit}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
