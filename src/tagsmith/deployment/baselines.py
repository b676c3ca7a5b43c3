"""The baselines of a bundle, saved beside the model that has to beat them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagsmith.model.calibration import Calibration
from tagsmith.model.decision import Rule, plain_of, rule_of
from tagsmith.model.lexical import Lexical

BASELINE = "baseline"
PROBE, PROBE_WEIGHTS = "probe.json", "probe.safetensors"
_ARRAYS = ("letters", "terms", "idf", "weights", "bias")


def write_baselines(
    folder: Path,
    lexical: Lexical,
    priors: Sequence[float],
    *,
    thresholds: Mapping[str, Rule] | None = None,
) -> None:
    """Save the TF-IDF model and the labels' shares in training: vocabulary as JSON, numbers as safetensors.

    `thresholds (C,)` are those of `majority` and `tfidf`, where a text may have several labels, or decisions.
    """
    from safetensors.numpy import save_file

    baseline = folder / BASELINE
    baseline.mkdir()
    arrays = {name: np.ascontiguousarray(getattr(lexical, name)) for name in _ARRAYS}
    save_file(arrays, baseline / "weights.safetensors")
    vocabulary = {
        "words": sorted(lexical.words, key=lexical.words.__getitem__),
        "numbers": sorted(lexical.words.values()),
        "scale": lexical.scale,
        "n_grams": lexical.n_grams,
        "regularisation": lexical.regularisation,
        "priors": [float(prior) for prior in priors],
        "multi_label": lexical.multi_label,
        "thresholds": {name: plain_of(rule) for name, rule in (thresholds or {}).items()},
    }
    (baseline / "vocabulary.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")


def copy_baselines(folder: Path, aside: Path) -> None:
    """The baselines of the bundle in `folder` for one in `aside`, without a probe, which belongs to its backbone."""
    shutil.copytree(folder / BASELINE, aside / BASELINE, ignore=shutil.ignore_patterns(PROBE, PROBE_WEIGHTS))


def write_probe(folder: Path, probe: FrozenProbe) -> None:
    """Save a frozen probe beside the other baselines."""
    from safetensors.numpy import save_file

    arrays = {"weight": np.ascontiguousarray(probe.weight_CD), "bias": np.ascontiguousarray(probe.bias_C)}
    if probe.thresholds is not None:
        arrays["thresholds"] = np.ascontiguousarray(probe.thresholds)
    save_file(arrays, folder / BASELINE / PROBE_WEIGHTS)
    about = {"start": probe.start, "multi_label": probe.multi_label}
    (folder / BASELINE / PROBE).write_text(json.dumps(about), encoding="utf-8")


def read_probe(folder: Path) -> FrozenProbe | None:
    """The frozen probe of a bundle; None in bundles that have none, as those of 0.1.0."""
    from safetensors.numpy import load_file

    if not (folder / BASELINE / PROBE).is_file():
        return None
    about = json.loads((folder / BASELINE / PROBE).read_text(encoding="utf-8"))
    arrays = load_file(folder / BASELINE / PROBE_WEIGHTS)
    return FrozenProbe(arrays["weight"], arrays["bias"], thresholds=arrays.get("thresholds"), **about)


def read_baselines(folder: Path) -> Baselines:
    """The baselines that `write_baselines` saved."""
    from safetensors.numpy import load_file

    baseline = folder / BASELINE
    vocabulary = json.loads((baseline / "vocabulary.json").read_text(encoding="utf-8"))
    lexical = Lexical(
        **load_file(baseline / "weights.safetensors"),
        words=dict(zip(vocabulary["words"], vocabulary["numbers"], strict=True)),
        scale=vocabulary["scale"],
        n_grams=vocabulary["n_grams"],
        regularisation=vocabulary["regularisation"],
        multi_label=bool(vocabulary.get("multi_label")),  # baselines of 0.1.0 say nothing
    )
    thresholds = {name: rule_of(plain) for name, plain in vocabulary.get("thresholds", {}).items()}
    probe = read_probe(folder)
    if probe is not None and probe.thresholds is not None:
        thresholds["probe"] = probe.thresholds
    return Baselines(lexical, tuple(vocabulary["priors"]), thresholds)


@dataclass(frozen=True)
class Baselines:
    """The cheap alternatives: the labels' shares in training, and TF-IDF with a linear model.

    `thresholds (C,)` by name, empty where the likeliest label is answered.
    """

    lexical: Lexical
    priors: tuple[float, ...]
    thresholds: Mapping[str, Rule]

    def probabilities(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Probabilities `(N, C)` of each."""
        return {"majority": np.tile(self.priors, (len(texts), 1)), "tfidf": self.lexical.probabilities(texts)}


@dataclass(frozen=True)
class FrozenProbe:
    """A logistic regression on pooled states that enter block `start`, which tuning left alone with all below it.

    `start` is None where it learnt too: the states of the untuned model are gone then. `thresholds (C,)` as in
    Baselines.
    """

    weight_CD: np.ndarray
    bias_C: np.ndarray
    start: int | None
    multi_label: bool = False
    thresholds: np.ndarray | None = None

    def probabilities(self, pooled_ND: np.ndarray) -> np.ndarray:
        """Probabilities `(N, C)` float64."""
        logits_NC = pooled_ND.astype(np.float64) @ self.weight_CD.T.astype(np.float64) + self.bias_C
        return Calibration(multi_label=self.multi_label).probabilities(logits_NC)
