"""What the mean of several tunings from one start brings, on rows that none of them saw.

A quarter of a set's training rows is held out (of many, 2,000); the test rows are not read. Each member is tuned as
`tuning.soup` tunes it, and all of them, their mean and the mean of their answers are scored on the rows held out:

    python benchmarks/soup.py --data emotion --rows 2400 --blocks 6 --members 3
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import polars as pl
from cells import answered, cell, machine
from peers import DATA, folder_of

ENCODER, MOST_HELD = "minilm-l6", 2000


def main() -> None:
    """Run the cell if it was not run yet, and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="emotion")
    parser.add_argument("--rows", type=int, default=2400)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    print(json.dumps(cell(__file__, "soup", **vars(parser.parse_args())) | {"machine": machine()}, indent=1))


def _soup(*, data: str, rows: int, blocks: int, members: int, epochs: int, seed: int) -> dict[str, Any]:
    import torch

    from tagsmith.config import Config
    from tagsmith.labels import Labels
    from tagsmith.model.classifier import Scorer, build
    from tagsmith.tuning.learner import Part
    from tagsmith.tuning.loop import tune
    from tagsmith.tuning.losses import held_out_loss
    from tagsmith.tuning.methods import copies, put, trainable
    from tagsmith.tuning.soup import APART

    frame = pl.read_parquet(DATA / data / "train.parquet", columns=["text", "label"])
    frame = frame.with_columns(pl.col("label").cast(pl.String)).unique("text", maintain_order=True)
    frame = frame.sample(fraction=1.0, shuffle=True, seed=seed)
    held = min(len(frame) // 4, MOST_HELD)
    tuning = {
        "method": "last_layers",
        "blocks": blocks,
        "learning_rate": 3e-4,
        "layer_decay": 0.9,
        "start": "probe",
        "epochs": epochs,
        "batch_size": 32 if rows >= 3000 else 16,
        "average": "best",
        "patience": 4,
        "cache_gib": 0,
    }
    config = Config.of({"model": {"layers": blocks, "pooling": "mean"}, "tuning": tuning, "seed": seed})
    labels = Labels.of(sorted(frame["label"].unique()))
    classifier = build(folder_of(ENCODER), config.model, labels=labels, layers=blocks, seed=seed)

    def part(some: pl.DataFrame) -> Part:
        return Part(classifier.encoder.encode(some["text"].to_list()), labels.encode(some["label"].to_list()))

    unseen, known = part(frame.head(held)), frame.slice(held, rows)
    parts = {"train": part(known.head(9 * len(known) // 10)), "validation": part(known.tail(len(known) // 10))}
    start, weights, logits, found = copies(trainable(classifier, config.tuning)), [], [], []

    def scored(logits_NC: np.ndarray) -> float:
        return round(100 * float((logits_NC.argmax(1) == unseen.truth).mean()), 2)

    def answers() -> np.ndarray:
        return Scorer(classifier).logits(unseen.tokens)

    for number in range(members):
        put(classifier, start)
        own = config.with_settings({"seed": seed + number * APART})
        tune(classifier, parts, own, metric=lambda truth, probs: -held_out_loss(truth, probs))
        weights.append(copies(trainable(classifier, config.tuning)))
        logits.append(answers())
        put(classifier, {name: torch.stack([each[name] for each in weights]).mean(0) for name in start})
        mean = answers()
        found.append({"alone": scored(logits[-1]), "mean": scored(mean), "answers": scored(np.mean(logits, axis=0))})
    return {"held": held, "members": found}


CELLS = {"soup": _soup}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
