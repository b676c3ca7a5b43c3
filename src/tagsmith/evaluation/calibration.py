"""Scores that mean what they say: temperature, and the prior that resampling or weights have changed."""

from __future__ import annotations

import numpy as np

from tagsmith.model.calibration import Calibration

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of a temperature; a perfectly separated set would ask for 0."""


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature t in [0.05, 20] that minimises the log loss of softmax(`logits (N, C)` / t) against `truth (N,)`.

    Guo et al. (2017), On Calibration of Modern Neural Networks, section 4.2, with the targets of Platt (1999): each
    row gives 1 / (N + 2) of itself to the other labels, since N rows without a fault do not prove that there is none;
    without that a separable set asks for t = 0. The loss is convex in 1 / t, so one bounded search finds it; 1.0
    without rows.
    """
    from scipy.optimize import minimize_scalar

    if not len(truth):
        return 1.0
    logits_NC = np.asarray(logits, dtype=np.float64)
    above_NC = logits_NC - logits_NC[np.arange(len(truth)), truth][:, None]
    others = above_NC.sum(axis=1).mean() / max(1, above_NC.shape[1] - 1) / (len(truth) + 2)
    found = minimize_scalar(
        lambda sharpness: _loss(above_NC * sharpness) - sharpness * others,
        bounds=(1 / HIGHEST, 1 / LOWEST),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(np.clip(1 / found.x, LOWEST, HIGHEST))


def fit_set_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature t in [0.05, 20] that minimises the mean binary log loss of sigmoid(`logits (N, C)` / t).

    One for all labels, against `truth (N, C)` bool with the targets of Platt (1999), section 2.2: P positive cells ask
    for (P + 1) / (P + 2) and M negative ones for 1 / (M + 2), so that a separable set does not ask for t = 0.
    """
    from scipy.optimize import minimize_scalar

    if not truth.size:
        return 1.0
    positives = int(truth.sum())
    hopes_NC = np.where(truth, (positives + 1) / (positives + 2), 1 / (truth.size - positives + 2))
    logits_NC = np.asarray(logits, dtype=np.float64)
    found = minimize_scalar(
        lambda sharpness: float((np.logaddexp(0, logits_NC * sharpness) - hopes_NC * logits_NC * sharpness).mean()),
        bounds=(1 / HIGHEST, 1 / LOWEST),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(np.clip(1 / found.x, LOWEST, HIGHEST))


def fit_vector(logits: np.ndarray, truth: np.ndarray) -> Calibration:
    """A scale and an offset for each label that minimise the log loss of softmax(scales * `logits (N, C)` + offset).

    Vector scaling (Guo et al. 2017, section 4.2), drawn towards one temperature and no offset by a penalty as of one
    row for each label, so that labels with few rows stay near it.
    """
    from scipy.optimize import minimize

    temperature, classes = fit_temperature(logits, truth), logits.shape[1]
    logits_NC, is_true = np.asarray(logits, dtype=np.float64) / temperature, truth[:, None] == np.arange(classes)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        scales, offset = np.split(values, 2)
        scaled = logits_NC * scales + offset
        peaks = scaled - scaled.max(axis=1, keepdims=True)
        logs = peaks - np.log(np.exp(peaks).sum(axis=1, keepdims=True))
        apart = np.exp(logs) - is_true
        penalty = ((scales - 1) ** 2).sum() + (offset**2).sum()
        slope = np.concatenate([(apart * logits_NC).sum(axis=0) + (scales - 1), apart.sum(axis=0) + offset])
        return float(-logs[is_true].sum() + penalty / 2), slope

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    scales, offset = np.split(minimize(loss, start, jac=True, method="L-BFGS-B").x, 2)
    return Calibration(temperature, tuple((temperature * offset).tolist()), scales=tuple(scales.tolist()))


def prior_offset(train_priors: np.ndarray, true_priors: np.ndarray) -> np.ndarray:
    """What to add to logits `(C,)` so that a model trained at `train_priors (C,)` answers at `true_priors (C,)`.

    log(true) - log(train), centred (Saerens et al. 2002, equation 4); with class weights the training prior is the
    weighted one. A label with either prior 0 gets 0: nothing is known about it.
    """
    offset = np.zeros(len(train_priors))
    known = (train_priors > 0) & (true_priors > 0)
    if known.any():
        offset[known] = np.log(true_priors[known]) - np.log(train_priors[known])
        offset[known] -= offset[known].mean()
    return offset


def _loss(above_NC: np.ndarray) -> float:
    """Mean of log sum exp of the logits less the truth's."""
    peak_N = above_NC.max(axis=1)
    return float((peak_N + np.log(np.exp(above_NC - peak_N[:, None]).sum(axis=1))).mean())
