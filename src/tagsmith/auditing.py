"""Stage 4 on the training rows: labels that may be wrong, what more of them would bring, and rows like a mistake.

All of it rests on the mean states of the frozen blocks, which tuning has kept, or which are computed once more where
every block learnt.

Axes: N rows, D width, C labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.data.preparing import Prepared
from tagsmith.events import Event, Listener, listened, silent
from tagsmith.labels import Labels
from tagsmith.run import Result, Run
from tagsmith.sparing import Spare

if TYPE_CHECKING:
    from tagsmith.data.encoding import Tokens
    from tagsmith.data.table import Table
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.deployment.torch_engine import TorchEngine
    from tagsmith.evaluation.audit import Audit
    from tagsmith.evaluation.page.texts import Mishap, PageTexts
    from tagsmith.evaluation.shift import Counted
    from tagsmith.tuning.cross_fitting import CrossFit

MOST_ROWS = 10_000
MOST_PRODUCTS = 4 * 10**8
"""Of rows, width and labels: what one fit may take, so that the audit of 150 labels takes seconds too."""
MOST_SUSPECTS, MOST_EXPLAINED, MOST_QUESTIONS, NEAREST = 100, 10, 24, 3


@dataclass(frozen=True)
class Lookback:
    """What training rows say afterwards: keys of report.json, and the texts that its page quotes."""

    keys: dict[str, Any]
    texts: PageTexts


def look_back(
    bundle: Bundle[TorchEngine],
    prepared: Prepared,
    result: Result,
    run: Run,
    *,
    probs_NC: np.ndarray,
    means_ND: np.ndarray | None,
    spare: Spare,
) -> Lookback:
    """Audit the training labels, draw the learning curve, and explain the surest mistakes on the test rows.

    `probs_NC` and the mean states `means_ND` are those of the test rows, the latter None where they are not at hand.
    With `evaluation.audit` off only the mistakes are told.
    """
    from tagsmith.evaluation.mistakes import cell_texts, mistakes
    from tagsmith.evaluation.page.texts import PageTexts

    labels, test, truth = bundle.engine.labels, prepared.splits.test, result.parts["test"].truth
    found = mistakes(test, truth, probs_NC, labels, thresholds=bundle.engine.thresholds)
    keys, training = {}, {}
    if run.config.evaluation.audit:
        seen = _Seen.of(bundle, prepared, result, run)
        if found:
            theirs_ND = _means_of(found, test, bundle, result, means_ND)
            found = explained(_with_nearest(found, theirs_ND, seen, labels), bundle, spare, run.listen)
        keys, training = _audited(seen, labels, run)
    keys |= {"mistakes": [without_text(mistake) for mistake in found]}
    return Lookback(
        keys,
        PageTexts(mistakes=found, cells=cell_texts(test, truth, probs_NC, bundle.engine.thresholds), training=training),
    )


@dataclass(frozen=True)
class _Seen:
    """Training rows, or a stratified sample of many: their states, truth, groups, numbers in the source and texts."""

    states_ND: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    rows: np.ndarray
    texts: Sequence[str]
    among: int

    @classmethod
    def of(cls, bundle: Bundle[TorchEngine], prepared: Prepared, result: Result, run: Run) -> _Seen:
        from tagsmith.evaluation.learning_curve import sampled

        table, truth, labels = prepared.splits.train, result.parts["train"].truth, bundle.engine.labels
        strata = truth.argmax(axis=1) if labels.multi_label else truth
        width = bundle.engine.classifier.backbone.width
        most = min(MOST_ROWS, max(50 * len(labels), 1000, MOST_PRODUCTS // (width * len(labels))))
        once = np.unique(table.rows, return_index=True)[1]  # oversampled rows count once
        chosen = once[sampled(len(once), seed=run.config.seed, most=most, strata=strata[once])]
        run.listen(Event("evaluation", "audit", values={"rows": len(chosen)}))
        texts, states_ND = table.texts, _states_of(bundle, result, run, chosen)
        return cls(
            states_ND, truth[chosen], table.groups[chosen], table.rows[chosen], [texts[i] for i in chosen], len(once)
        )


def _states_of(bundle: Bundle[TorchEngine], result: Result, run: Run, chosen: np.ndarray) -> np.ndarray:
    """Mean states `(N, D)` of some training rows."""
    from tagsmith.model.state_means import mean_states

    kept = result.tuned.states.get("train")
    if kept is not None and result.tuned.start:
        return mean_states(kept)[chosen]
    return _frozen_means(bundle, result, result.parts["train"].tokens.of_texts(chosen), listen=run.listen)


def _frozen_means(
    bundle: Bundle[TorchEngine], result: Result, tokens: Tokens, *, listen: Listener = silent
) -> np.ndarray:
    """Mean states `(N, D)` of texts, by the blocks below the tuned ones, or all of them as they were before tuning."""
    import torch

    from tagsmith.model.activations import FrozenBlocks, frozen_states
    from tagsmith.model.state_means import mean_states
    from tagsmith.tuning.methods import swapped

    classifier = bundle.engine.classifier
    stop = result.tuned.start or classifier.backbone.depth
    with swapped(classifier, result.untuned):
        frozen = FrozenBlocks(classifier.backbone, stop=stop, dtype=torch.float32)
        return mean_states(listened(frozen_states(frozen, tokens), listen))


# ---- Labels that may be wrong, and how many more there should be


def _audited(seen: _Seen, labels: Labels, run: Run) -> tuple[dict[str, Any], dict[int, str]]:
    """The keys `label_audit` and `learning_curve`, and the texts of suspects by row."""
    from tagsmith.evaluation.audit import audit
    from tagsmith.evaluation.learning_curve import FEWEST_ROWS
    from tagsmith.tuning.cross_fitting import FOLDS, CrossFit

    if len(np.unique(seen.groups)) < max(FEWEST_ROWS, 2 * FOLDS):
        return {}, {}
    crossed = CrossFit.of(seen.states_ND, seen.truth, seen.groups, classes=len(labels), seed=run.config.seed)
    first_NC = crossed.probabilities()
    found = audit(seen.truth, lambda kept_N: first_NC if kept_N is None else crossed.probabilities(kept_N))
    keys = {
        "label_audit": _audit_section(found, seen, labels),
        "learning_curve": _curve_section(crossed, first_NC, seen, labels, run),
    }
    shown = [int(place) for place in found.places[:MOST_SUSPECTS]]
    return keys, {int(seen.rows[place]): seen.texts[place] for place in shown}


def _audit_section(found: Audit, seen: _Seen, labels: Labels) -> dict[str, Any]:
    suspects = [
        {
            "row": int(seen.rows[place]),
            "sha256": _hash(seen.texts[place]),
            "given": _named(seen.truth[place], labels),
            "suggested": _named(suggested, labels),
            "confidence": float(confidence),
        }
        for place, suggested, confidence in zip(found.places, found.suggested, found.confidence, strict=True)
    ]
    sample = "" if found.rows == seen.among else f", a sample of {seen.among:,}"
    return {
        "rows": found.rows,
        "of": seen.among,
        "flagged": len(suspects),
        "share": found.share,
        "suspects": suspects[:MOST_SUSPECTS],
        "text": _told(found.rows, len(suspects), sample),
        "note": (
            "By confident learning on what probes on frozen states say of rows that they did not see, refitted without "
            "the rows that disagree. Begin with the first: the labels of the last may well be right, since a rare or a "
            "hard text looks the same."
        ),
    }


def _told(rows: int, flagged: int, sample: str) -> str:
    if not flagged:
        return f"None of {rows:,} training rows{sample} has a label that the others speak against."
    return f"Of {rows:,} training rows{sample}, {flagged:,} have a label that the others speak against."


def _named(label: Any, labels: Labels) -> str:
    return ", ".join(labels.decode(np.flatnonzero(label))) or "-" if labels.multi_label else labels.names[int(label)]


def _curve_section(crossed: CrossFit, first_NC: np.ndarray, seen: _Seen, labels: Labels, run: Run) -> dict[str, Any]:
    from tagsmith.evaluation.learning_curve import NOTE, learning_curve, measure_curve
    from tagsmith.tuning.cross_fitting import FOLDS

    def right(probs_NC: np.ndarray) -> np.ndarray:
        if labels.multi_label:
            return ((probs_NC >= 0.5) == seen.truth).mean(axis=1)
        return (probs_NC.argmax(axis=1) == seen.truth).astype(float)

    measured = measure_curve(
        lambda kept_N: right(first_NC if kept_N.all() else crossed.probabilities(kept_N)),
        seen.groups,
        learnt_share=1 - 1 / FOLDS,
        seed=run.config.seed,
    )
    measure = "decisions" if labels.multi_label else "accuracy"
    resamples, seed = run.config.evaluation.resamples, run.config.seed
    return learning_curve(measured, measure=measure, resamples=resamples, seed=seed) | {"note": NOTE}


# ---- Rows of another source


def look_at_others(
    bundle: Bundle[Any], table: Table, truth: np.ndarray, probs_NC: np.ndarray, *, listen: Listener, seed: int
) -> Lookback:
    """What is told of other labelled rows beside scores: the surest mistakes, and whether they differ from the test's.

    All of `table` was answered; `truth` is `(N,)`, or `(N, C)` bool.
    """
    from tagsmith.evaluation.mistakes import cell_texts, mistakes
    from tagsmith.evaluation.page.texts import PageTexts

    found = mistakes(table, truth, probs_NC, bundle.engine.labels, thresholds=bundle.engine.thresholds)
    found = explained(found, bundle, Spare.of(bundle, None), listen)
    keys: dict[str, Any] = {"mistakes": [without_text(mistake) for mistake in found]}
    if shift := _shift(bundle, table, truth, probs_NC, seed=seed):
        keys["shift"] = shift
    return Lookback(keys, PageTexts(mistakes=found, cells=cell_texts(table, truth, probs_NC, bundle.engine.thresholds)))


def _shift(
    bundle: Bundle[Any], table: Table, truth: np.ndarray, probs_NC: np.ndarray, *, seed: int
) -> dict[str, Any] | None:
    """One row of each group against the test rows of the training; None where the bundle has no profile of them."""
    from tagsmith.deployment.drift import Profile
    from tagsmith.evaluation.shift import Counted, detect_shift

    profile = Profile.read(bundle.folder)
    if profile is None:
        return None
    first = np.sort(np.unique(table.groups, return_index=True)[1])
    texts, test = table.texts, bundle.report["test"]
    live = profile.counts_of([texts[i] for i in first], probs_NC[first], labels=bundle.labels)
    features = [
        Counted(_FEATURES.get(each.name, each.name), np.array(each.counts), live[each.name], ordered=not each.names)
        for each in profile.features
    ]
    features += _probabilities_apart(bundle, probs_NC[first])
    if not bundle.multi_label:
        truths = np.bincount(truth[first], minlength=len(bundle.labels))
        supports = np.array([each["support"] for each in test["per_label"]])
        features.append(Counted("label given", supports, truths, ordered=False))
    return detect_shift(features, seed=seed, independent=test.get("groups", test["n"]) / test["n"])


_FEATURES = {"length": "length", "unknown_words": "unknown words", "score": "surety", "label": "label answered"}


def _probabilities_apart(bundle: Bundle[Any], probs_NC: np.ndarray) -> list[Counted]:
    """The probability of each label, where there are few, against those that the report kept of the test rows."""
    from tagsmith.evaluation.shift import MOST_LABELS, counted_numbers

    table = bundle.report.get("score_table")
    if not table or len(bundle.labels) > MOST_LABELS:
        return []
    tested_NC = np.asarray(table["probabilities"])
    names = bundle.labels[1:] if len(bundle.labels) == 2 and not bundle.multi_label else bundle.labels
    return [
        counted_numbers(f"probability of {name}", tested_NC[:, i], probs_NC[:, i])
        for i, name in enumerate(bundle.labels)
        if name in names
    ]


# ---- Mistakes


def _means_of(
    found: Sequence[Mishap], test: Table, bundle: Bundle[TorchEngine], result: Result, means_ND: np.ndarray | None
) -> np.ndarray:
    """The mean states of mistakes, computed where they are not at hand."""
    if means_ND is None:
        return _frozen_means(bundle, result, bundle.engine.tokens_alone([mistake.text for mistake in found]))
    places = {int(row): place for place, row in enumerate(test.rows)}
    return means_ND[[places[mistake.row] for mistake in found]]


def _with_nearest(found: Sequence[Mishap], means_MD: np.ndarray, seen: _Seen, labels: Labels) -> list[Mishap]:
    """Each mistake with the training rows whose mean states lie nearest to its own, by the cosine."""
    from tagsmith.evaluation.page.texts import NearestRow

    centre_D = seen.states_ND.mean(axis=0)
    theirs_ND = _unit(seen.states_ND - centre_D)
    likeness = _unit(means_MD - centre_D) @ theirs_ND.T
    explained = []
    for mistake, like_N in zip(found, likeness, strict=True):
        rows: dict[str, NearestRow] = {}  # the same text twice tells nothing new
        for place in np.argsort(-like_N, kind="stable")[: 10 * NEAREST]:
            text, similarity = seen.texts[place], float(np.clip(like_N[place], 0, 1))
            row = NearestRow(int(seen.rows[place]), text, _named(seen.truth[place], labels), similarity)
            rows.setdefault(text.casefold(), row)
        explained.append(replace(mistake, nearest=tuple(rows.values())[:NEAREST]))
    return explained


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-9)


def explained(found: Sequence[Mishap], bundle: Bundle[Any], spare: Spare, listen: Listener) -> list[Mishap]:
    """The surest mistakes with the words that mattered for the answer, as many as may be asked about."""
    from tagsmith.model.attribution import explain, pieces_of

    if bundle.engine.labels.multi_label or not found:
        return list(found)
    texts, names = [mistake.text for mistake in found[:MOST_EXPLAINED]], bundle.engine.labels.names
    count, questions = spare.questions(texts, most=MOST_QUESTIONS)
    listen(Event("evaluation", "explaining", values={"mistakes": count}))
    shown = found[:count]
    targets = [names.index(mistake.predicted) for mistake in shown]
    spans = explain(texts[:count], targets, spare.probabilities, most=questions)
    words = [tuple(pieces_of(mistake.text, each)) for mistake, each in zip(shown, spans, strict=True)]
    return [replace(mistake, words=each) for mistake, each in zip(shown, words, strict=True)] + list(found[count:])


def without_text(mistake: Mishap) -> dict[str, Any]:
    """What report.json says of a mistake: numbers, labels and hashes."""
    return {
        "row": mistake.row,
        "sha256": _hash(mistake.text),
        "truth": mistake.truth,
        "answer": mistake.predicted,
        "probability": mistake.probability,
        "nearest": [
            {"row": each.row, "sha256": _hash(each.text), "label": each.label, "similarity": each.similarity}
            for each in mistake.nearest
        ],
    }


def _hash(text: str) -> str:
    """The first 16 digits of a text's SHA-256: enough to know a row again."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
