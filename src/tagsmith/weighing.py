"""What the answers of a run's systems cost, and how they bear damaged texts: measured with the saved bundle.

Axes: N texts, C labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.data.table import Table

if TYPE_CHECKING:
    from tagsmith.config import EvaluationConfig
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.deployment.torch_engine import TorchEngine
    from tagsmith.model.decision import Rule
    from tagsmith.sparing import Spare

_SINGLE_TEXTS = 5


# ---- What an answer costs; times, so for run.json


def weigh(
    bundle: Bundle[TorchEngine], texts: Sequence[str], *, seconds: float, probe_seconds: float, llm_share: float
) -> dict[str, Any]:
    """Seconds and bytes of each system: the LLM, TF-IDF, a probe, the cascade that asks the LLM about `llm_share`.

    `seconds` is what the LLM took for all `texts`, `probe_seconds` what the blocks below a probe did; one text alone is
    timed on a few of them, and not of the probe.
    """
    from tagsmith.deployment.baselines import BASELINE, PROBE_WEIGHTS, read_baselines

    lexical, folder = read_baselines(bundle.folder).lexical, bundle.folder
    some = [texts[i] for i in np.linspace(0, len(texts) - 1, min(_SINGLE_TEXTS, len(texts))).astype(int)]
    together = _timed(lambda: lexical.probabilities(texts))
    baseline_files = [path for path in (folder / BASELINE).iterdir() if path.name != PROBE_WEIGHTS]
    model = {
        "seconds_per_thousand": 1000 * seconds / len(texts),
        "seconds_per_text": _alone(lambda text: bundle.engine.answer([text]), some),
        "bytes": _size(_weights_of(folder)),
    }
    tfidf = {
        "seconds_per_thousand": 1000 * together / len(texts),
        "seconds_per_text": _alone(lambda text: lexical.probabilities([text]), some),
        "bytes": _size(baseline_files),
    }
    cascade = {key: tfidf[key] + llm_share * model[key] for key in ("seconds_per_thousand", "seconds_per_text")} | {
        "bytes": tfidf["bytes"] + model["bytes"]
    }
    probe = {"seconds_per_thousand": 1000 * probe_seconds / len(texts), "bytes": model["bytes"]}
    return {"model": model, "tfidf": tfidf, "probe": probe, "cascade": cascade}


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _alone(answer: Callable[[str], object], texts: Sequence[str]) -> float:
    """The median time of one text by itself, in seconds, after a first one that counts nowhere."""
    answer(texts[0])
    return float(np.median([_timed(lambda text=text: answer(text)) for text in texts]))


def _weights_of(folder: Path) -> list[Path]:
    return [path for path in (*folder.glob("*.safetensors"), *(folder / "trunk").glob("*.safetensors"))]


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


# ---- How damaged texts are answered


def bear(
    bundle: Bundle[TorchEngine],
    table: Table,
    truth: np.ndarray,
    probs: Mapping[str, np.ndarray],
    *,
    thresholds: Mapping[str, Rule] | None,
    spare: Spare,
    config: EvaluationConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """`robustness` of report.json: some rows of `table` as typing errors, other case and look-alikes leave them.

    `probs` are those of the undamaged texts `(N, C)` by `model` and `tfidf`, the first as the bundle's own engine
    answers; where `spare` has another, it answers the undamaged texts too, so that damage alone makes a difference.
    """
    from tagsmith.evaluation.robustness import KINDS, mangled, robustness_of, sample_rows
    from tagsmith.evaluation.sections import right_rows

    asked = config.robustness_rows
    most = spare.rows(table.texts, kinds=len(KINDS)) if asked == "auto" else int(asked)
    chosen = sample_rows(table.groups, most=most, seed=seed)
    if not len(chosen):
        return []
    texts = [table.texts[i] for i in chosen]
    kinds = {kind: damaged for kind, damaged in mangled(texts, seed=seed).items() if damaged != texts}
    damaged_texts = [text for damaged in kinds.values() for text in damaged]
    again = [] if spare.engine.name == bundle.engine.name else texts
    # A text that damage left empty is answered with nothing.
    model_NC = np.nan_to_num(spare.probabilities([*damaged_texts, *again]))
    answered = {"model": model_NC, "tfidf": bundle.baseline_probabilities(damaged_texts)["tfidf"]}

    def right(name: str, found: np.ndarray) -> np.ndarray:
        return right_rows(truth[chosen], found, (thresholds or {}).get(name))

    undamaged = {name: right(name, each[chosen]) for name, each in probs.items()}
    if again:
        undamaged["model"] = right("model", model_NC[len(damaged_texts) :])
    damaged = {
        kind: {
            name: right(name, answered[name][number * len(chosen) : (number + 1) * len(chosen)]) for name in undamaged
        }
        for number, kind in enumerate(kinds)
    }
    return robustness_of(undamaged, damaged)
