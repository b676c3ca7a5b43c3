"""How good `tagsmith train` is with nothing set by hand, on real data sets and several seeds, within a budget.

Training sees the training rows (and the validation rows where a set has its own); a fiftieth of them is the test part
that every training wants, so that the labels of the real test rows are nowhere near it. The bundle then answers the
test texts, and a scorer of its own, which has never seen a model, reads the labels once. Each training is a cell in a
process of its own (cells.py). What the scorer found stands in docs/benchmarks/quality, a file for each set and seed,
with the machine and the commit: what is there is not run again, so that the table can be filled in over several days,
and by several processes side by side.

With `--peers` Hugging Face's Trainer gets the same rows, encoder and time.

A set without a test file is cut anew for each seed, near duplicates together, a fifth of its rows for the scorer. With
`--regret` each candidate of the first seed's search is taken as well, and answers the same texts: how far is the winner
from the best of them?

    python benchmarks/quality.py --seeds 3 --budget 10m --peers --regret --write docs/benchmarks/quality.md
    python benchmarks/quality.py --kept --write docs/benchmarks/quality.md   # the page of what was found so far
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from cells import KEPT, answered, cell, machine
from peers import DATA, trainer_by_default

GOALS = {
    "sms_spam": ("f1:spam", None),
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
    "hyperpartisan": ("accuracy", None),
    "davidson_hate": ("macro_f1", None),
}
"""Measure and aim, in per cent, of each set; None where the aim is TF-IDF's own number."""

UNCUT = {"sms_spam": "SMSSpamCollection.tsv", "hyperpartisan": "all.parquet", "davidson_hate": "all.parquet"}
"""The one file of a set that is cut anew for each seed."""

ENCODER = "minilm-l6"
"""The peers' backbone."""

SCORED = Path(__file__).parents[1] / "docs" / "benchmarks" / "quality"
RESAMPLES = 1000
TEST_SHARE = 0.2
"""Of a set that is cut."""


def main() -> None:
    """Run the trainings that were not run yet, score them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(GOALS), help="names with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--peers", action="store_true", help="Hugging Face's Trainer on the same rows and encoder too")
    parser.add_argument("--regret", action="store_true", help="take each candidate of the first seed too")
    parser.add_argument("--kept", action="store_true", help="run nothing: the page of what was found so far")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name in arguments.sets.split(","):
        wanted = {seed: _kept(name, seed=seed, budget=arguments.budget) for seed in range(1, arguments.seeds + 1)}
        runs = [
            scored(
                name,
                seed=seed,
                budget=arguments.budget,
                regret=arguments.regret and seed == 1,
                peers=arguments.peers,
            )
            for seed, kept in wanted.items()
            if kept.exists() or not arguments.kept
        ]
        found |= {name: runs} if runs else {}
    page = _page(found, arguments)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


# ---- Trainings: they see no test label


def _auto(*, data: str, seed: int, budget: str) -> dict[str, Any]:
    """Train on a set with nothing but a budget, a seed and the measure that counts, and answer its test texts."""
    import tagsmith
    from tagsmith.config import Config, merge, settings_of

    changes: dict[str, Any] = {"tuning": {"budget": budget}, "data": {"test_share": 0.02}, "seed": seed}
    if GOALS[data][0] == "macro_f1":
        changes["evaluation"] = {"metric": "macro_f1"}
    folder = _folder(data, seed)
    validation = folder / "validation.parquet"
    started = time.perf_counter()
    bundle = tagsmith.train(
        folder / "train.parquet",
        validation=validation if validation.exists() else None,
        out=_bundle(data, seed=seed, budget=budget),
        config=Config.of(merge(settings_of("auto"), changes)),
        force=True,
    )
    seconds = time.perf_counter() - started
    texts = _texts(folder / "test.parquet")
    answers = {"auto": bundle.predict(texts), **_of_tfidf(bundle, texts)}
    timing = json.loads((bundle.folder / "run.json").read_text(encoding="utf-8"))["timing"]
    winner = next(each["name"] for each in bundle.report["candidates"] if each["chosen"])
    chosen_after = sum(timing[stage] for stage in ("data", "imports", "search", "model", "tuning"))
    found = {"answers": answers, "seconds": seconds, "winner": winner, "chosen_after": chosen_after}
    if (strange := folder / "oos_test.parquet").exists():
        asked = {"in": texts, "out": _texts(strange)}
        found["sure"] = {part: bundle.predict_proba(own).max(axis=1).tolist() for part, own in asked.items()}
    return found


def _texts(path: Path) -> list[str]:
    return pl.read_parquet(path, columns=["text"])["text"].to_list()


def _bundle(data: str, *, seed: int, budget: str) -> Path:
    return KEPT / "quality" / f"{data}-{budget}-{seed}"


def _taken(*, data: str, seed: int, budget: str) -> dict[str, Any]:
    """What each candidate of a search answers, each trained as `tagsmith train --plan BUNDLE --take N` would."""
    import tagsmith
    from tagsmith.config import Config
    from tagsmith.deployment.planned import planned_settings

    own, folder = _bundle(data, seed=seed, budget=budget), _folder(data, seed)
    validation = folder / "validation.parquet"
    texts, answers = _texts(folder / "test.parquet"), {}
    for each in json.loads((own / "report.json").read_text(encoding="utf-8"))["candidates"]:
        if each["settings"] is None or each["chosen"]:
            continue
        bundle = tagsmith.train(
            folder / "train.parquet",
            validation=validation if validation.exists() else None,
            out=own.with_name(f"{own.name}-{each['number']}"),
            config=Config.of(planned_settings(own, take=each["number"])),
            force=True,
        )
        answers[each["name"]] = bundle.predict(texts)
    return {"answers": answers}


def _trainer(*, data: str, seed: int, budget: str) -> dict[str, Any]:
    """Hugging Face's Trainer on the same rows, with the encoder and the time that Tagsmith has."""
    from tagsmith.config import Config, settings_of

    seconds = Config.of(settings_of("auto")).with_settings({"tuning": {"budget": budget}}).tuning.budget_seconds
    return trainer_by_default(_folder(data, seed), backbone=ENCODER, seed=seed, seconds=seconds)


def _of_tfidf(bundle: Any, texts: Sequence[str]) -> dict[str, Any]:
    """What TF-IDF, fitted on the same rows, answers: by thresholds or a decision of its own, as Tagsmith does."""
    from tagsmith.model.decision import decided

    chosen = decided(bundle.baseline_probabilities(texts)["tfidf"], (bundle.thresholds or {}).get("tfidf"))
    if bundle.multi_label:
        return {"tfidf": [[bundle.labels[i] for i in np.flatnonzero(row)] for row in chosen]}
    return {"tfidf": [bundle.labels[i] for i in chosen]}


# ---- The scorer: it sees answers and labels, and no model


def scored(name: str, *, seed: int, budget: str, regret: bool = False, peers: bool = False) -> dict[str, Any]:
    """What is known of a run, or what it comes to now: its measure beside TF-IDF's, in per cent, and its times."""
    kept = _kept(name, seed=seed, budget=budget)
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if found and (not regret or "regret" in found) and (not peers or "trainer" in found):
        return found
    _prepare(name, seed)
    run = cell(__file__, "auto", data=name, seed=seed, budget=budget)
    truth = pl.read_parquet(_folder(name, seed) / "test.parquet")["label"].to_list()
    measure, _ = GOALS[name]
    own, plain = run["answers"]["auto"], run["answers"]["tfidf"]
    found = {
        "auto": 100 * score(truth, own, measure=measure),
        "tfidf": 100 * score(truth, plain, measure=measure),
        "difference": difference(truth, own, plain, measure=measure),
        "beside": _beside(truth, run),
        "rows": len(truth),
        "told": measure == "macro_f1",
        **{key: run[key] for key in ("winner", "seconds", "chosen_after")},
        "machine": machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
    }
    if peers:
        answers = cell(__file__, "trainer", data=name, seed=seed, budget=budget)["answers"]
        found["trainer"] = 100 * score(truth, answers, measure=measure)
        found["trainer_difference"] = difference(truth, own, answers, measure=measure)
    if regret:
        others = cell(__file__, "taken", data=name, seed=seed, budget=budget)["answers"]
        scores = {each: 100 * score(truth, answers, measure=measure) for each, answers in others.items()}
        best = max([found["auto"], found["tfidf"], *scores.values()])
        found |= {"candidates": scores, "regret": best - found["auto"]}
    SCORED.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _kept(name: str, *, seed: int, budget: str) -> Path:
    return SCORED / f"{name}-{budget}-{seed}.json"


def _folder(name: str, seed: int) -> Path:
    """Where the rows of a set are: its own folder, or the one of a cut."""
    return KEPT / "quality" / "cut" / f"{name}-{seed}" if name in UNCUT else DATA / name


def _prepare(name: str, seed: int) -> None:
    """Cut a set without test rows: near duplicates together, a fifth of the rows for the scorer."""
    folder = _folder(name, seed)
    if name not in UNCUT or (folder / "test.parquet").exists():
        return
    from tagsmith.data.duplicates import group_duplicates
    from tagsmith.data.splitting import split
    from tagsmith.data.table import Table

    whole = DATA / name / UNCUT[name]
    if whole.suffix == ".tsv":
        frame = pl.read_csv(whole, separator="\t", has_header=False, new_columns=["label", "text"], quote_char=None)
    else:
        frame = pl.read_parquet(whole)
    table = Table.of(frame["text"].to_list(), frame["label"].cast(pl.String).to_list())
    parts = split(group_duplicates(table, near=0.8).table, validation_share=0.1, test_share=TEST_SHARE, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    learnt = pl.concat([part.frame for name, part in parts.items() if name != "test"])
    learnt.select("text", "label").sample(fraction=1.0, shuffle=True, seed=seed).write_parquet(folder / "train.parquet")
    parts.test.frame.select("text", "label").write_parquet(folder / "test.parquet")


def _beside(truth: Sequence[Any], run: Mapping[str, Any]) -> dict[str, float]:
    """What else is said of a set: micro-F1 of label sets, in per cent; how well doubt finds texts of no label."""
    from sklearn.metrics import roc_auc_score

    found = {}
    if isinstance(truth[0], list):
        found["micro_f1"] = 100 * _micro(
            *([set(row or ()) for row in rows] for rows in (truth, run["answers"]["auto"]))
        )
    if sure := run.get("sure"):
        is_out = [0] * len(sure["in"]) + [1] * len(sure["out"])
        found["oos_auroc"] = float(roc_auc_score(is_out, [-each for each in (*sure["in"], *sure["out"])]))
    return found


def difference(truth: Sequence[Any], own: Sequence[Any], plain: Sequence[Any], *, measure: str) -> list[float]:
    """The 95 % interval of the paired difference, in points, by 1,000 resamples of the test rows."""
    random, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = random.integers(0, len(truth), len(truth))
        drawn = ([each[i] for i in rows] for each in (truth, own, plain))
        of_truth, of_own, of_plain = drawn
        found.append(score(of_truth, of_own, measure=measure) - score(of_truth, of_plain, measure=measure))
    return [100 * float(end) for end in np.quantile(found, [0.025, 0.975])]


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return told.stdout.strip()


def score(truth: Sequence[Any], answers: Sequence[Any], *, measure: str) -> float:
    """`accuracy`, `macro_f1`, or `f1:LABEL` of answers; macro-F1 where rows have label sets."""
    if truth and isinstance(truth[0], list):
        return _macro([set(row) for row in truth], [set(row or ()) for row in answers])
    truth = [str(label) for label in truth]
    if measure == "accuracy":
        return float(np.mean([one == two for one, two in zip(truth, answers, strict=True)]))
    if measure.startswith("f1:"):
        label = measure.removeprefix("f1:")
        return _micro(*([{each} & {label} for each in rows] for rows in (truth, answers)))
    return _macro([{label} for label in truth], [{label} for label in answers])


def _macro(truth: Sequence[set[str]], answers: Sequence[set[str]]) -> float:
    scores = []
    for label in sorted(set.union(*truth)):
        hits = sum(label in one and label in two for one, two in zip(truth, answers, strict=True))
        asked = sum(label in row for row in truth) + sum(label in row for row in answers)
        scores.append(2 * hits / asked)
    return float(np.mean(scores))


def _micro(truth: Sequence[set[str]], answers: Sequence[set[str]]) -> float:
    hits = sum(len(one & two) for one, two in zip(truth, answers, strict=True))
    return 2 * hits / max(1, sum(map(len, truth)) + sum(map(len, answers)))


# ---- The page


def _page(found: Mapping[str, Sequence[Mapping[str, Any]]], arguments: argparse.Namespace) -> str:
    words = f"--sets {arguments.sets} --seeds {arguments.seeds} --budget {arguments.budget}"
    words += " --peers" if any("trainer" in run for runs in found.values() for run in runs) else ""
    words += " --regret" if any("regret" in run for runs in found.values() for run in runs) else ""
    every = [run for runs in found.values() for run in runs]
    dates = sorted({run["date"] for run in every})
    machines = "; ".join(sorted({f"{run['machine']}, threads: {run.get('threads', 'all')}" for run in every}))
    lines = [
        "# Quality with nothing set by hand",
        "",
        f"Command: `python benchmarks/quality.py {words}`.",
        f"Machine: {machines}. Date: {dates[0]} to {dates[-1]}. Seeds from 1.",
        "Means over seeds, smallest and largest in brackets, in per cent, on the test rows of each set, whose labels",
        "no training saw; a fiftieth of the training rows is left out of training. Nothing is set but a budget, a seed",
        "and, where it is macro-F1, the measure (`evaluation.metric`), by which Tagsmith and TF-IDF decide which label",
        "they answer. Differences are points, with the mean of the seeds' 95 % intervals (rows resampled, paired);",
        "those of sets that are cut anew for each seed (sms_spam, hyperpartisan, davidson_hate) with the corrected",
        "resampled t (Nadeau and Bengio, 2003).",
        "Seconds are those until the weights were chosen, imports among them. Each run's machine, date, commit and",
        "threads stand in docs/benchmarks/quality.",
        "",
        "| set | runs | measure | aim | Tagsmith | TF-IDF | difference | seconds | winners | beside |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        measure, aim = GOALS[name]
        values = [_spread([run[system] for run in runs]) for system in ("auto", "tfidf")]
        seconds = _spread([run["chosen_after"] for run in runs], digits=0)
        mean, low, high = _apart(runs, "tfidf", "difference", is_cut=name in UNCUT)
        winners = "; ".join(dict.fromkeys(run["winner"] for run in runs))
        beside = "; ".join(
            f"{each} {_spread([run['beside'][each] for run in runs], digits=3 if each == 'oos_auroc' else 1)}"
            for each in runs[0]["beside"]
        )
        told = f"| {name} | {len(runs)} | {measure} | {aim or 'TF-IDF'} | {values[0]} | {values[1]} "
        lines.append(f"{told}| {mean:+.1f} ({low:+.1f} to {high:+.1f}) | {seconds} | {winners} | {beside} |")
    return "\n".join([*lines, "", *_peer_lines(found), *_regret_lines(found)])


def _apart(
    runs: Sequence[Mapping[str, Any]], rival: str, difference: str, *, is_cut: bool
) -> tuple[float, float, float]:
    """Tagsmith less a rival, in points, with an interval: that of `difference`, or of the cuts where there are some."""
    gains = np.array([run["auto"] - run[rival] for run in runs])
    if not is_cut or len(gains) < 2:
        low, high = np.mean([run[difference] for run in runs], axis=0)
        return float(gains.mean()), low, high
    from scipy.stats import t

    wide = t.ppf(0.975, len(gains) - 1) * np.sqrt((1 / len(gains) + TEST_SHARE / (1 - TEST_SHARE)) * gains.var(ddof=1))
    return float(gains.mean()), float(gains.mean() - wide), float(gains.mean() + wide)


def _peer_lines(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    beside = {name: [run for run in runs if "trainer" in run] for name, runs in found.items()}
    if not any(beside.values()):
        return []
    lines = [
        "## Hugging Face's Trainer on the same rows, in the same time",
        "",
        f"{ENCODER} with a head, its example script's defaults: three epochs of 8 rows a step at 5e-5, fp32, 128",
        "tokens; batches are padded to their longest text, and the schedule ends in time. Differences as above.",
        "",
        "| set | runs | measure | Tagsmith | Trainer | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in beside.items():
        if runs:
            values = [_spread([run[system] for run in runs]) for system in ("auto", "trainer")]
            mean, low, high = _apart(runs, "trainer", "trainer_difference", is_cut=name in UNCUT)
            told = f"| {name} | {len(runs)} | {GOALS[name][0]} | {values[0]} | {values[1]} "
            lines.append(f"{told}| {mean:+.1f} ({low:+.1f} to {high:+.1f}) |")
    return [*lines, ""]


def _regret_lines(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    regrets = {name: run["regret"] for name, runs in found.items() for run in runs if "regret" in run}
    if not regrets:
        return []
    told = ", ".join(f"{name} {value:.1f}" for name, value in regrets.items())
    return [
        "## Regret",
        "",
        "Each candidate of the first seed's search was taken as well and answered the same test rows. The winner,",
        f"which was picked on validation rows, is so many points behind the best of them: {told}; mean",
        f"{statistics.mean(regrets.values()):.2f} (aim: 0.7).",
        "",
    ]


def _spread(values: Sequence[float], digits: int = 1) -> str:
    middle = statistics.mean(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


CELLS = {"auto": _auto, "taken": _taken, "trainer": _trainer}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
