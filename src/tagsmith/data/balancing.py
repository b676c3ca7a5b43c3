"""What is done about unequal labels: on training rows only, after the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tagsmith.data.rare import label_counts
from tagsmith.data.table import Table
from tagsmith.errors import SettingError

Balance = Literal["none", "undersample", "oversample", "weights"]


@dataclass(frozen=True)
class Balanced:
    """Training rows after balancing.

    `class_weights` multiply the loss of each label (None: all alike), `true_priors` are the labels' shares before.
    """

    table: Table
    class_weights: Mapping[str, float] | None
    true_priors: Mapping[str, float]


def balance(train: Table, *, how: Balance, seed: int) -> Balanced:
    """Training rows with equal labels: rows dropped, rows repeated, or weights n / (labels x count) for the loss.

    With several labels a row, the weight of a label is that of the rows that have it, as many as those without it for
    each of them. SettingError where rows were to be dropped or repeated there: a row has other labels too, so no
    choice of rows makes all of them equal.
    """
    priors = priors_of(train)
    if train.multi_label and how in ("undersample", "oversample"):
        raise SettingError(
            f"data.balance={how} is for one label a row; these rows have sets of labels, and dropping or repeating a "
            "row changes all of its labels. Take --set data.balance=weights, or leave it out."
        )
    if how == "weights":
        weights = _positive_weights(priors, len(train)) if train.multi_label else _class_weights(priors)
        told = ", ".join(f"'{label}' {weight:.3g}" for label, weight in list(weights.items())[:10])
        return Balanced(train.changed(train.frame, step="balance", reason=f"loss weights: {told}"), weights, priors)
    if how == "none":
        return Balanced(train, None, priors)
    return Balanced(_resampled(train, over=how == "oversample", seed=seed), None, priors)


def priors_of(table: Table) -> dict[str, float]:
    """The share of the rows that have each label, by name; with several labels a row they do not sum to 1."""
    return {label: count / len(table) for label, count in label_counts(table).iter_rows()}


def _class_weights(priors: Mapping[str, float]) -> dict[str, float]:
    return {label: 1 / (len(priors) * prior) for label, prior in priors.items()}


def _positive_weights(priors: Mapping[str, float], rows: int) -> dict[str, float]:
    """Rows without the label per row with it; where all have it as if one had not, for a weight of 0 learns nothing."""
    return {label: max(1 - prior, 1 / rows) / prior for label, prior in priors.items()}


def _resampled(train: Table, *, over: bool, seed: int) -> Table:
    random = np.random.default_rng(seed)
    labels = np.asarray(train.labels)
    counts = np.unique(labels, return_counts=True)[1]
    wanted = int(counts.max() if over else counts.min())
    picks = [_pick(np.flatnonzero(labels == label), wanted, random) for label in np.unique(labels)]
    chosen = np.sort(np.concatenate(picks))
    verb = "repeated" if over else "dropped"
    rows = _repeated(train, chosen) if over else np.setdiff1d(train.rows, train.rows[chosen])
    reason = f"training rows {verb} until each label has {wanted}: {abs(len(chosen) - len(train))} rows"
    return train.changed(train.take(chosen).frame, step="balance", reason=reason, rows=rows.tolist())


def _pick(members: np.ndarray, wanted: int, random: np.random.Generator) -> np.ndarray:
    """`wanted` of the members: each as often as any other, but for the remainder, which is drawn."""
    whole, rest = divmod(wanted, len(members))
    return np.concatenate([np.tile(members, whole), random.choice(members, size=rest, replace=False)])


def _repeated(train: Table, chosen: np.ndarray) -> np.ndarray:
    return train.rows[np.flatnonzero(np.bincount(chosen, minlength=len(train)) > 1)]
