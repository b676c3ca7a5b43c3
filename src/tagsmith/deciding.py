"""Which label a trained classifier answers: the likeliest, or the one that `evaluation.rule` and the measure ask for.

TF-IDF beside it, and the LLM of a hybrid, decide by the same rule, each fitted on the same held-out rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.data.preparing import Prepared
from tagsmith.errors import SettingError
from tagsmith.labels import Labels
from tagsmith.run import HELD_OUT, Answering, Result, Run

if TYPE_CHECKING:
    from tagsmith.config import Config, EvaluationConfig
    from tagsmith.evaluation.decisions import Decided
    from tagsmith.model.classifier import Classifier

_EACH_LABEL_ALIKE = ("macro_f1", "balanced_accuracy")


def rule_asked(config: EvaluationConfig) -> str:
    """What `evaluation.rule` comes to: `likeliest`, `prior` or `costs`."""
    if config.rule != "auto":
        return config.rule
    if _silences(config):
        return "likeliest"
    if config.costs:
        return "costs"
    return "prior" if config.metric in _EACH_LABEL_ALIKE else "likeliest"


def require_decidable(prepared: Prepared, config: Config) -> None:
    """SettingError for a rule or a measure that these rows or other settings do not allow, before any training."""
    asked, several = config.evaluation, prepared.splits.train.multi_label
    if several and asked.metric == "balanced_accuracy":
        raise SettingError(
            "evaluation.metric is balanced_accuracy, and a text may have several labels here. Expected macro_f1, which "
            "counts each label as much as any other, or accuracy, micro_f1 or log_loss."
        )
    if several and asked.rule not in ("auto", "likeliest"):
        raise SettingError(
            f"evaluation.rule is '{asked.rule}', which chooses one label, and a text may have several here: each is "
            "answered from its threshold on, fitted for evaluation.metric. Leave it out."
        )
    if asked.rule == "costs" and not asked.costs:
        raise SettingError(
            "evaluation.rule is 'costs', and evaluation.costs is empty. Expected what answers cost, as in "
            "costs = {spam = {ham = 1.0}, ham = {spam = 20.0}}."
        )
    if asked.rule == "prior" and asked.metric not in _EACH_LABEL_ALIKE:
        raise SettingError(
            f"evaluation.rule is 'prior', which is fitted for macro_f1 or balanced_accuracy, and evaluation.metric is "
            f"{asked.metric}. Expected one of the two."
        )
    if asked.rule in ("prior", "costs") and _silences(asked):
        raise SettingError(
            f"evaluation.rule is '{asked.rule}', and bounds are proven of the likeliest label. Expected one of the "
            "two; leave evaluation.rule out, or evaluation.max_error, coverage and threshold_goal."
        )


def _silences(config: EvaluationConfig) -> bool:
    return not (config.max_error is None and config.coverage is None and config.threshold_goal is None)


def decide(found: Answering, classifier: Classifier, prepared: Prepared, result: Result, run: Run) -> Answering:
    """With the decision for one label of a text, and what the report says of it; nothing where the likeliest wins."""
    if not is_decided(run.config):
        return found
    probs_NC = found.calibration.probabilities(result.held_out_logits(classifier))
    prior = (found.about.get("prior") or {}).get("shares")
    fitted = decision_for(probs_NC, classifier.labels, prepared, result, run, prior=prior)
    return replace(found, decision=fitted.decision, about=found.about | {"decision": fitted.as_dict()})


def is_decided(config: Config) -> bool:
    """Whether another label than the likeliest may be answered, where a text has one."""
    return rule_asked(config.evaluation) != "likeliest"


def decision_for(
    probs_NC: np.ndarray,
    labels: Labels,
    prepared: Prepared,
    result: Result,
    run: Run,
    *,
    prior: dict[str, float] | None = None,
) -> Decided:
    """The decision by what one model says of held-out rows; `prior` are shares that its probabilities were moved to.

    Costs need no fitting. A power of the shares does: with shares of another place the held-out rows are not those that
    a measure there would see, and the measure counts them as they are.
    """
    from tagsmith.evaluation.costs import cost_matrix
    from tagsmith.evaluation.decisions import Decided, fit_prior_decision
    from tagsmith.model.decision import Decision

    config = run.config
    if rule_asked(config.evaluation) == "costs":
        return Decided(Decision.by_costs(cost_matrix(config.evaluation.costs, labels)), "costs")
    return fit_prior_decision(
        probs_NC,
        result.held_out_truth,
        np.concatenate([getattr(prepared.splits, name).groups for name in HELD_OUT]),
        shares=labels.in_order(prior or prepared.true_priors),
        measure=config.evaluation.metric,
        seed=config.seed,
    )


def note_decision(answering: Answering, run: Run) -> None:
    """Say which label is answered, where that is not simply the likeliest."""
    about: dict[str, Any] = answering.about.get("decision") or {}
    if about:
        run.note(about["text"])
