"""Stage 4 on a run: the saved bundle and its baselines on the test rows, as a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.assets import state_folder
from tagsmith.blending import llm_alone
from tagsmith.data.preparing import Prepared
from tagsmith.data.table import Table
from tagsmith.errors import DataError, SettingError
from tagsmith.events import Event, listened, silent
from tagsmith.labels import Labels
from tagsmith.model.hybrid import WHOLE
from tagsmith.rivals import fit_rivals, frozen_features
from tagsmith.run import Result, Run
from tagsmith.sparing import Spare
from tagsmith.weighing import bear, weigh

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.evaluation.cascade import Sides
    from tagsmith.evaluation.report import Report
    from tagsmith.evaluation.sections import Asked
    from tagsmith.model.activations import States
    from tagsmith.model.classifier import Classifier, Scorer
    from tagsmith.model.decision import Rule
    from tagsmith.tuning.loop import Tuned


@dataclass(frozen=True)
class Measured:
    """The report, the probabilities `(N, C)` of the test rows, and who answers further questions about them.

    `means_ND` are the mean states that left the frozen blocks; None where every block learnt.
    """

    report: Report
    probs_NC: np.ndarray
    means_ND: np.ndarray | None
    spare: Spare


def measure_test(bundle: Bundle, prepared: Prepared, result: Result, run: Run) -> Measured:
    """The test rows by the saved bundle and its rivals, with all that the report tells of them."""
    from tagsmith.evaluation.comparison import with_cost
    from tagsmith.evaluation.report import build_report
    from tagsmith.model.state_means import mean_states

    config, table = run.config, prepared.splits.test
    if not len(table):
        raise DataError("No rows are left to test on. Expected a few dozen rows or more; add rows, or give --test.")
    probe = fit_rivals(bundle, prepared, result, run)
    count_look(table, run, what="train")
    run.listen(Event("evaluation", "test", values={"rows": len(table)}))
    passed = _test_logits(bundle.engine.scorer, result)
    llm_NC, llm_thresholds = llm_alone(bundle.engine.classifier, prepared, result, passed.logits[0], run)
    logits_NC, before_NC, *further_NC = (result.mixed(each, "test") for each in passed.logits)
    calibration, truth = bundle.engine.classifier.calibration, result.parts["test"].truth
    probs_NC = calibration.probabilities(logits_NC)
    probe_NC = probe.probabilities(frozen_features(bundle, result, run, "test", states=passed.states).numpy())
    rivals = bundle.baseline_probabilities(table.texts) | {"probe": probe_NC}
    thresholds = _thresholds(bundle, result, run)
    if llm_thresholds is not None:
        thresholds = (thresholds or {}) | {"llm": llm_thresholds}
    cascade = _cascade(bundle, prepared, result, run, probs_NC, rivals["tfidf"])
    spare = Spare.of(bundle, None if run.forecast is None else run.forecast.plan)
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
        model=model_section(bundle, result, run),
        settings=config.model_dump(),
        truth=truth,
        probs=probs_NC,
        baseline_probs=rivals,
        llm_probs=llm_NC,
        name=WHOLE["none" if result.mixing is None else result.mixing.kind],
        thresholds=thresholds,
        cascade=cascade,
        robustness=bear(
            bundle,
            table,
            truth,
            {"model": probs_NC, "tfidf": rivals["tfidf"]},
            thresholds=thresholds,
            spare=spare,
            config=config.evaluation,
            seed=config.seed,
        ),
        metric=config.evaluation.metric,
        groups=table.groups,
        labels=bundle.engine.labels,
        before_probs=calibration.probabilities(before_NC),
        asked=asked_of(table, bundle, run),
        leaked=prepared.leaked,
        discordance=_discordance(bundle, prepared, result, run),
        candidates=() if run.searched is None else run.searched.candidates,
        curves=result.tuned.curves,
        seeds=seeds,
        forecast=None if run.forecast is None else run.forecast.plan.as_dict(),
        calibration=bundle.settings["calibration"] | _about_answering(bundle, result),
        notes=[*prepared.notes, *run.notes],
        reproduce=run.command,
        margin=config.evaluation.margin,
        resamples=config.evaluation.resamples,
        seed=config.seed,
    )
    run.apart["cost"] = weigh(
        bundle,
        table.texts,
        seconds=passed.seconds,
        probe_seconds=passed.frozen_seconds,
        llm_share=cascade["chosen"]["llm_share"],
    )
    run.apart["verdict"] = with_cost(
        report.verdict, run.apart["cost"], name=WHOLE["none" if result.mixing is None else result.mixing.kind]
    )
    run.listen(Event("evaluation", "scores", values=report.headline()))
    means_ND = None if passed.states is None else mean_states(passed.states)
    return Measured(report, probs_NC, means_ND, spare)


def count_look(table: Table, run: Run, *, what: str) -> None:
    """Enter a look at these test rows into the user's ledger, and say so where it is not the first."""
    from tagsmith.evaluation.ledger import look

    now = datetime.now(UTC).isoformat(timespec="seconds")
    looks = look(table.texts, what=what, date=now, folder=state_folder())
    run.apart["looks"] = looks.as_dict()
    if looks.count != 1:
        run.listen(Event("evaluation", "note", values={"text": looks.note}))


def rows_that_took_part(bundle: Bundle, table: Table, run: Run) -> np.ndarray | None:
    """Which rows `(N,)` bool of another table trained the bundle or chose its step, and a note where any did.

    None where none is known to have.
    """
    from tagsmith.data.earlier import SPLITS, Earlier

    if not (bundle.folder / SPLITS).is_file():
        return None
    known = Earlier.read(bundle.folder).took_part(table)
    if not known.any():
        return None
    others = int((~known).sum())
    beside = f"The scores of the other {others} stand beside." if others else "None is new."
    run.note(
        f"{int(known.sum())} of {len(table)} rows took part in the training of this bundle, so that their scores are "
        f"too good. {beside}"
    )
    return known


def cascade_again(
    bundle: Bundle, table: Table, truth: np.ndarray, probs_NC: np.ndarray, tfidf_NC: np.ndarray, run: Run
) -> dict[str, Any] | None:
    """The bundle's cascade on other rows; None in bundles that have none."""
    from tagsmith.evaluation.cascade import again

    kept = bundle.report.get("cascade")
    if not kept:
        return None
    test = _sides(bundle, truth, probs_NC, tfidf_NC)
    return again(kept, test, table.groups, margin=run.config.evaluation.margin)


def robustness_again(
    bundle: Bundle, table: Table, truth: np.ndarray, probs: Mapping[str, np.ndarray], run: Run
) -> list[dict[str, Any]]:
    """How other rows are answered when they are damaged; nothing of bundles without an LLM."""
    from tagsmith.deployment.torch_engine import TorchEngine

    if not isinstance(bundle.engine, TorchEngine):
        return []
    config, spare = run.config, Spare.of(bundle, None)
    return bear(
        bundle,
        table,
        truth,
        probs,
        thresholds=bundle.thresholds,
        spare=spare,
        config=config.evaluation,
        seed=config.seed,
    )


_MEASURING = ("slices", "costs", "margin", "resamples", "robustness_rows")
"""Settings of a training that say what is measured, and that a later evaluation may change."""


def require_measuring(settings: Mapping[str, Any]) -> None:
    """SettingError for settings that decide on more than what is measured."""
    names = [f"{section}.{key}" for section, values in settings.items() for key in values]
    other = [name for name in names if name.removeprefix("evaluation.") not in _MEASURING]
    if other:
        raise SettingError(
            f"{', '.join(other)} cannot be changed when a bundle is evaluated: it was decided in training. Expected "
            f"evaluation settings of what is measured: {', '.join(_MEASURING)}."
        )


def _sides(bundle: Bundle, truth: np.ndarray, model_NC: np.ndarray, baseline_NC: np.ndarray) -> Sides:
    from tagsmith.evaluation.cascade import Sides
    from tagsmith.evaluation.sections import right_rows, sureness

    own, lexical = ((bundle.thresholds or {}).get(system) for system in ("model", "tfidf"))
    return Sides(
        sureness(baseline_NC, lexical), right_rows(truth, baseline_NC, lexical), right_rows(truth, model_NC, own)
    )


def _cascade(
    bundle: Bundle, prepared: Prepared, result: Result, run: Run, probs_NC: np.ndarray, tfidf_NC: np.ndarray
) -> dict[str, Any]:
    """TF-IDF where it is sure, by the calibration rows or where there are none by the validation rows."""
    from tagsmith.evaluation.cascade import cascade_of

    name = "calibration" if len(result.parts["calibration"].truth) else "validation"
    classifier, held = bundle.engine.classifier, getattr(prepared.splits, name)
    held_out_NC = classifier.calibration.probabilities(result.logits(classifier, name))
    held_out_tfidf_NC = bundle.baseline_probabilities(held.texts)["tfidf"]
    return cascade_of(
        _sides(bundle, result.parts[name].truth, held_out_NC, held_out_tfidf_NC),
        _sides(bundle, result.parts["test"].truth, probs_NC, tfidf_NC),
        prepared.splits.test.groups,
        held_out_name=name,
        margin=run.config.evaluation.margin,
    )


def asked_of(table: Table, bundle: Bundle, run: Run) -> Asked:
    """What the report should have beside scores, for these test rows."""
    from tagsmith.deployment.recipe import sureties_of
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
        prior=None if labels.multi_label else _working_prior(bundle, priors),
        sureties=sureties_of(bundle.settings),
        certificate=(bundle.settings.get("abstention") or {}).get("certificate") or {},
    )


def _working_prior(bundle: Bundle, priors: Mapping[str, float]) -> np.ndarray:
    """The shares of labels where the classifier works: those asked for, or else those of the source."""
    target = bundle.settings.get("prior")
    return bundle.engine.labels.in_order(target or priors)


def _thresholds(bundle: Bundle, result: Result, run: Run) -> dict[str, Rule] | None:
    """The bundle's, and those that the model would have had before tuning, fitted on the same rows.

    Before it was tuned a classifier for one label answered the likeliest one, whatever is decided since.
    """
    from tagsmith.evaluation.thresholds import fit_thresholds
    from tagsmith.tuning.methods import swapped

    classifier, known = bundle.engine.classifier, bundle.thresholds
    if known is None or not bundle.multi_label:
        return known
    with swapped(classifier, result.untuned):
        before_NC = classifier.calibration.probabilities(result.held_out_logits(classifier))
    fitted = fit_thresholds(before_NC, result.held_out_truth, metric=run.config.evaluation.metric)
    return known | {"before_tuning": fitted.values}


def _about_answering(bundle: Bundle, result: Result) -> dict[str, Any]:
    """How logits were scaled; on how many rows thresholds were fitted, and which labels share theirs."""
    assert result.answering is not None, "it was just fitted"
    about, fitted = result.answering.about, result.answering.thresholds
    if fitted is None:
        return about
    shared = [name for name, is_shared in zip(bundle.labels, fitted.shared, strict=True) if is_shared]
    return about | {"thresholds": {"rows": fitted.rows, "shared": shared}}


def _discordance(bundle: Bundle, prepared: Prepared, result: Result, run: Run) -> float:
    """The share of validation rows that just one of LLM and TF-IDF gets right; it says what the test rows can show.

    With several labels a row: how far their answers differ in what they are compared by.
    """
    truth, rules = result.parts["validation"].truth, bundle.thresholds or {}
    if rules:
        from tagsmith.evaluation.set_comparison import as_sets, compared_by, paired_spread
        from tagsmith.model.decision import decided

        classifier, table = bundle.engine.classifier, prepared.splits.validation
        probs_NC = classifier.calibration.probabilities(result.logits(classifier, "validation"))
        answers = decided(probs_NC, rules.get("model"))
        rival = decided(bundle.baseline_probabilities(table.texts)["tfidf"], rules.get("tfidf"))
        return paired_spread(
            as_sets(truth, len(bundle.labels)),
            as_sets(answers, len(bundle.labels)),
            as_sets(rival, len(bundle.labels)),
            table.groups,
            measure=compared_by(run.config.evaluation.metric, rules.get("model")),
        )
    llm = result.logits(bundle.engine.classifier, "validation").argmax(axis=1) == truth
    tfidf = bundle.baseline_probabilities(prepared.splits.validation.texts)["tfidf"].argmax(axis=1) == truth
    return float((llm != tfidf).mean())


@dataclass(frozen=True)
class _Passed:
    """The test rows after their pass: logits `(N, C)` from several weights, and the seconds that the saved ones took.

    `states` entered the first tuned block after `frozen_seconds`; None where every block learnt.
    """

    logits: list[np.ndarray]
    states: States | None
    seconds: float
    frozen_seconds: float


def _test_logits(scorer: Scorer, result: Result) -> _Passed:
    """Logits of the test rows: from the saved weights, from those before tuning, and of each further seed.

    All start from the same pass over the blocks that tuning left alone, made with the reloaded bundle in fp32.
    """
    from tagsmith.model.activations import frozen_states
    from tagsmith.model.classifier import Scorer, finish_states
    from tagsmith.tuning.methods import swapped

    classifier, tokens, start = scorer.classifier, result.parts["test"].tokens, result.tuned.start
    started = time.perf_counter()
    states = listened(frozen_states(scorer.lowest(start), tokens), silent) if start else None
    frozen_seconds = time.perf_counter() - started

    def answered() -> np.ndarray:
        if states is None or not start:
            return Scorer(classifier).logits(tokens)
        return finish_states(classifier, states, start=start)

    logits = [answered() if start else scorer.logits(tokens)]
    seconds = time.perf_counter() - started
    for weights in (result.untuned, *(each.run.weights for each in result.further)):
        with swapped(classifier, weights):
            logits.append(answered())
    return _Passed(logits, states, seconds, frozen_seconds if start else seconds)


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
        answering = each.answering
        test = points(truth, answering.calibration.probabilities(logits_NC), thresholds=answering.rule)
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


def _hybrid_section(result: Result) -> dict[str, Any]:
    """How LLM and TF-IDF are mixed; `llm_share` are the test rows that the LLM is asked about."""
    assert result.mixing is not None, "a hybrid was asked for"
    sure = float(result.mixing.is_sure(result.tfidf["test"]).mean())
    return {"kind": result.mixing.kind, "tfidf_share": result.mixing.share, "llm_share": 1 - sure}


def _truncated(result: Result) -> dict[str, float]:
    cut = sum(int(part.tokens.truncated.sum()) for part in result.parts.values())
    return {"rows": cut, "share": cut / sum(len(part.truth) for part in result.parts.values())}


def model_section(bundle: Bundle, result: Result, run: Run) -> dict[str, Any]:
    """What `model` of report.json says of a tuned classifier."""
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
        **({} if result.mixing is None else {"hybrid": _hybrid_section(result)}),
        **({} if run.depth is None else {"depth": run.depth.as_dict()}),
        **({} if run.searched is None or run.searched.depth is None else {"depth": run.searched.depth}),
        **({} if run.searched is None or run.searched.depth is None else {"depth": run.searched.depth}),
    }
