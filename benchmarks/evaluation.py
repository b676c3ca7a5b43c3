"""Evaluation measured: its speed and memory, whether intervals cover, calibration on real data, texts out of scope.

Each cell runs in a process of its own, and a finished one is kept under build/benchmarks.

    python benchmarks/evaluation.py --write docs/benchmarks/evaluation.md
    python benchmarks/evaluation.py --only speed
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cells import cell

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
SEED = 123
ROWS, LABELS = 100_000, 10
SETS = {
    "sms": ("sms_spam/SMSSpamCollection.tsv", None),
    "trec6": ("trec6/train.parquet", "trec6/test.parquet"),
    "banking77": ("banking77/train.parquet", "banking77/test.parquet"),
    "emotion": ("emotion/train.parquet", "emotion/test.parquet"),
    "ag_news_10k": ("ag_news_10k/train.parquet", "ag_news_10k/test.parquet"),
}
MOST_TRAIN, MOST_TEST = 3_000, 1_000


def main() -> None:
    """Run the cells and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the page there too")
    parser.add_argument("--only", choices=["speed", "coverage", "resampled", "calibration", "tuned", "scope"])
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(CELLS[arguments.cell[0]](**json.loads(arguments.cell[1]))))
        return
    if not DATA.is_dir():
        sys.exit(f"The data sets are not at {DATA}: this benchmark needs them.")
    parts = {arguments.only: PARTS[arguments.only]} if arguments.only else PARTS
    page = "\n".join(line for part in (_head, *parts.values()) for line in part()) + "\n"
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


def _head() -> Iterator[str]:
    yield "# Evaluation: speed, coverage, calibration, texts out of scope"
    yield ""
    yield "Command: `python benchmarks/evaluation.py`. Other programs shared the cores."
    yield f"Machine: {_processor()}, {platform.system()}, Python {platform.python_version()}."
    yield f"Date: {datetime.now(UTC).date()}. Seed: {SEED}."
    yield ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


# ---- Speed


def _speed() -> Iterator[str]:
    yield "## All measures of 100,000 predictions of 10 labels"
    yield ""
    yield "| rows | CPU seconds | peak GiB |"
    yield "|---|---|---|"
    for kind in ("each row its own group", "rows in groups", "several labels a text"):
        found = cell(__file__, "speed", kind=kind)
        yield f"| {kind} | {found['seconds']:.1f} | {found['gib']:.2f} |"
    yield ""
    yield "Aim: under 30 s and 1 GiB. 2,000 resamples; reliability, coverage, slices and the table of answers included."
    yield ""


def speed(*, kind: str) -> dict[str, float]:
    """CPU seconds and peak memory of all measures."""
    from tagsmith.evaluation.label_sets import measure_sets
    from tagsmith.evaluation.metrics import measure
    from tagsmith.evaluation.sections import Asked, Measured, sections_of
    from tagsmith.labels import Labels

    rng = np.random.default_rng(SEED)
    truth = rng.integers(0, LABELS, ROWS)
    logits = rng.normal(size=(ROWS, LABELS))
    logits[np.arange(ROWS), truth] += 2
    groups = rng.integers(0, ROWS, ROWS) if kind == "rows in groups" else np.arange(ROWS)
    several = kind == "several labels a text"
    labels = Labels(tuple(f"label {i}" for i in range(LABELS)), several)
    drawn = {"resamples": 2000, "seed": SEED}
    started = time.process_time()
    if several:
        probs, halves = 1 / (1 + np.exp(-logits)), np.full(LABELS, 0.5)
        sets = rng.random(probs.shape) < probs
        measure_sets(sets, probs, groups, thresholds=halves, labels=labels, **drawn)
        measured = Measured(sets, probs, groups, labels, halves)
    else:
        probs = _softmax(logits)
        measure(truth, probs, groups, labels=labels, **drawn)
        measured = Measured(truth, probs, groups, labels)
    sections_of(measured, Asked(), baseline_probs={}, **drawn)
    seconds = time.process_time() - started
    return {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# ---- Coverage

MEASURES = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "mcc", "roc_auc", "pr_auc", "log_loss", "brier")
PRIORS = ([0.5, 0.5], [0.87, 0.13], [0.4, 0.3, 0.2, 0.1])


def _coverage() -> Iterator[str]:
    yield "## Do 95 % intervals cover?"
    yield ""
    yield "Simulated: 2 labels (even, and 13 % of one) and 4 labels; models that are right in 55 to 98 % of the rows;"
    yield "none, or 35 %, of the rows in groups of 2 to 5 that agree. The share of samples whose interval holds the"
    yield "measure of 100,000 further rows: its mean over 12 settings, the smallest of them in brackets."
    yield ""
    yield f"| rows | {' | '.join(name.replace('_', ' ') for name in MEASURES)} |"
    yield f"|---|{'---|' * len(MEASURES)}"
    for rows in (100, 300, 1000):
        found = [
            cell(__file__, "coverage", rows=rows, prior=prior, skill=skill, grouped=grouped)
            for prior in PRIORS for skill in (1.0, 3.0) for grouped in (0.0, 0.35)
        ]  # fmt: skip
        yield f"| {rows:,} | {' | '.join(_mean_and_least([each[name] for each in found]) for name in MEASURES)} |"
    yield ""


def _mean_and_least(shares: Sequence[float]) -> str:
    return f"{100 * np.mean(shares):.1f} ({100 * min(shares):.0f})"


def coverage(*, rows: int, prior: Sequence[float], skill: float, grouped: float, trials: int = 400) -> dict[str, float]:
    """The share of `trials` in which each interval holds the truth."""
    from tagsmith.evaluation.metrics import measure

    labels = _labels(len(prior))
    true = measure(*_drawn(100_000, prior, skill, 0.0, seed=SEED), labels=labels, resamples=200, seed=SEED).measures
    inside = {name: 0 for name in MEASURES}
    for trial in range(trials):
        sample = _drawn(rows, prior, skill, grouped, seed=SEED + 1 + trial)
        found = measure(*sample, labels=labels, resamples=400, seed=trial).measures
        for name in MEASURES:
            inside[name] += found[name].low <= true[name].value <= found[name].high
    return {name: count / trials for name, count in inside.items()}


def _drawn(rows: int, prior: Sequence[float], skill: float, grouped: float, *, seed: int) -> tuple[np.ndarray, ...]:
    rng, sizes, classes = np.random.default_rng(seed), [], len(prior)
    while sum(sizes) < grouped * rows:
        sizes.append(int(rng.integers(2, 6)))
    sizes += [1] * max(rows - sum(sizes), 0)
    groups = np.repeat(np.arange(len(sizes)), sizes)[:rows]
    truth = rng.choice(classes, p=prior, size=len(sizes))[groups]
    common = rng.normal(size=(len(sizes), classes))[groups]
    logits = np.sqrt(0.7) * common + np.sqrt(0.3) * rng.normal(size=(rows, classes))
    logits[np.arange(rows), truth] += skill
    return truth, _softmax(logits), groups


def _labels(classes: int) -> Any:
    from tagsmith.labels import Labels

    return Labels(tuple(f"label {i}" for i in range(classes)))


def _resampled() -> Iterator[str]:
    yield "Resampled from real answers: TF-IDF on the test rows of ag_news_10k (7,600 rows, 4 labels) and trec6 (500"
    yield "rows, 6 labels, one with 9 rows). All of them are the truth, samples with replacement are measured."
    yield ""
    yield f"| rows of | {' | '.join(name.replace('_', ' ') for name in MEASURES)} |"
    yield f"|---|{'---|' * len(MEASURES)}"
    for name in ("ag_news_10k", "trec6"):
        for rows in (100, 300, 1000):
            found = cell(__file__, "resampled", data=name, rows=rows)
            yield f"| {name}, {rows:,} | {' | '.join(f'{100 * found[key]:.1f}' for key in MEASURES)} |"
    yield ""


def resampled(*, data: str, rows: int, trials: int = 200) -> dict[str, float]:
    """The share of samples of real answers whose intervals hold the measures of all answers."""
    from tagsmith.evaluation.metrics import measure
    from tagsmith.model.lexical_fitting import fit_lexical
    from tagsmith.run import labels_of

    train, test = (_table(part, most=10_000) for part in SETS[data])
    labels = labels_of(train)
    ids = labels.encode(train.labels)
    lexical = fit_lexical(train.texts, ids, train.groups, classes=len(labels), seed=SEED)
    truth, probs = labels.encode(test.labels), lexical.probabilities(test.texts)
    true = measure(truth, probs, np.arange(len(truth)), labels=labels, resamples=200, seed=SEED).measures
    inside = {key: 0 for key in MEASURES}
    for trial in range(trials):
        drawn = np.random.default_rng(trial).integers(0, len(truth), rows)
        sample = measure(truth[drawn], probs[drawn], np.arange(rows), labels=labels, resamples=400, seed=trial).measures
        for key in MEASURES:
            inside[key] += sample[key].low <= true[key].value <= sample[key].high
    return {key: count / trials for key, count in inside.items()}


def _table(path: str, *, most: int) -> Any:
    """The rows of a data set, at most so many, drawn by the seed."""
    from tagsmith.data.readers import read

    named = {"text": "text", "label": "label"} if path.endswith("parquet") else {}
    table = read(DATA / path, quoting="none", **named)
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(table))[:most])
    return table.take(chosen)


# ---- Calibration


def _calibration() -> Iterator[str]:
    yield "## Calibration on real data"
    yield ""
    yield f"A probe on MiniLM-L6, at most {MOST_TRAIN:,} rows and {MOST_TEST:,} test rows. Log loss on the calibration"
    yield "rows out of fold, without and with scaling; ECE (debiased, 15 bins) of the test rows without and with it,"
    yield "beside the 95 % band that a calibrated model of that size would show."
    yield ""
    yield _HEAD_OF_CALIBRATION
    yield f"|{'---|' * 11}"
    for name in SETS:
        found = cell(__file__, "calibration", data=name)
        yield _calibration_row(name, found, f"{100 * found['unscaled_ece']:.2f} %")
    yield ""


_HEAD_OF_CALIBRATION = (
    "| data | accuracy | calibration rows | scaling | log loss before | after | falls | ECE before | after | band | "
    "inside |"
)


def _tuned() -> Iterator[str]:
    yield "## Calibration of tuned models"
    yield ""
    yield "MiniLM-L6, all blocks tuned by the recipe that a search tries first with an encoder (four epochs, rate 3e-4;"
    yield "the mean of the best steps, by their log loss after one temperature), on at most 10,000 rows: a tenth"
    yield "of them choose the step, another are calibration rows. The rest as above, from report.json."
    yield ""
    yield from _tuned_rows(seed=SEED)
    yield "The recipe that it tries second, from a random head, on 3,000 rows: a fifth chooses, another calibrates."
    yield ""
    yield from _tuned_rows(seed=SEED, start="random", rows=3_000, held_out=0.4)


def _tuned_rows(**plan: Any) -> Iterator[str]:
    yield _HEAD_OF_CALIBRATION.replace("ECE before | after", "temperature | ECE")
    yield f"|{'---|' * 11}"
    for name in SETS:
        found = cell(__file__, "tuned", data=name, **plan)
        yield _calibration_row(name, found, f"{found['temperature']:.2f}")
    yield ""


FIRST_RECIPE = {
    "method": "last_layers",
    "blocks": 6,
    "epochs": 4,
    "patience": 4,
    "batch_size": 32,
    "learning_rate": 3e-4,
    "layer_decay": 0.9,
    "start": "probe",
    "average": "best",
    "choose_calibrated": True,
}


def _calibration_row(name: str, found: dict[str, Any], beside: str) -> str:
    """`beside` stands before the ECE after scaling."""
    low, high = found["band"]
    falls, inside = found["after"] < found["before"], found["ece"] <= high
    return (
        f"| {name} | {100 * found['accuracy']:.1f} % | {found['rows']:,} | {found['method']} | "
        f"{found['before']:.4f} | {found['after']:.4f} | {_yes(falls)} | {beside} | "
        f"{100 * found['ece']:.2f} % | {100 * low:.2f} to {100 * high:.2f} % | {_yes(inside)} |"
    )


def tuned(*, data: str, seed: int, start: str = "probe", rows: int = 10_000, held_out: float = 0.2) -> dict[str, Any]:
    """A fully tuned MiniLM-L6 for a data set: what its report says of calibration."""
    from tempfile import TemporaryDirectory

    from tagsmith.config import Config, settings_of
    from tagsmith.pipeline import train

    source, test = SETS[data]
    changes = {
        "data": {"rare_labels": "drop", "validation_share": held_out},
        "model": {"backbone": "minilm-l6", "layers": 6, "pooling": "mean"},
        "tuning": FIRST_RECIPE | {"start": start},
        "evaluation": {"audit": False, "robustness_rows": 0},
        "seed": seed,
    }
    given = {} if test is None else {"test": _table(test, most=MOST_TEST)}
    with TemporaryDirectory() as folder:
        bundle = train(
            _table(source, most=rows),
            out=Path(folder) / "bundle",
            config=Config.of(settings_of("fixed")).with_settings(changes),
            **given,
        )
        report = bundle.report
    about, found = report["calibration"], report["test"]
    return {
        "rows": about["rows"],
        "test_rows": found["n"],
        "method": about["method"],
        "before": about["out_of_fold"]["before"],
        "after": about["out_of_fold"]["after"],
        "ece": found["ece"]["value"],
        "band": [found["ece_calibrated"]["low"], found["ece_calibrated"]["high"]],
        "accuracy": found["accuracy"]["value"],
        "temperature": about["temperature"],
    }


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def calibration(*, data: str) -> dict[str, Any]:
    """A probe on MiniLM-L6 for a data set, scaled on its calibration rows and measured on its test rows."""
    import torch

    from tagsmith.config import DataConfig
    from tagsmith.data.preparing import prepare, prepare_given
    from tagsmith.evaluation.calibration_error import ece, ece_calibrated
    from tagsmith.evaluation.scaling import fit_scaling
    from tagsmith.run import labels_of
    from tagsmith.tuning.probes import choose_strength, fit_probe

    source, test = SETS[data]
    config, table = DataConfig(rare_labels="drop", validation_share=0.2), _table(source, most=MOST_TRAIN)
    if test is None:
        splits = prepare(table, config, seed=SEED).splits
    else:
        splits = prepare_given(table, None, _table(test, most=MOST_TEST), config, seed=SEED).splits
    labels = labels_of(splits.train)
    seen = _probe_features(labels)
    truth = {name: labels.encode(part.labels) for name, part in splits.items()}
    pooled, ids = seen(splits.train), torch.from_numpy(truth["train"])
    strength, _ = choose_strength(pooled, ids, splits.train.groups, classes=len(labels), seed=SEED, bias=True)
    probe = fit_probe(pooled, ids, classes=len(labels), strength=strength, bias=True)
    logits = {name: probe.logits(seen(getattr(splits, name))).numpy() for name in ("calibration", "test")}
    scaled = fit_scaling(
        logits["calibration"], truth["calibration"], splits.calibration.groups, offset=None, scaling="auto", seed=SEED
    )
    probs, groups, drawn = scaled.calibration.probabilities(logits["test"]), splits.test.groups, {"seed": SEED}
    found, plain = (
        ece(truth["test"], each, groups, resamples=2000, **drawn) for each in (probs, _softmax(logits["test"]))
    )
    band = ece_calibrated(probs, groups, resamples=2000, **drawn)
    return {
        "rows": scaled.rows,
        "test_rows": len(groups),
        "method": scaled.method,
        "before": scaled.before,
        "after": scaled.after,
        "ece": found.value,
        "unscaled_ece": plain.value,
        "band": [band.low, band.high],
        "accuracy": float((probs.argmax(axis=1) == truth["test"]).mean()),
    }


def _probe_features(labels: Any) -> Callable[[Any], Any]:
    """What a probe sees of the texts of a table: MiniLM-L6 as it is, its mean pooled."""
    import torch

    from tagsmith.assets import backbone_folder
    from tagsmith.config import ModelConfig
    from tagsmith.events import silent
    from tagsmith.model.classifier import build
    from tagsmith.model.gguf import ready_folder
    from tagsmith.tuning.learner import Part
    from tagsmith.tuning.probes import seen_by_head

    folder = ready_folder(backbone_folder("minilm-l6", listen=silent), listen=silent)
    classifier = build(folder, ModelConfig(backbone="minilm-l6"), labels=labels, layers=None, seed=SEED)

    def seen(table: Any) -> torch.Tensor:
        tokens = classifier.encoder.encode(table.texts)
        part = Part(tokens, np.zeros(len(table), dtype=np.int64), table.groups)
        return seen_by_head(classifier, part, None, start=None, dtype=torch.bfloat16)

    return seen


# ---- Texts out of scope


def _scope() -> Iterator[str]:
    yield "## Texts that belong to no label"
    yield ""
    found = cell(__file__, "scope")
    yield "clinc150: 150 intents, and 1,000 texts out of scope (`oos_test`) that training never saw. How well a score"
    yield "tells the 4,500 test texts from them (AUROC), and how many of them it catches where 5 % of the texts in"
    yield "scope are lost."
    yield ""
    yield "| model | accuracy in scope | score | AUROC | caught at 5 % lost |"
    yield "|---|---|---|---|---|"
    for model, about in found.items():
        for score, each in about["scores"].items():
            yield (
                f"| {model} | {100 * about['accuracy']:.1f} % | {score} | {each['auroc']:.3f} | "
                f"{100 * each['caught']:.1f} % |"
            )
    yield ""


def scope() -> dict[str, Any]:
    """How well scores of TF-IDF and of a probe on MiniLM tell texts in scope from those out of it."""
    import torch

    from tagsmith.model.lexical_fitting import fit_lexical
    from tagsmith.run import labels_of
    from tagsmith.tuning.probes import fit_probe

    train, test, out = (_table(f"clinc150/{part}.parquet", most=15_000) for part in ("train", "test", "oos_test"))
    labels = labels_of(train)
    ids, truth = labels.encode(train.labels), labels.encode(test.labels)
    lexical = fit_lexical(train.texts, ids, train.groups, classes=len(labels), seed=SEED)
    logits = {"TF-IDF": [np.log(np.maximum(lexical.probabilities(part.texts), 1e-300)) for part in (test, out)]}
    seen = _probe_features(labels)
    probe = fit_probe(seen(train), torch.from_numpy(ids), classes=len(labels), strength=10.0, bias=True)
    logits["probe on MiniLM-L6"] = [probe.logits(seen(part)).numpy() for part in (test, out)]
    return {
        name: {"accuracy": float((inside.argmax(axis=1) == truth).mean()), "scores": _told_apart(inside, outside)}
        for name, (inside, outside) in logits.items()
    }


def _told_apart(inside: np.ndarray, outside: np.ndarray) -> dict[str, dict[str, float]]:
    from scipy.special import logsumexp
    from sklearn.metrics import roc_auc_score

    from tagsmith.evaluation.abstention import surety

    scores: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "likeliest label's probability": lambda z: _softmax(z).max(axis=1),
        "surety (ratio of the two likeliest)": lambda z: surety(_softmax(z)),
        "entropy": lambda z: (_softmax(z) * np.log(np.maximum(_softmax(z), 1e-300))).sum(axis=1),
    }
    if not np.allclose(logsumexp(inside, axis=1), 0, atol=1e-6):
        scores |= {"largest logit": lambda z: z.max(axis=1), "energy": lambda z: logsumexp(z, axis=1)}
    found = {}
    for name, score in scores.items():
        first, second = np.minimum(score(inside), 1e300), np.minimum(score(outside), 1e300)
        told = np.append(np.ones(len(first)), np.zeros(len(second)))
        auroc = roc_auc_score(told, np.append(first, second))
        found[name] = {"auroc": float(auroc), "caught": float((second < np.quantile(first, 0.05)).mean())}
    return found


CELLS: dict[str, Callable[..., dict[str, Any]]] = {
    "speed": speed,
    "coverage": coverage,
    "resampled": resampled,
    "calibration": calibration,
    "tuned": tuned,
    "scope": scope,
}
PARTS = {
    "speed": _speed,
    "coverage": _coverage,
    "resampled": _resampled,
    "calibration": _calibration,
    "tuned": _tuned,
    "scope": _scope,
}

if __name__ == "__main__":
    main()
