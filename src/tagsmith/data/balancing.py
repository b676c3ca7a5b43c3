"""What is done about unequal labels: on training rows only, after the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tagsmith.data.table import Table

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
    """Training rows with equal labels: rows dropped, rows repeated, or weights n / (labels x count) for the loss."""
    priors = priors_of(train)
    if how == "weights":
        weights = {label: 1 / (len(priors) * prior) for label, prior in priors.items()}
        told = ", ".join(f"'{label}' {weight:.3g}" for label, weight in list(weights.items())[:10])
        return Balanced(train.changed(train.frame, step="balance", reason=f"loss weights: {told}"), weights, priors)
    if how == "none":
        return Balanced(train, None, priors)
    return Balanced(_resampled(train, over=how == "oversample", seed=seed), None, priors)


def priors_of(table: Table) -> dict[str, float]:
    """The share of each label, by name."""
    counts = table.frame["label"].value_counts().sort("label")
    return {label: count / len(table) for label, count in counts.iter_rows()}


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
