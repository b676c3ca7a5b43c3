"""Stage 3 on a run: from texts as tokens to a tuned classifier that answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tagsmith.answering import fit_answering
from tagsmith.blending import blend
from tagsmith.data.preparing import Prepared
from tagsmith.deciding import note_decision
from tagsmith.errors import DataError
from tagsmith.events import Event
from tagsmith.run import FurtherSeed, Result, Run, truth_of

if TYPE_CHECKING:
    from tagsmith.model.activations import States
    from tagsmith.model.classifier import Classifier
    from tagsmith.tuning.learner import Part
    from tagsmith.tuning.loop import Tuned


def tune(
    classifier: Classifier,
    prepared: Prepared,
    run: Run,
    *,
    checkpoint: Path,
    resume: bool,
    stop: Callable[[], bool],
    shares_NC: np.ndarray | None = None,
) -> Result:
    """Tune the classifier, once or with several seeds, and settle how its logits become answers.

    A run that was interrupted goes on from `checkpoint` with `resume`; `stop` is asked after each step. `shares_NC` are
    those that a teacher gives the labels of the training rows, to be learnt in the place of one label a row.
    """
    from tagsmith.evaluation.selection import selection_metric
    from tagsmith.model.device import choose_device
    from tagsmith.tuning.dividing import settle
    from tagsmith.tuning.forecast import refused_where_memory_ends
    from tagsmith.tuning.methods import copies, swapped, trainable
    from tagsmith.tuning.seeds import tune_seeds
    from tagsmith.tuning.soup import require_soup

    require_soup(run.config)
    parts = encode(classifier, prepared)
    if shares_NC is not None:
        parts["train"] = replace(parts["train"], shares=shares_NC)
    _count_tokens(classifier, prepared, run)
    states = settle_depth(classifier, parts, run)
    _forecast(classifier, parts, prepared, run, output=checkpoint.parent, is_passed=bool(states))
    learning = list(trainable(classifier, run.config.tuning))
    untuned = copies(learning)
    weights_C = None if prepared.class_weights is None else classifier.labels.in_order(prepared.class_weights)
    with refused_where_memory_ends(run.forecast):
        first, *others = tune_seeds(
            classifier,
            {name: part for name, part in parts.items() if name != "test" and len(part.truth)},
            run.config,
            untuned=untuned,
            metric=selection_metric(
                run.config.evaluation.metric,
                multi_label=classifier.labels.multi_label,
                calibrated=run.config.tuning.choose_calibrated,
            ),
            class_weights=weights_C,
            checkpoint=checkpoint,
            resume=resume,
            stop=stop,
            states=states,
            listen=run.listen,
        )
    if run.config.tuning.sharding == "fully":
        settle(classifier, choose_device(run.config.tuning.device))
    _count_padding(classifier, parts, first.tuned, run)
    result = Result(parts, first.tuned, untuned, sum(weight.numel() for _, weight in learning))
    blend(classifier, prepared, result, run)
    result.answering = fit_answering(classifier, prepared, result, run)
    note_decision(result.answering, run)
    classifier.calibration, classifier.sureties = result.answering.calibration, result.answering.sureties
    classifier.thresholds = result.answering.rule
    for other in others:
        with swapped(classifier, other.weights):
            result.further.append(FurtherSeed(other, fit_answering(classifier, prepared, result, run, certify=False)))
    return result


def _count_padding(classifier: Classifier, parts: Mapping[str, Part], tuned: Tuned, run: Run) -> None:
    from tagsmith.tuning.padding import padding_of

    read = {name: part for name, part in parts.items() if name != "test" and len(part.truth)}
    run.facts["padding"] = padding_of(classifier, read, tuned, run.config)
    run.listen(Event("tuning", "padding", values=run.facts["padding"]))


def settle_depth(classifier: Classifier, parts: Mapping[str, Part], run: Run) -> dict[str, States]:
    """With `model.layers = auto` the blocks above the depth that the judged rows ask for are cut off.

    Returns what enters the first block that learns, by part, where all rows have been through the blocks below it.
    """
    if run.config.model.layers != "auto":
        return {}
    from tagsmith.tuning.depth import choose_depth
    from tagsmith.tuning.parallel import ranks_here

    run.depth, states = choose_depth(classifier, parts, run.config, listen=run.listen)
    classifier.backbone.cut(run.depth.layers)
    classifier.pooling = run.depth.pooling
    tried = ", ".join(f"{each.layers} blocks {each.loss:.4f}" for each in run.depth.tunings)
    told = f"{run.depth.layers} blocks are kept, pooling {run.depth.pooling}"
    run.note(f"{told} (log loss of short tunings on rows that they did not learn from: {tried}).")
    return states if ranks_here().count == 1 else {}


def _forecast(
    classifier: Classifier,
    parts: Mapping[str, Part],
    prepared: Prepared,
    run: Run,
    *,
    output: Path,
    is_passed: bool,
) -> None:
    """Say what the run will take, and refuse a plan that will not fit; of several processes none is measured alone."""
    from tagsmith.tuning.forecast import make_forecast
    from tagsmith.tuning.parallel import ranks_here

    if ranks_here().count > 1:
        return
    letters = int(prepared.splits.train.frame["text"].str.len_chars().sum())
    run.forecast = make_forecast(classifier, parts, run.config, letters=letters, output=output, is_passed=is_passed)
    run.listen(run.forecast.event())


def encode(classifier: Classifier, prepared: Prepared) -> dict[str, Part]:
    """The rows of each split as tokens; DataError for a text without any, and where no row is left to choose by."""
    from tagsmith.tuning.learner import Part

    parts = {}
    for name, table in prepared.splits.items():
        parts[name] = Part(classifier.encoder.encode(table.texts), truth_of(table, classifier.labels), table.groups)
        if not parts[name].tokens.lengths.all():
            empty = parts[name].tokens.rows[parts[name].tokens.lengths == 0]
            row = int(table.rows[empty[0]])
            raise DataError(
                f"The text of row {row} gives no tokens with this backbone's tokenizer. "
                "Remove it, or choose another backbone."
            )
    if not len(parts["validation"].truth):
        raise DataError(
            "No rows are left for validation. Expected a few dozen rows or more; add rows, or give --validation."
        )
    return parts


def _count_tokens(classifier: Classifier, prepared: Prepared, run: Run) -> None:
    """The whole lengths of texts before they are cut, for the report and for who listens."""
    from tokenizers import Tokenizer

    from tagsmith.data.token_lengths import measure_tokens

    encoder = classifier.encoder
    texts = pl.concat([part.frame["text"] for _, part in prepared.splits.items()])
    found = measure_tokens(Tokenizer.from_str(encoder.tokenizer.to_str()), texts, max_tokens=encoder.max_tokens)
    run.facts["tokens"] = found.as_dict()
    run.listen(Event("data", "tokens", values=found.as_dict()))
