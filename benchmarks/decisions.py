"""What a decision by the measure brings where labels are uneven: the same probabilities, answered in two ways.

TF-IDF learns from four fifths of the labelled rows, and the rule is fitted on the others, whole groups of near twins;
the test rows of the data set are scored once, with both answers. Differences are paired, their intervals from 2,000
resamples of rows.

    python benchmarks/decisions.py --sets davidson_hate,emotion --write docs/benchmarks/decisions.md
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cells import answered, cell, machine
from peers import DATA

from tagsmith.data.table import Table

MEASURES = ("macro_f1", "balanced_accuracy")
RESAMPLES, MOST_TEST_ROWS = 2000, 2000


def main() -> None:
    """Run the trainings that were not run yet, score their test rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="davidson_hate,emotion", help="names with commas")
    parser.add_argument("--rows", type=int, default=4000, help="labelled rows, the held-out ones among them")
    parser.add_argument("--measures", default=",".join(MEASURES))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    lines = []
    for name in arguments.sets.split(","):
        for measure in arguments.measures.split(","):
            found = cell(__file__, "fitted", data=name, measure=measure, rows=arguments.rows, seed=1)
            lines += [_line(name, measure, system, found[system]) for system in ("tfidf",)]
    page = "\n".join([_HEAD.format(machine=machine(), date=datetime.now(UTC).date(), rows=arguments.rows), *lines, ""])
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


_HEAD = """# What a decision by the measure brings

Machine: {machine}. Date: {date}. TF-IDF with a linear model on {rows} labelled rows, by
`python benchmarks/decisions.py`; the rule was fitted on a fifth of them, held out, and each test row was scored once.
In per cent, with the paired difference and its 95 % interval.

| set | measure | system | power of the shares | likeliest label | decided label | difference |
|---|---|---|---|---|---|---|"""


def _line(name: str, measure: str, system: str, found: dict[str, Any]) -> str:
    low, high = found["interval"]
    tau = "none" if found["tau"] is None else f"{found['tau']:.2f}"
    values = (
        f"{found['likeliest']:.1f} | {found['decided']:.1f} | {found['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
    )
    return f"| {name} | {measure} | {system} | {tau} | {values} |"


def _fitted(*, data: str, measure: str, rows: int, seed: int) -> dict[str, Any]:
    from tagsmith.evaluation.decisions import fit_prior_decision
    from tagsmith.labels import Labels
    from tagsmith.model.lexical_fitting import fit_lexical

    table, test = _parts(data, rows)
    labels, texts, groups = Labels.of(table.labels), np.array(table.texts, dtype=object), table.groups
    truth, known = labels.encode(table.labels), np.unique(groups)
    held = np.isin(groups, known[np.random.default_rng(seed).random(len(known)) < 0.2])
    learnt = texts[~held].tolist(), truth[~held], groups[~held]
    lexical = fit_lexical(*learnt, classes=len(labels), seed=seed)
    shares = np.bincount(truth, minlength=len(labels)) / len(truth)
    probs = lexical.probabilities(texts[held].tolist())
    found = fit_prior_decision(probs, truth[held], groups[held], shares=shares, measure=measure, seed=seed)
    answers = lexical.probabilities(test.texts)
    return {"tfidf": _compared(labels.encode(test.labels), answers, found.decision, shares, measure)}


def _parts(data: str, rows: int) -> tuple[Table, Table]:
    """Training and test rows; of a set that has no test rows a fifth of its groups of near duplicates."""
    from tagsmith.data.duplicates import group_duplicates
    from tagsmith.data.readers import read

    folder, random = DATA / data, np.random.default_rng(0)
    if (folder / "test.parquet").exists():
        train_rows, test = read(folder / "train.parquet"), read(folder / "test.parquet")
    else:
        table = group_duplicates(read(next(folder.glob("*.parquet"))), near=0.8).table
        held = np.isin(table.groups, [group for group in np.unique(table.groups) if random.random() < 0.2])
        train_rows, test = table.take(np.flatnonzero(~held)), table.take(np.flatnonzero(held))
    chosen = np.sort(random.permutation(len(test))[:MOST_TEST_ROWS])
    learnt = np.sort(random.permutation(len(train_rows))[:rows])
    return train_rows.take(learnt), test.take(chosen)


def _compared(truth: np.ndarray, probs: np.ndarray, rule: Any, shares: np.ndarray, measure: str) -> dict[str, Any]:
    from tagsmith.evaluation.decisions import score_of
    from tagsmith.model.decision import decided

    one, two = probs.argmax(axis=1), decided(probs, rule)
    rng, gains = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(truth), len(truth))
        gains.append(score_of(measure, truth[drawn], two[drawn]) - score_of(measure, truth[drawn], one[drawn]))
    likeliest, decided_by = (100 * score_of(measure, truth, each) for each in (one, two))
    rarest = int(shares.argmin())
    return {
        "tau": None if rule is None else float(-np.log(rule.gains[rarest]) / np.log(shares[rarest])),
        "likeliest": likeliest,
        "decided": decided_by,
        "difference": decided_by - likeliest,
        "interval": (100 * np.quantile(gains, [0.025, 0.975])).tolist(),
    }


CELLS = {"fitted": _fitted}

if __name__ == "__main__" and not answered(CELLS):
    main()
