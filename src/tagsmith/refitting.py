"""`tuning.refit`: once all is measured, the winner is trained anew on the validation rows too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.answering import fit_answering
from tagsmith.data.preparing import Prepared
from tagsmith.errors import SettingError
from tagsmith.events import Event, steps_alone
from tagsmith.run import Result, Run

if TYPE_CHECKING:
    from tagsmith.config import Config
    from tagsmith.model.classifier import Classifier
    from tagsmith.tuning.learner import Part


def require_refit(config: Config, *, processes: int = 1) -> None:
    """SettingError, before anything is trained, for a refit on rows that a bound rests on, or by several processes."""
    if config.tuning.refit and processes > 1:
        raise SettingError(
            f"tuning.refit trains in one process once all is measured, and {processes} share this training. Expected "
            "one process; leave tuning.refit out."
        )
    asked = config.evaluation
    bounds = {"max_error": asked.max_error, "coverage": asked.coverage, "threshold_goal": asked.threshold_goal}
    given = [f"evaluation.{name}" for name, value in bounds.items() if value is not None]
    if config.tuning.refit and given:
        raise SettingError(
            f"tuning.refit learns from the validation rows, and {' and '.join(given)} rests on rows that nothing was "
            "learnt from. Expected one of the two; leave the other out."
        )


def refit(classifier: Classifier, prepared: Prepared, result: Result, run: Run, *, stop: Callable[[], bool]) -> Result:
    """Train a measured classifier anew, in place, on training and validation rows; gives what is to be saved.

    It makes as many epochs as the step that was chosen stands for, and looks at no row meanwhile. How it answers is
    fitted again where calibration rows are left; otherwise that stays as it was, for all other rows were learnt from.
    """
    from tagsmith.tuning.methods import put
    from tagsmith.tuning.soup import tune_soup
    from tagsmith.tuning.trials import later_is_better

    train, validation = result.parts["train"], result.parts["validation"]
    both = _joined(train, validation)
    epochs = _epochs(result, run.config)
    words = {"rows": len(both.truth), "epochs": epochs}
    run.listen(Event("tuning", "refit", values=words))
    put(classifier, result.untuned)
    again = {"epochs": epochs, "patience": 10_000, "seeds": 1, "evaluations_per_epoch": 1}
    config = run.config.with_settings({"tuning": again})
    weights_C = None if prepared.class_weights is None else classifier.labels.in_order(prepared.class_weights)
    parts = {"train": both, "validation": _first(validation, 8)}
    listen = steps_alone(run.listen)
    options: dict[str, Any] = {"class_weights": weights_C, "stop": stop, "listen": listen}
    tuned = tune_soup(classifier, parts, config, metric=later_is_better(), **options)
    left = {**result.parts, "train": both, "validation": _first(validation, 0)}
    kept = replace(result, parts=left, tuned=replace(tuned, states={}))
    if len(result.parts["calibration"].truth):
        kept.answering = fit_answering(classifier, prepared, kept, run)
    assert kept.answering is not None, "it was fitted before"
    classifier.calibration, classifier.sureties = kept.answering.calibration, kept.answering.sureties
    classifier.thresholds = kept.answering.rule
    run.note(
        f"All scores are those of the classifier that learnt from {len(train.truth)} rows. The one that was saved has "
        f"then learnt anew, for {epochs} epoch{'s' * (epochs != 1)}, from {len(both.truth)}: the validation rows too "
        "(tuning.refit). It was not measured."
    )
    return replace(kept, parts=result.parts)  # two engines are as much alike on rows that were learnt from


def _epochs(result: Result, config: Config) -> int:
    """The epochs that led to the chosen step, rounded up."""
    if config.tuning.method == "contrastive":  # no step of it is chosen
        return config.tuning.epochs
    each = -(-len(result.parts["train"].truth) // config.tuning.batch_size)
    return max(1, math.ceil(result.tuned.best_step / each))


def _joined(one: Part, two: Part) -> Part:
    from tagsmith.data.encoding import Tokens
    from tagsmith.tuning.learner import Part

    groups = None if one.groups is None or two.groups is None else np.concatenate([one.groups, two.groups])
    return Part(Tokens.joined([one.tokens, two.tokens]), np.concatenate([one.truth, two.truth]), groups)


def _first(part: Part, count: int) -> Part:
    from tagsmith.tuning.learner import Part

    rows = np.arange(min(count, len(part.truth)))
    return Part(part.tokens.of_texts(rows), part.truth[rows])
