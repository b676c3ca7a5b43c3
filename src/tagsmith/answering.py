"""What turns a tuned classifier's logits into answers: a calibration, a prior, thresholds, and when to say nothing.

All of it is fitted on calibration rows, or where there are too few on validation rows, which is said then.

Axes: N rows, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.data.preparing import Prepared
from tagsmith.deciding import decide, require_decidable
from tagsmith.errors import SettingError
from tagsmith.run import Answering, Result, Run

if TYPE_CHECKING:
    from tagsmith.config import Config, EvaluationConfig
    from tagsmith.data.table import Table
    from tagsmith.evaluation.thresholds import Thresholds
    from tagsmith.model.calibration import Calibration
    from tagsmith.model.classifier import Classifier


@dataclass(frozen=True)
class _Rows:
    """Held-out rows by the calibrated model: the rows to fit on, and rows seen beforehand.

    `exact` says that nothing else was chosen by the former.
    """

    probs: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    beforehand: np.ndarray
    exact: bool

    def independent(self) -> _Rows:
        """One row of each group."""
        from tagsmith.evaluation.abstention import first_rows

        first = first_rows(self.groups)
        return replace(self, probs=self.probs[first], truth=self.truth[first], groups=self.groups[first])


def fit_answering(
    classifier: Classifier, prepared: Prepared, result: Result, run: Run, *, certify: bool = True
) -> Answering:
    """How a tuned classifier answers, by what was asked for in `evaluation`.

    SettingError where a bound was asked for that the rows cannot prove; without `certify` bounds and goals are left
    out.
    """
    from tagsmith.evaluation.thresholds import fit_thresholds

    config, labels = run.config.evaluation, classifier.labels
    calibration, about = _calibrate(classifier, prepared, result, run)
    calibration, prior = _at_prior(calibration, classifier, prepared, result, run)
    about |= {"prior": prior} if prior else {}
    if not labels.multi_label:
        found = decide(Answering(calibration, about=about), classifier, prepared, result, run)
        if not certify:
            return found
        return _abstaining(found, _rows(classifier, calibration, prepared, result), classifier, config)
    probs_NC = calibration.probabilities(result.held_out_logits(classifier))
    thresholds = fit_thresholds(probs_NC, result.held_out_truth, metric=config.metric)
    found = Answering(calibration, thresholds, about=about)
    if config.threshold_goal is None or not certify:
        return found
    return _reaching(found, thresholds, _rows(classifier, calibration, prepared, result), classifier, config)


# ---- Calibration and prior


def _part_to_fit(result: Result) -> str:
    return "calibration" if len(result.parts["calibration"].truth) else "validation"


def _calibrate(
    classifier: Classifier, prepared: Prepared, result: Result, run: Run
) -> tuple[Calibration, dict[str, Any]]:
    """A scaling of the logits, after undoing the prior of re-balanced training rows."""
    from tagsmith.evaluation.scaling import fit_scaling

    config, name = run.config.evaluation, _part_to_fit(result)
    scaling = config.scaling if config.calibrate else "none"
    if scaling == "auto" and _abstains(config):
        # A vector changes which rows are the surest; a bound must not depend on what the same rows have fitted.
        scaling = "temperature"
    scaled = fit_scaling(
        result.logits(classifier, name),
        result.parts[name].truth,
        getattr(prepared.splits, name).groups,
        offset=_offset(classifier, prepared, run),
        scaling=scaling,
        seed=run.config.seed,
        exact=name == "calibration",
    )
    return scaled.calibration, scaled.as_dict() | {"part": name}


def _abstains(config: EvaluationConfig) -> bool:
    return not (config.max_error is None and config.coverage is None and config.threshold_goal is None)


def _offset(classifier: Classifier, prepared: Prepared, run: Run) -> np.ndarray | None:
    """What to add to logits so that re-balanced training rows count as they were."""
    from tagsmith.evaluation.calibration import prior_offset

    if classifier.labels.multi_label:
        weights = prepared.class_weights
        return None if weights is None else -np.log(classifier.labels.in_order(weights))
    if run.config.data.balance == "none":
        return None
    true = classifier.labels.in_order(prepared.true_priors)
    return prior_offset(np.full(len(true), 1 / len(true)), true)


def _at_prior(
    calibration: Calibration, classifier: Classifier, prepared: Prepared, result: Result, run: Run
) -> tuple[Calibration, dict[str, Any]]:
    """The calibration at the prior that was asked for, and what the report says of that."""
    from tagsmith.evaluation.calibration import prior_offset
    from tagsmith.evaluation.priors import given_prior
    from tagsmith.evaluation.scaling import with_prior

    asked, labels = run.config.evaluation.prior, classifier.labels
    if asked is None:
        return calibration, {}
    if labels.multi_label:
        raise SettingError(
            "evaluation.prior changes the shares of labels that exclude one another, and a text may have several here. "
            "Leave it out; calibrated labels need no prior."
        )
    true = labels.in_order(prepared.true_priors)
    told: dict[str, Any] = {"source": "given" if asked != "em" else "em"}
    if asked != "em":
        target = given_prior(asked, labels)
    else:
        estimate = _estimated(calibration, classifier, prepared, result, run)
        told |= estimate.as_dict(labels)
        if not estimate.accepted:
            run.note(f"evaluation.prior = em was {estimate.told}; the shares of the source stay.")
            return calibration, told
        target = np.maximum(estimate.shares, _LEAST)
    told["shares"] = dict(zip(labels.names, target.tolist(), strict=True))
    run.note("Probabilities are those at the shares of labels in evaluation.prior, and not at those of the test rows.")
    return with_prior(calibration, prior_offset(true, target)), told


_LEAST = 1e-4
"""A share that EM finds to be nothing."""


def _estimated(calibration: Calibration, classifier: Classifier, prepared: Prepared, result: Result, run: Run) -> Any:
    from tagsmith.data.cleaning import clean_texts
    from tagsmith.data.readers import read_as
    from tagsmith.evaluation.priors import estimate_prior
    from tagsmith.model.classifier import Scorer
    from tagsmith.model.hybrid import lexical_logits

    source, name = run.config.evaluation.unlabelled, _part_to_fit(result)
    if source is None:
        raise SettingError(
            "evaluation.prior = em estimates shares from texts without labels. Expected them in "
            "evaluation.unlabelled = FILE; name it, or give the shares themselves."
        )
    texts = clean_texts(read_as(source, run.config.data, labelled=False).texts, run.config.data.clean)
    known = [text for text in texts if text.strip()]
    logits_NC = Scorer(classifier).logits(classifier.encoder.encode(known))
    if result.mixing is not None and result.lexical is not None:
        logits_NC = result.mixing.mixed(logits_NC, lexical_logits(result.lexical, known))
    return estimate_prior(
        calibration.probabilities(logits_NC),
        classifier.labels.in_order(prepared.true_priors),
        held_out_probs=calibration.probabilities(result.logits(classifier, name)),
        held_out_truth=result.parts[name].truth,
        seed=run.config.seed,
    )


# ---- Abstention and goals


def require_provable(prepared: Prepared, config: Config) -> None:
    """SettingError for a bound that cannot be proven whatever the model does, before it is trained."""
    from tagsmith.evaluation.abstention import rows_needed
    from tagsmith.evaluation.goals import Goal

    asked = config.evaluation
    given = {"max_error": asked.max_error, "coverage": asked.coverage, "threshold_goal": asked.threshold_goal}
    require_decidable(prepared, config)
    several = [f"evaluation.{name}" for name, value in given.items() if value is not None]
    if len(several) > 1:
        raise SettingError(f"{' and '.join(several)} each decide what is answered. Expected one of them.")
    if asked.threshold_goal is not None:
        Goal.parse(asked.threshold_goal)
    if prepared.splits.train.multi_label and (asked.max_error is not None or asked.coverage is not None):
        raise SettingError(
            f"{several[0]} abstains from answers of one label, and a text may have several here. Expected "
            "evaluation.threshold_goal, as in precision>=0.95."
        )
    if asked.max_error is not None:
        rows, needed = _groups_to_prove(prepared), rows_needed(asked.max_error)
        if rows < needed:
            raise SettingError(
                f"evaluation.max_error is {asked.max_error:g}, which needs {needed} answered rows without an error to "
                f"be proven, and {rows} held-out rows are there for it (one of each group of near duplicates). Give "
                "more rows, a larger data.validation_share, or a larger evaluation.max_error."
            )


def _groups_to_prove(prepared: Prepared) -> int:
    held: Table = prepared.splits.calibration if len(prepared.splits.calibration) else prepared.splits.validation
    return len(np.unique(held.groups))


def _rows(classifier: Classifier, calibration: Calibration, prepared: Prepared, result: Result) -> _Rows:
    name = _part_to_fit(result)
    return _Rows(
        calibration.probabilities(result.logits(classifier, name)),
        result.parts[name].truth,
        getattr(prepared.splits, name).groups,
        calibration.probabilities(result.logits(classifier, "validation")),
        exact=name == "calibration",
    )


def _abstaining(found: Answering, rows: _Rows, classifier: Classifier, config: EvaluationConfig) -> Answering:
    """With the sureties from which labels are answered, where a bound, a coverage or a goal was asked for."""
    from tagsmith.evaluation.abstention import certify_coverage, certify_error, surety
    from tagsmith.evaluation.goals import Goal, reach_by_abstaining

    rows = rows.independent()
    classes, sure, right = rows.probs.shape[1], surety(rows.probs), rows.probs.argmax(axis=1) == rows.truth
    if config.threshold_goal is not None:
        goal = Goal.parse(config.threshold_goal)
        reached = reach_by_abstaining(goal, rows.probs, rows.truth, beforehand=rows.beforehand, exact=rows.exact)
        return replace(found, sureties=reached.values, certificate={"goal": reached.as_dict(classifier.labels)})
    if config.max_error is not None:
        certificate = certify_error(
            sure, right, max_error=config.max_error, beforehand=surety(rows.beforehand), exact=rows.exact
        )
    elif config.coverage is not None:
        certificate = certify_coverage(sure, right, coverage=config.coverage, exact=rows.exact)
    else:
        return found
    return replace(found, sureties=np.full(classes, certificate.surety), certificate=certificate.as_dict())


def _reaching(
    found: Answering, thresholds: Thresholds, rows: _Rows, classifier: Classifier, config: EvaluationConfig
) -> Answering:
    """With thresholds that keep the goal for each label where it can be proven."""
    from tagsmith.evaluation.goals import Goal, reach_in_sets

    rows = rows.independent()
    goal = Goal.parse(str(config.threshold_goal))
    reached = reach_in_sets(
        goal,
        rows.probs,
        rows.truth,
        beforehand=rows.beforehand,
        otherwise=thresholds.values,
        exact=rows.exact,
    )
    about = found.about | {"goal": reached.as_dict(classifier.labels)}
    return replace(found, thresholds=replace(thresholds, values=reached.values), about=about)
