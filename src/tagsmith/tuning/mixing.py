"""How LLM and TF-IDF are mixed, fitted on rows that neither learnt from.

Axes: N held-out rows, C labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tagsmith.model.hybrid import Hybrid, Mixing, log_shares, sureness

KINDS: tuple[Hybrid, ...] = ("average", "stacking", "cascade")
FOLDS = 5
FEWEST_ROWS = 200
"""With fewer rows the share of TF-IDF is not fitted anew, and there are neither stacks nor cascades."""
_STEP = 0.05
_NOTHING = 1e-4
"""A difference of losses that counts for none."""
_STRENGTH = 5.0
"""How a stack is drawn towards the average: as so many rows would for each weight."""


def fit_mixing(kind: Hybrid, llm_NC: np.ndarray, tfidf_NC: np.ndarray, truth: np.ndarray) -> Mixing:
    """The mixing of this kind with the least log loss; `truth` is `(N,)`, or `(N, C)` bool of several labels."""
    average = _average(llm_NC, tfidf_NC, truth)
    if kind == "stacking":
        return _stacked(average, llm_NC, tfidf_NC, truth)
    if kind == "cascade":
        return _cascade(average, llm_NC, tfidf_NC, truth)
    return average


def mixed_at(share: float, llm_NC: np.ndarray, tfidf_NC: np.ndarray, truth: np.ndarray) -> Mixing:
    """The average with a given share of TF-IDF, of logits that were calibrated one by one on these rows."""
    several = truth.ndim == 2
    llm, tfidf = _sharpness(llm_NC, truth), _sharpness(tfidf_NC, truth)
    return Mixing("average", (1 - share) * llm, share * tfidf, several)


def share_of(mixing: Mixing, llm_NC: np.ndarray, tfidf_NC: np.ndarray, truth: np.ndarray) -> float:
    """The share of TF-IDF that a mixing has of logits calibrated one by one, for `mixed_at` with others."""
    llm, tfidf = mixing.llm / _sharpness(llm_NC, truth), mixing.tfidf / _sharpness(tfidf_NC, truth)
    return float(tfidf / (llm + tfidf)) if llm + tfidf else 0.0


def cross_mixed(
    kind: Hybrid, llm_NC: np.ndarray, tfidf_NC: np.ndarray, truth: np.ndarray, groups: np.ndarray, *, seed: int
) -> np.ndarray:
    """Logits `(N, C)` of a hybrid, those of each fold of whole groups by a mixing that was fitted without it."""
    known, group_N = np.unique(groups, return_inverse=True)
    fold_N = (np.random.default_rng([seed, 8]).permutation(len(known)) % FOLDS)[group_N]
    found_NC = np.empty(llm_NC.shape)
    for fold in np.unique(fold_N):
        held = fold_N == fold
        mixing = fit_mixing(kind, llm_NC[~held], tfidf_NC[~held], truth[~held])
        found_NC[held] = mixing.mixed(llm_NC[held], tfidf_NC[held])
    return found_NC


def row_losses_of(logits_NC: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The log loss of each row `(N,)`; of several labels a row, the mean over them."""
    if truth.ndim == 2:
        return (np.logaddexp(0.0, logits_NC) - truth * logits_NC).mean(axis=1)
    return -log_shares(logits_NC)[np.arange(len(truth)), truth]


# ---- The three kinds


def _average(llm_NC: np.ndarray, tfidf_NC: np.ndarray, truth: np.ndarray) -> Mixing:
    several, sides = truth.ndim == 2, (llm_NC.astype(np.float64), tfidf_NC.astype(np.float64))
    hopes_NC = _hopes(truth, llm_NC.shape[1])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope_NC = _loss(weights[0] * sides[0] + weights[1] * sides[1], hopes_NC, several=several)
        return value, np.array([(slope_NC * side).sum() for side in sides])

    start = np.array([_sharpness(side, truth) / 2 for side in sides])
    llm, tfidf = _least(loss, start, bounds=[(0, None)] * 2)
    return Mixing("average", float(llm), float(tfidf), several)


def _stacked(average: Mixing, llm_NC: np.ndarray, tfidf_NC: np.ndarray, truth: np.ndarray) -> Mixing:
    several, classes = average.multi_label, llm_NC.shape[1]
    one_NC, two_NC = average.llm * llm_NC.astype(np.float64), average.tfidf * tfidf_NC.astype(np.float64)
    if not several:
        one_NC, two_NC = log_shares(one_NC), log_shares(two_NC)
    hopes_NC, centre = _hopes(truth, classes), np.concatenate([np.ones(2 * classes), np.zeros(classes)])
    strength = _STRENGTH / (len(truth) * (classes if several else 1))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        first_C, second_C, offset_C = weights.reshape(3, classes)
        value, slope_NC = _loss(first_C * one_NC + second_C * two_NC + offset_C, hopes_NC, several=several)
        slopes = [(slope_NC * one_NC).sum(axis=0), (slope_NC * two_NC).sum(axis=0), slope_NC.sum(axis=0)]
        away = weights - centre
        return value + strength * float(away @ away) / 2, np.concatenate(slopes) + strength * away

    found = _least(loss, centre).reshape(3, classes)
    return replace(average, kind="stacking", stack=tuple(tuple(map(float, each)) for each in found))


def _cascade(average: Mixing, llm_NC: np.ndarray, tfidf_NC: np.ndarray, truth: np.ndarray) -> Mixing:
    """TF-IDF answers the largest share of rows with which the loss is no worse than the average's (STATISTICS.md 17).

    Where it is not sure both answer: the scores of TF-IDF are there already.
    """
    alone = _sharpness(tfidf_NC, truth)
    sure_N = sureness(tfidf_NC, multi_label=average.multi_label)
    mixed_NC, alone_NC = average.mixed(llm_NC, tfidf_NC), alone * tfidf_NC.astype(np.float64)
    found = replace(average, kind="cascade", alone=alone, sure=None)
    for share in np.arange(1.0, _STEP / 2, -_STEP):
        sure = float(np.quantile(sure_N, 1 - share, method="higher"))
        both_NC = np.where((sure_N >= sure)[:, None], alone_NC, mixed_NC)
        if _is_no_worse(both_NC, mixed_NC, truth):
            return replace(found, sure=sure)
    return found


def _is_no_worse(logits_NC: np.ndarray, other_NC: np.ndarray, truth: np.ndarray) -> bool:
    lost_N = row_losses_of(logits_NC, truth) - row_losses_of(other_NC, truth)
    error = lost_N.std(ddof=1) / np.sqrt(len(lost_N)) if len(lost_N) > 1 else 0.0
    wrong = _right(other_NC, truth).mean() - _right(logits_NC, truth).mean()
    return bool(lost_N.mean() <= max(0.5 * error, _NOTHING) and 100 * wrong <= 0.3)


def _right(logits_NC: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return ((logits_NC > 0) == truth).all(axis=1) if truth.ndim == 2 else logits_NC.argmax(axis=1) == truth


# ---- Arithmetic


def _hopes(truth: np.ndarray, classes: int) -> np.ndarray:
    """Targets `(N, C)` as Platt (1999) has them, so that rows without a fault do not ask for endless weights."""
    if truth.ndim == 2:
        positives = int(truth.sum())
        return np.where(truth, (positives + 1) / (positives + 2), 1 / (truth.size - positives + 2))
    doubt = 1 / (len(truth) + 2)
    return (1 - doubt) * (truth[:, None] == np.arange(classes)) + doubt / classes


def _loss(logits_NC: np.ndarray, hopes_NC: np.ndarray, *, several: bool) -> tuple[float, np.ndarray]:
    """The mean loss, and its slope by each logit `(N, C)`."""
    if several:
        slope_NC = (1 / (1 + np.exp(-np.clip(logits_NC, -700, 700))) - hopes_NC) / logits_NC.size
        return float((np.logaddexp(0.0, logits_NC) - hopes_NC * logits_NC).mean()), slope_NC
    logs_NC = log_shares(logits_NC)
    return -float((hopes_NC * logs_NC).sum(axis=1).mean()), (np.exp(logs_NC) - hopes_NC) / len(logits_NC)


def _sharpness(logits_NC: np.ndarray, truth: np.ndarray) -> float:
    """What logits are multiplied by so that their loss is least: one over a temperature."""
    from scipy.optimize import minimize_scalar

    hopes_NC, logits_NC = _hopes(truth, logits_NC.shape[1]), logits_NC.astype(np.float64)
    found = minimize_scalar(
        lambda power: _loss(np.exp(power) * logits_NC, hopes_NC, several=truth.ndim == 2)[0],
        bounds=(-3.0, 3.0),
        method="bounded",
    )
    return float(np.exp(found.x))


def _least(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    *,
    bounds: list[tuple[float, float | None]] | None = None,
) -> np.ndarray:
    from scipy.optimize import minimize

    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
