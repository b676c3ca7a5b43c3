"""From logits to probabilities that mean what they say: one temperature, or a scale and an offset for each label.

What is fitted is judged on rows that it was not fitted on: by folds of whole groups.

Axes: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tagsmith.evaluation.calibration import fit_set_temperature, fit_temperature, fit_vector
from tagsmith.evaluation.label_sets import row_set_losses
from tagsmith.evaluation.losses import row_losses
from tagsmith.model.calibration import Calibration

Scaling = Literal["auto", "temperature", "vector", "none"]
FOLDS = 5
FEWEST_ROWS = 30
"""With fewer rows nothing is fitted."""
FEWEST_OF_LABEL = 20
"""A vector is tried where each label has so many rows."""
_STEPS = 1.0
"""Standard errors by which a vector must be better than a temperature."""

Fit = Callable[[np.ndarray, np.ndarray], Calibration]


@dataclass(frozen=True)
class Scaled:
    """A calibration and how it was found: `method`, the log loss out of fold without and with it, and the rows."""

    calibration: Calibration
    method: str
    rows: int
    before: float | None = None
    after: float | None = None
    exact: bool = True

    @property
    def note(self) -> str:
        """How far it is to be trusted."""
        if self.method == "none":
            return "not calibrated"
        return "" if self.exact else "approximate, no finite-sample guarantee: these rows chose the model's step too"

    def as_dict(self) -> dict[str, Any]:
        """What `calibration` of report.json says of it."""
        found: dict[str, Any] = {"method": self.method, "rows": self.rows, "note": self.note}
        if self.before is not None:
            found["out_of_fold"] = {"before": self.before, "after": self.after, "folds": FOLDS}
        return found


def fit_scaling(
    logits: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    *,
    offset: np.ndarray | None,
    scaling: Scaling,
    seed: int,
    exact: bool = True,
) -> Scaled:
    """The calibration of `logits (N, C)` whose log loss is least out of fold; `offset (C,)` undoes a changed prior.

    A temperature is kept where it lowers that loss. A vector (Guo et al. 2017, section 4.2) takes the place of the
    offset, and of the temperature where it is better by more than a standard error of the paired difference; for
    `auto` each label must have 20 rows. `exact` says that nothing else was chosen by these rows.
    """
    several = truth.ndim == 2
    base = Calibration(1.0, None if offset is None else tuple(offset.tolist()), several)
    if scaling == "none" or len(truth) < FEWEST_ROWS:
        return Scaled(base, "none", 0, exact=exact)
    fits: dict[str, Fit] = {"none": lambda _, __: base, "temperature": _temperature_of(base)}
    if not several and (scaling == "vector" or (scaling == "auto" and _has_rows(truth, logits.shape[1]))):
        fits["vector"] = fit_vector
    folds = folds_of(groups, seed=seed)
    losses = {name: _out_of_fold(fit, logits, truth, folds) for name, fit in fits.items()}
    chosen = scaling if scaling == "vector" else _best(losses)
    found = fits[chosen](logits, truth)
    before, after = (float(losses[name].mean()) for name in ("none", chosen))
    return Scaled(found, chosen, len(truth), before, after, exact)


def _temperature_of(base: Calibration) -> Fit:
    fit = fit_set_temperature if base.multi_label else fit_temperature
    shift = np.asarray(base.offset or 0.0)
    return lambda logits, truth: replace(base, temperature=fit(logits + shift, truth))


def _has_rows(truth: np.ndarray, classes: int) -> bool:
    return int(np.bincount(truth, minlength=classes).min()) >= FEWEST_OF_LABEL


def _best(losses: dict[str, np.ndarray]) -> str:
    chosen = "temperature" if losses["temperature"].mean() < losses["none"].mean() else "none"
    if "vector" in losses:
        gains = losses[chosen] - losses["vector"]
        if gains.mean() > _STEPS * gains.std(ddof=1) / np.sqrt(len(gains)):
            return "vector"
    return chosen


def _out_of_fold(fit: Fit, logits: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The log loss of each row `(N,)` by a calibration that was fitted without its fold."""
    losses = np.empty(len(truth))
    for fold in np.unique(folds):
        held = folds == fold
        probs = fit(logits[~held], truth[~held]).probabilities(logits[held])
        losses[held] = row_set_losses(truth[held], probs) if truth.ndim == 2 else row_losses(truth[held], probs)
    return losses


def folds_of(groups: np.ndarray, *, seed: int) -> np.ndarray:
    """The fold of each row `(N,)`; rows of one group share one."""
    distinct, of_row = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(distinct)) % FOLDS)[of_row]


def with_prior(calibration: Calibration, shift: np.ndarray) -> Calibration:
    """The same probabilities at another prior: `shift (C,)` is the log of new over old shares, as of `prior_offset`."""
    offset = np.zeros(len(shift)) if calibration.offset is None else np.asarray(calibration.offset)
    return replace(calibration, offset=tuple((offset + calibration.temperature * shift).tolist()))
