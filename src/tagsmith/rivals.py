"""The rivals of a tuned LLM, fitted on the rows that it learned from: TF-IDF, and a probe on its frozen states.

Axes: N texts, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tagsmith.data.preparing import Prepared
from tagsmith.events import Event, listened, silent
from tagsmith.labels import Labels
from tagsmith.run import HELD_OUT, Result, Run, labels_of, truth_of

if TYPE_CHECKING:
    from torch import Tensor

    from tagsmith.deployment.baselines import FrozenProbe
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.deployment.torch_engine import TorchEngine
    from tagsmith.model.activations import States
    from tagsmith.model.decision import Rule
    from tagsmith.model.lexical import Lexical

_MOST_ROWS_TO_CHOOSE = 1500


def fit_rivals(bundle: Bundle[TorchEngine], prepared: Prepared, result: Result, run: Run) -> FrozenProbe:
    """Fit TF-IDF and a probe on the rows that the LLM learned from, save them beside it, and give the probe."""
    from tagsmith.deployment.baselines import write_probe

    run.listen(Event("evaluation", "baselines", values={"text": "TF-IDF and a frozen probe on the same rows"}))
    if result.lexical is None:  # a hybrid has fitted and saved its own
        save_tfidf(bundle.folder, fit_tfidf(bundle.engine.labels, prepared, run), prepared, result, run)
    probe = _fit_probe(bundle, result, run)
    write_probe(bundle.folder, probe)
    return probe


def save_tfidf(folder: Path, lexical: Lexical, prepared: Prepared, result: Result, run: Run) -> None:
    """Write TF-IDF into a bundle, its thresholds or its decision for one label fitted as the model's own."""
    from tagsmith.deployment.baselines import write_baselines

    truth = result.parts["train"].truth
    if not lexical.multi_label:
        shares = np.bincount(truth, minlength=len(lexical.bias)) / len(truth)
        write_baselines(folder, lexical, shares.tolist(), thresholds=_decision_of(lexical, prepared, result, run))
        return
    thresholds: dict[str, Rule] = {"majority": np.full(len(lexical.bias), _HALF)}
    thresholds["tfidf"] = _thresholds_of(lexical, prepared, result, run)
    write_baselines(folder, lexical, truth.mean(axis=0).tolist(), thresholds=thresholds)


_HALF = 0.5
"""Majority means half of the rows, where a text may have several labels."""


def fit_tfidf(labels: Labels, prepared: Prepared, run: Run) -> Lexical:
    """TF-IDF and a linear model on all training rows."""
    from tagsmith.model.lexical_fitting import fit_lexical, fit_lexical_sets

    table = prepared.whole_train or prepared.splits.train
    truth = truth_of(table, labels)
    weights_C = None if prepared.class_weights is None else labels.in_order(prepared.class_weights)
    if labels.multi_label:
        return fit_lexical_sets(table.texts, truth, table.groups, seed=run.config.seed, weights_C=weights_C)
    return fit_lexical(
        table.texts,
        truth,
        table.groups,
        classes=len(labels),
        seed=run.config.seed,
        weights=None if weights_C is None else weights_C[truth],
    )


def _thresholds_of(lexical: Lexical, prepared: Prepared, result: Result, run: Run) -> np.ndarray:
    """Those of TF-IDF are fitted as the model's own, on the same rows."""
    from tagsmith.evaluation.thresholds import fit_thresholds

    texts = [text for name in HELD_OUT for text in getattr(prepared.splits, name).texts]
    probs_NC = lexical.probabilities(texts)
    return fit_thresholds(probs_NC, result.held_out_truth, metric=run.config.evaluation.metric).values


def _decision_of(lexical: Lexical, prepared: Prepared, result: Result, run: Run) -> dict[str, Rule]:
    """How TF-IDF decides for one label; nothing where it answers the likeliest."""
    from tagsmith.deciding import decision_for, is_decided

    if not is_decided(run.config):
        return {}
    texts = [text for name in HELD_OUT for text in getattr(prepared.splits, name).texts]
    labels = labels_of(prepared.splits.train)
    fitted = decision_for(lexical.probabilities(texts), labels, prepared, result, run)
    return {} if fitted.decision is None else {"tfidf": fitted.decision}


# ---- The probe


def _fit_probe(bundle: Bundle[TorchEngine], result: Result, run: Run) -> FrozenProbe:
    """A logistic regression on what the frozen blocks make of the training rows."""
    import torch

    from tagsmith.deployment.baselines import FrozenProbe
    from tagsmith.evaluation.thresholds import fit_thresholds
    from tagsmith.tuning.probes import choose_strength, fit_probe

    labels, part = bundle.engine.labels, result.parts["train"]
    pooled_ND, truth = frozen_features(bundle, result, run, "train"), torch.from_numpy(part.truth)
    groups = np.arange(len(truth)) if part.groups is None else part.groups
    chosen = _sample(groups, seed=run.config.seed)
    strength, _ = choose_strength(
        pooled_ND[chosen], truth[chosen], groups[chosen], classes=len(labels), seed=run.config.seed, bias=True
    )
    fitted = fit_probe(pooled_ND, truth, classes=len(labels), strength=strength, bias=True)
    assert fitted.bias_C is not None, "it was asked for"
    probe = FrozenProbe(
        weight_CD=fitted.weight_CD.numpy(),
        bias_C=fitted.bias_C.numpy(),
        start=result.tuned.start or None,
        multi_label=labels.multi_label,
    )
    if not labels.multi_label:
        return probe
    parts = [frozen_features(bundle, result, run, name) for name in HELD_OUT if len(result.parts[name].truth)]
    probs_NC = probe.probabilities(np.concatenate([each.numpy() for each in parts]))
    fitted_C = fit_thresholds(probs_NC, result.held_out_truth, metric=run.config.evaluation.metric).values
    return replace(probe, thresholds=fitted_C)


def _sample(groups: np.ndarray, *, seed: int) -> np.ndarray:
    """The rows by which the penalty is chosen: all, or of many a sample of whole groups."""
    if len(groups) <= _MOST_ROWS_TO_CHOOSE:
        return np.arange(len(groups))
    distinct, of_row = np.unique(groups, return_inverse=True)
    place_N = np.random.default_rng(seed).permutation(len(distinct))[of_row]
    return np.flatnonzero(place_N < len(distinct) * _MOST_ROWS_TO_CHOOSE / len(groups))


def frozen_features(
    bundle: Bundle[TorchEngine], result: Result, run: Run, name: str, *, states: States | None = None
) -> Tensor:
    """What a probe sees of a part `(N, D)`: the pooled states that leave the blocks which tuning left alone.

    They are at hand where tuning kept them, or as `states`; where every block learnt, those of the untuned model are
    computed once more.
    """
    import torch

    from tagsmith.model.classifier import pool_states
    from tagsmith.model.device import arithmetic, device_of
    from tagsmith.tuning.methods import swapped
    from tagsmith.tuning.probes import seen_by_head

    classifier = bundle.engine.classifier
    kept = result.tuned.states.get(name) if states is None else states
    if kept is not None and result.tuned.start:
        return torch.from_numpy(pool_states(classifier, kept, start=classifier.backbone.depth))
    dtype = arithmetic(run.config.tuning.precision, device_of(classifier))
    with swapped(classifier, result.untuned):
        return seen_by_head(classifier, result.parts[name], None, start=None, dtype=dtype)


def rival_probabilities(bundle: Bundle, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What the rivals saved in a bundle say of texts: probabilities `(N, C)` of `majority`, `tfidf` and `probe`.

    There is no `probe` where all blocks learnt, nor in bundles that have none.
    """
    from tagsmith.deployment.torch_engine import TorchEngine

    found = bundle.baseline_probabilities(texts)
    if isinstance(bundle.engine, TorchEngine):
        probs_NC = _probe_probabilities(bundle.folder, bundle.engine, texts)
        found |= {} if probs_NC is None else {"probe": probs_NC}
    return found


def _probe_probabilities(folder: Path, engine: TorchEngine, texts: Sequence[str]) -> np.ndarray | None:
    from tagsmith.deployment.baselines import read_probe
    from tagsmith.model.activations import frozen_states
    from tagsmith.model.classifier import pool_states

    probe = read_probe(folder)
    if probe is None or probe.start is None:
        return None
    states = listened(frozen_states(engine.scorer.lowest(probe.start), engine.tokens_alone(texts)), silent)
    return probe.probabilities(pool_states(engine.classifier, states, start=engine.classifier.backbone.depth))
