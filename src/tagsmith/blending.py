"""A hybrid on a run: TF-IDF is fitted beside the tuned LLM, and how the two are mixed by the validation rows.

Axes: N rows, C labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tagsmith.data.preparing import Prepared
from tagsmith.events import Event
from tagsmith.rivals import fit_tfidf
from tagsmith.run import Result, Run, truth_of

if TYPE_CHECKING:
    from tagsmith.model.classifier import Classifier
    from tagsmith.model.decision import Rule
    from tagsmith.model.hybrid import Hybrid, Mixing


def blend(classifier: Classifier, prepared: Prepared, result: Result, run: Run) -> None:
    """Make the result of a tuning a hybrid where `tuning.hybrid` asks for one.

    How much each side counts is fitted on validation rows: neither learnt from them, and calibration rows stay as new
    to the whole as they are to an LLM alone.
    """
    from tagsmith.model.hybrid import lexical_logits

    if run.config.tuning.hybrid == "none" and not _is_worse_alone(classifier, prepared, result, run):
        return
    if result.lexical is None:
        run.listen(Event("tuning", "hybrid", values={"kind": run.config.tuning.hybrid}))
        result.lexical = fit_tfidf(classifier.labels, prepared, run)
    result.tfidf = {name: lexical_logits(result.lexical, table.texts) for name, table in prepared.splits.items()}
    mixing, told = _fitted(classifier, prepared, result, run)
    result.mixing = mixing
    run.note(_said(mixing, result, told))


def _is_worse_alone(classifier: Classifier, prepared: Prepared, result: Result, run: Run) -> bool:
    """Whether a search that might have mixed the two ends in an LLM that TF-IDF beats: then they answer together.

    By more than a standard error of the paired losses of the validation rows. TF-IDF is kept either way: the report
    compares with it.
    """
    from tagsmith.model.hybrid import lexical_logits
    from tagsmith.tuning.mixing import FEWEST_ROWS
    from tagsmith.tuning.trials import judged

    table = prepared.splits.validation
    might_mix = run.searched is not None and any(each["hybrid"] != "none" for each in run.searched.candidates)
    if not might_mix or len(table) < FEWEST_ROWS:
        return False
    run.listen(Event("tuning", "rival"))
    result.lexical = fit_tfidf(classifier.labels, prepared, run)
    truth, rows = truth_of(table, classifier.labels), np.arange(len(table))
    llm = judged(result.logits_alone(classifier, "validation"), truth, rows)
    tfidf = judged(lexical_logits(result.lexical, table.texts), truth, rows)
    if not tfidf.is_better(llm):
        return False
    run.config = run.config.with_settings({"tuning": {"hybrid": "average"}})
    run.note(
        f"The tuned LLM reads the {len(table)} validation rows worse than TF-IDF (log loss {llm.loss:.4f} to "
        f"{tfidf.loss:.4f}): the two answer together."
    )
    return True


def llm_alone(
    classifier: Classifier, prepared: Prepared, result: Result, logits_NC: np.ndarray, run: Run
) -> tuple[np.ndarray | None, Rule]:
    """The LLM of a hybrid by itself, calibrated as the whole is: probabilities `(N, C)` of test logits, and its rule.

    None for both where there is no hybrid; the rule is None where the likeliest label is answered.
    """
    from tagsmith.deciding import decision_for, is_decided
    from tagsmith.evaluation.scaling import fit_scaling
    from tagsmith.evaluation.thresholds import fit_thresholds
    from tagsmith.run import HELD_OUT

    if result.mixing is None:
        return None, None
    name = "calibration" if len(result.parts["calibration"].truth) else "validation"
    truth, groups = result.parts[name].truth, getattr(prepared.splits, name).groups
    scaled = fit_scaling(
        result.logits_alone(classifier, name), truth, groups, offset=None, scaling="temperature", seed=run.config.seed
    )
    probs_NC = scaled.calibration.probabilities(logits_NC)
    if not classifier.labels.multi_label and not is_decided(run.config):
        return probs_NC, None
    held = [result.logits_alone(classifier, part) for part in HELD_OUT if len(result.parts[part].truth)]
    held_NC = scaled.calibration.probabilities(np.concatenate(held))
    if not classifier.labels.multi_label:
        return probs_NC, decision_for(held_NC, classifier.labels, prepared, result, run).decision
    return probs_NC, fit_thresholds(held_NC, result.held_out_truth, metric=run.config.evaluation.metric).values


def _fitted(classifier: Classifier, prepared: Prepared, result: Result, run: Run) -> tuple[Mixing, str]:
    """The mixing, and what there is to say of how it was fitted."""
    from tagsmith.tuning.mixing import FEWEST_ROWS, cross_mixed, fit_mixing, mixed_at, row_losses_of

    table, tuning = prepared.splits.validation, run.config.tuning
    llm_NC, tfidf_NC = result.logits_alone(classifier, "validation"), result.tfidf["validation"]
    truth, rows = truth_of(table, classifier.labels), len(table)
    kind: Hybrid = tuning.hybrid
    if kind == "average" and tuning.hybrid_share is not None:
        return mixed_at(tuning.hybrid_share, llm_NC, tfidf_NC, truth), "the share was given"
    if kind != "average" and rows < FEWEST_ROWS:
        told = f"a {kind} needs {FEWEST_ROWS} validation rows, and {rows} are there"
        return fit_mixing("average", llm_NC, tfidf_NC, truth), told
    if kind == "stacking":
        losses = {
            each: row_losses_of(
                cross_mixed(each, llm_NC, tfidf_NC, truth, table.groups, seed=run.config.seed), truth
            ).mean()
            for each in ("average", kind)
        }
        if losses[kind] > losses["average"]:
            told = f"a stack lost to it out of fold, {losses[kind]:.4f} to {losses['average']:.4f}"
            return fit_mixing("average", llm_NC, tfidf_NC, truth), told
    return fit_mixing(kind, llm_NC, tfidf_NC, truth), f"fitted on {rows} validation rows"


def _said(mixing: Mixing, result: Result, told: str) -> str:
    if mixing.kind != "cascade":
        return f"LLM and TF-IDF answer together, as {_KINDS[mixing.kind]} ({told})."
    share = mixing.is_sure(result.tfidf["validation"]).mean()
    return f"TF-IDF answers {share:.0%} of the validation rows by itself, LLM and TF-IDF the rest together ({told})."


_KINDS = {"average": "an average of their scores", "stacking": "a stack with weights for each label"}
