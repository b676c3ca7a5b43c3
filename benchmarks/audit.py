"""The label audit against cleanlab over TF-IDF, on labels by a crowd whose true ones are known.

    python benchmarks/audit.py [--data ../shared/data/ag_news_10k/train.parquet] [--write docs/benchmarks/audit.md]

Needs cleanlab (a development dependency), the data, and MiniLM, which is fetched where the cache lacks it.
"""

import argparse
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "ag_news_10k" / "train.parquet"
BACKBONE = "minilm-l6"
SEED = 123
FOLDS = 5


@dataclass(frozen=True)
class Found:
    """What a method calls wrong, and how sure it is of each row: the higher, the likelier wrong."""

    name: str
    flagged: np.ndarray
    doubt: np.ndarray
    seconds: float


def main() -> None:
    """Measure all methods, print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    frame = pl.read_parquet(options.data)
    names = sorted(frame["label"].unique())
    true, given = (np.array([names.index(label) for label in frame[column]]) for column in ("label", "crowd_label"))
    texts = frame["text"].to_list()
    states, seconds = states_of(texts)
    methods = [
        tagsmith_audit(states, given, seconds=seconds),
        cleanlab_over("cleanlab over probes on the same states", probes(states, given), given, seconds=seconds),
        cleanlab_over("cleanlab over TF-IDF", tfidf(texts, given), given),
    ]
    page = page_of(methods, wrong=true != given, rows=len(texts))
    print(page)
    if options.write:
        options.write.write_text(page, encoding="utf-8")


def states_of(texts: list[str]) -> tuple[np.ndarray, float]:
    """Mean states of the last block, and how long they took."""
    import torch

    from tagsmith.assets import backbone_folder
    from tagsmith.config import ModelConfig
    from tagsmith.events import listened, silent
    from tagsmith.labels import Labels
    from tagsmith.model.activations import FrozenBlocks, frozen_states
    from tagsmith.model.classifier import build
    from tagsmith.model.gguf import ready_folder
    from tagsmith.model.state_means import mean_states

    folder = ready_folder(backbone_folder(BACKBONE, listen=silent), listen=silent)
    classifier = build(folder, ModelConfig(), labels=Labels(("a", "b")), layers=None, seed=SEED)
    tokens = classifier.encoder.encode(texts)
    started = time.perf_counter()
    frozen = FrozenBlocks(classifier.backbone, stop=classifier.backbone.depth, dtype=torch.float32)
    states = mean_states(listened(frozen_states(frozen, tokens), silent))
    return states, time.perf_counter() - started


def tagsmith_audit(states: np.ndarray, given: np.ndarray, *, seconds: float) -> Found:
    """What a training says of its labels."""
    from tagsmith.evaluation.audit import audit
    from tagsmith.tuning.cross_fitting import CrossFit

    started, last = time.perf_counter(), np.empty(0)
    crossed = CrossFit.of(states, given, np.arange(len(given)), classes=given.max() + 1, seed=SEED, folds=FOLDS)

    def out_of_fold(kept: np.ndarray | None) -> np.ndarray:
        nonlocal last
        last = crossed.probabilities(kept)
        return last

    found = audit(given, out_of_fold)
    flagged = np.zeros(len(given), dtype=bool)
    flagged[found.places] = True
    doubt = 1 - last[np.arange(len(given)), given]
    return Found("**tagsmith**", flagged, doubt, seconds + time.perf_counter() - started)


def probes(states: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Out-of-fold probabilities of the audit's first round."""
    from tagsmith.tuning.cross_fitting import CrossFit

    rows = np.arange(len(given))
    return CrossFit.of(states, given, rows, classes=given.max() + 1, seed=SEED, folds=FOLDS).probabilities()


def tfidf(texts: list[str], given: np.ndarray) -> np.ndarray:
    """Out-of-fold probabilities of TF-IDF and logistic regression, its C chosen among 1, 4 and 16 by log loss."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    matrix = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2)).fit_transform(texts)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    found = [
        cross_val_predict(LogisticRegression(C=c, max_iter=300), matrix, given, cv=folds, method="predict_proba")
        for c in (1.0, 4.0, 16.0)
    ]
    return min(found, key=lambda probs: log_loss(given, probs))


def cleanlab_over(name: str, probs: np.ndarray, given: np.ndarray, *, seconds: float = 0.0) -> Found:
    """The choice of cleanlab of rows, with its defaults."""
    from cleanlab.filter import find_label_issues

    started = time.perf_counter()
    flagged = find_label_issues(given, probs, n_jobs=1)
    doubt = 1 - probs[np.arange(len(given)), given]
    return Found(name, flagged, doubt, seconds + time.perf_counter() - started)


def page_of(methods: list[Found], *, wrong: np.ndarray, rows: int) -> str:
    """The table as a page of the documentation."""
    from sklearn.metrics import average_precision_score

    depth = int(methods[-1].flagged.sum())
    lines = [
        "# Label audit",
        "",
        "`python benchmarks/audit.py --write docs/benchmarks/audit.md` wrote this page.",
        "",
        f"{rows:,} training rows of AG News with labels by a crowd, {wrong.mean():.2%} of them wrong.",
        f"States are those of {BACKBONE}, probabilities out of {FOLDS} folds; no method saw a true label.",
        f'"At {depth}" takes as many rows as cleanlab over TF-IDF flags, by the doubt of each method.',
        "",
        f"| method | flagged | precision | recall | precision at {depth} | recall at {depth} | average precision |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in methods:
        first = np.argsort(-each.doubt, kind="stable")[:depth]
        cells = [
            each.name,
            f"{each.flagged.sum():,}",
            f"{wrong[each.flagged].mean():.1%}",
            f"{each.flagged[wrong].mean():.1%}",
            f"{wrong[first].mean():.1%}",
            f"{wrong[first].sum() / wrong.sum():.1%}",
            f"{average_precision_score(wrong, each.doubt):.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"One run, seed {SEED}, {platform.machine()}, Python {platform.python_version()}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
