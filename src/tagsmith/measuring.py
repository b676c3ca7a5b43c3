"""Stage 4 on a run: the saved bundle and its baselines on the test rows, as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.data.preparing import Prepared
from tagsmith.data.table import Table
from tagsmith.errors import DataError, SettingError
from tagsmith.events import Event, listened, silent
from tagsmith.labels import Labels
from tagsmith.run import HELD_OUT, Result, Run

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.evaluation.report import Report
    from tagsmith.evaluation.sections import Asked
    from tagsmith.model.classifier import Classifier, Scorer
    from tagsmith.model.lexical import Lexical
    from tagsmith.tuning.loop import Tuned


def measure_test(bundle: Bundle, prepared: Prepared, result: Result, run: Run) -> tuple[Report, np.ndarray]:
    """The report, and the probabilities `(N, C)` of the test rows."""
    from tagsmith.evaluation.report import build_report

    config, table = run.config, prepared.splits.test
    if not len(table):
        raise DataError("No rows are left to test on. Expected a few dozen rows or more; add rows, or give --test.")
    _fit_baselines(bundle, prepared, result, run)
    run.listen(Event("evaluation", "test", values={"rows": len(table)}))
    logits_NC, before_NC, *further_NC = _test_logits(bundle.engine.scorer, result)
    calibration = bundle.engine.classifier.calibration
    probs_NC = calibration.probabilities(logits_NC)
    seeds = _seeds(bundle, result, probs_NC, further_NC, seed=config.seed)
    report = build_report(
        data=data_section(
            prepared.history,
            rows=prepared.history[0].rows_before,
            splits={name: len(part) for name, part in prepared.splits.items()},
            labels=bundle.engine.labels,
        )
        | {"leak": dict(prepared.leak), "truncated": _truncated(result), "duplicates": dict(prepared.duplicates)}
        | run.facts,
        model=_model_section(bundle, result, run),
        settings=config.model_dump(),
        truth=result.parts["test"].truth,
        probs=probs_NC,
        baseline_probs=bundle.baseline_probabilities(table.texts),
        thresholds=_thresholds(bundle, result, run),
        metric=config.evaluation.metric,
        groups=table.groups,
        labels=bundle.engine.labels,
        before_probs=calibration.probabilities(before_NC),
        asked=asked_of(table, bundle, run),
        leaked=prepared.leaked,
        discordance=_discordance(bundle, prepared, result, run),
        curves=result.tuned.curves,
        seeds=seeds,
        forecast=None if run.forecast is None else run.forecast.plan.as_dict(),
        calibration=bundle.settings["calibration"]
        | {"rows": len(result.parts["calibration"].truth)}
        | _about_thresholds(bundle, result),
        notes=[*prepared.notes, *run.notes],
        reproduce=run.command,
        margin=config.evaluation.margin,
        resamples=config.evaluation.resamples,
        seed=config.seed,
    )
    run.listen(Event("evaluation", "scores", values=report.headline()))
    return report, probs_NC


def asked_of(table: Table, bundle: Bundle, run: Run) -> Asked:
    """What the report should have beside scores, for these test rows."""
    from tagsmith.evaluation.facets import facets_of
    from tagsmith.evaluation.sections import Asked

    labels, priors = bundle.engine.labels, bundle.settings["data"]["priors"]
    if run.config.evaluation.costs and labels.multi_label:
        raise SettingError(
            "evaluation.costs has a cost for each truth and answer, and a text may have several labels here. Expected "
            "one label a text; leave it out."
        )
    return Asked(
        rows=table.rows,
        facets=facets_of(table),
        costs=run.config.evaluation.costs,
        prior=None if labels.multi_label else labels.in_order(priors),
    )


def _fit_baselines(bundle: Bundle, prepared: Prepared, result: Result, run: Run) -> None:
    """Fit TF-IDF on the rows that the LLM learned from, and save it beside the LLM."""
    from tagsmith.deployment.baselines import write_baselines
    from tagsmith.model.lexical_fitting import fit_lexical, fit_lexical_sets

    run.listen(Event("evaluation", "baselines", values={"text": "TF-IDF on the same rows"}))
    table, truth, labels = prepared.splits.train, result.parts["train"].truth, bundle.engine.labels
    weights_C = None if prepared.class_weights is None else labels.in_order(prepared.class_weights)
    if labels.multi_label:
        lexical = fit_lexical_sets(table.texts, truth, table.groups, seed=run.config.seed, weights_C=weights_C)
        thresholds = _baseline_thresholds(lexical, prepared, result, run)
        write_baselines(bundle.folder, lexical, truth.mean(axis=0).tolist(), thresholds=thresholds)
        return
    lexical = fit_lexical(
        table.texts,
        truth,
        table.groups,
        classes=len(labels),
        seed=run.config.seed,
        weights=None if weights_C is None else weights_C[truth],
    )
    priors = np.bincount(truth, minlength=len(labels)) / len(truth)
    write_baselines(bundle.folder, lexical, priors.tolist())


def _baseline_thresholds(lexical: Lexical, prepared: Prepared, result: Result, run: Run) -> dict[str, np.ndarray]:
    """Those of TF-IDF are fitted as the model's own, on the same rows; majority means half of the rows."""
    from tagsmith.evaluation.thresholds import EVEN, fit_thresholds

    texts = [text for name in HELD_OUT for text in getattr(prepared.splits, name).texts]
    fitted = fit_thresholds(lexical.probabilities(texts), result.held_out_truth, metric=run.config.evaluation.metric)
    return {"majority": np.full(len(fitted.values), EVEN), "tfidf": fitted.values}


def _thresholds(bundle: Bundle, result: Result, run: Run) -> dict[str, np.ndarray] | None:
    """The bundle's, and those that the model would have had before tuning, fitted on the same rows."""
    from tagsmith.evaluation.thresholds import fit_thresholds
    from tagsmith.tuning.methods import swapped

    classifier, known = bundle.engine.classifier, bundle.thresholds
    if known is None:
        return None
    with swapped(classifier, result.untuned):
        before_NC = classifier.calibration.probabilities(result.held_out_logits(classifier))
    fitted = fit_thresholds(before_NC, result.held_out_truth, metric=run.config.evaluation.metric)
    return known | {"before_tuning": fitted.values}


def _about_thresholds(bundle: Bundle, result: Result) -> dict[str, Any]:
    """On how many rows thresholds were fitted, and which labels share theirs."""
    if result.thresholds is None:
        return {}
    shared = [name for name, is_shared in zip(bundle.labels, result.thresholds.shared, strict=True) if is_shared]
    return {"thresholds": {"rows": result.thresholds.rows, "shared": shared}}


def _discordance(bundle: Bundle, prepared: Prepared, result: Result, run: Run) -> float:
    """The share of validation rows that just one of LLM and TF-IDF gets right; it says what the test rows can show.

    With several labels a row: how far their answers differ in what they are compared by.
    """
    truth, thresholds = result.parts["validation"].truth, bundle.thresholds
    if thresholds is not None:
        from tagsmith.evaluation.set_comparison import paired_spread, primary_measure

        classifier, table = bundle.engine.classifier, prepared.splits.validation
        probs_NC = classifier.calibration.probabilities(result.logits(classifier, "validation"))
        return paired_spread(
            truth,
            probs_NC >= thresholds["model"],
            bundle.baseline_probabilities(table.texts)["tfidf"] >= thresholds["tfidf"],
            table.groups,
            measure=primary_measure(run.config.evaluation.metric),
        )
    llm = result.logits(bundle.engine.classifier, "validation").argmax(axis=1) == truth
    tfidf = bundle.baseline_probabilities(prepared.splits.validation.texts)["tfidf"].argmax(axis=1) == truth
    return float((llm != tfidf).mean())


def _test_logits(scorer: Scorer, result: Result) -> list[np.ndarray]:
    """Logits `(N, C)` of the test rows: from the saved weights, from those before tuning, and of each further seed.

    All start from the same pass over the blocks that tuning left alone, made with the reloaded bundle in fp32.
    """
    from tagsmith.model.activations import frozen_states
    from tagsmith.model.classifier import Scorer, finish_states
    from tagsmith.tuning.methods import swapped

    classifier, tokens, start = scorer.classifier, result.parts["test"].tokens, result.tuned.start
    states = listened(frozen_states(scorer.lowest(start), tokens), silent) if start else None

    def answered() -> np.ndarray:
        if states is None or not start:
            return Scorer(classifier).logits(tokens)
        return finish_states(classifier, states, start=start)

    logits = [answered() if start else scorer.logits(tokens)]
    for weights in (result.untuned, *(each.run.weights for each in result.further)):
        with swapped(classifier, weights):
            logits.append(answered())
    return logits


def _seeds(
    bundle: Bundle, result: Result, probs_NC: np.ndarray, further_NC: Sequence[np.ndarray], *, seed: int
) -> list[dict[str, Any]]:
    """What each seed's weights say of the validation and the test rows; nothing where there was but one."""
    from tagsmith.evaluation.spread import points

    if not result.further:
        return []
    own = None if bundle.thresholds is None else bundle.thresholds["model"]
    truth = result.parts["test"].truth
    found = [_about_seed(seed, result.tuned) | {"test": points(truth, probs_NC, thresholds=own)}]
    for each, logits_NC in zip(result.further, further_NC, strict=True):
        thresholds_C = None if each.thresholds is None else each.thresholds.values
        test = points(truth, each.calibration.probabilities(logits_NC), thresholds=thresholds_C)
        found.append(_about_seed(each.run.seed, each.run.tuned) | {"test": test})
    return found


def _about_seed(seed: int, tuned: Tuned) -> dict[str, Any]:
    return {"seed": seed, "best_step": tuned.best_step, **tuned.validated}


def book_tables(bundle: Bundle, prepared: Prepared, result: Result, report: Report, run: Run) -> dict[str, Any]:
    """What the book's chapter prints: counts, and accuracies before, during and after; nothing for other splits."""
    from tagsmith.tuning.methods import swapped

    if run.config.data.split != "book":
        return {}
    classifier = bundle.engine.classifier
    shares = {"after": _accuracies(classifier, result)}
    with swapped(classifier, result.untuned):
        shares["before"] = _accuracies(classifier, result)
    assert report.before_tuning is not None, "it was just measured"
    shares["before"]["test"] = report.before_tuning["accuracy"]["value"]
    shares["after"]["test"] = report.test["accuracy"]["value"]
    rows = prepared.history[0].rows_before
    counts = {
        "In the source": {name: round(share * rows) for name, share in prepared.true_priors.items()},
        "After undersampling": _label_counts(prepared),
    }
    return {"book": {"counts": counts, "course": result.tuned.curves, **shares}}


def _accuracies(classifier: Classifier, result: Result) -> dict[str, float]:
    return {
        name: float((result.logits(classifier, name).argmax(axis=1) == result.parts[name].truth).mean())
        for name in ("train", "validation")
    }


def _label_counts(prepared: Prepared) -> dict[str, int]:
    labels = [label for _, table in prepared.splits.items() for label in table.labels]
    return {name: labels.count(name) for name in sorted(set(labels))}


def data_section(history: Any, *, rows: int, splits: Mapping[str, int], labels: Labels) -> dict[str, Any]:
    """What `data` of report.json always says; `history` are the changes of a table."""
    return {
        "rows": rows,
        "history": [vars(change) for change in history],
        "splits": dict(splits),
        "labels": list(labels.names),
    }


def _truncated(result: Result) -> dict[str, float]:
    cut = sum(int(part.tokens.truncated.sum()) for part in result.parts.values())
    return {"rows": cut, "share": cut / sum(len(part.truth) for part in result.parts.values())}


def _model_section(bundle: Bundle, result: Result, run: Run) -> dict[str, Any]:
    assert run.weights is not None, "the model was built"
    classifier = bundle.engine.classifier
    return {
        "backbone": run.weights.name,
        "sha256": run.weights.sha256,
        "family": classifier.backbone.config.model_type,
        "layers": classifier.backbone.depth,
        "pooling": classifier.pooling,
        "long_texts": classifier.encoder.long_texts,
        "head": run.config.model.head,
        "method": run.config.tuning.method,
        "parameters": sum(weight.numel() for weight in classifier.parameters()),
        "trained_parameters": result.trained_parameters,
        "best_step": result.tuned.best_step,
        "steps": result.tuned.steps,
        **({} if result.tuned.average is None else {"average": result.tuned.average}),
        "hugging_face": bundle.settings["hugging_face"],
        **({} if run.depth is None else {"depth": run.depth.as_dict()}),
    }
