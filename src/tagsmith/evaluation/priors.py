"""The shares of labels where a classifier works: given, or estimated from texts without labels.

Axes: N rows, M unlabelled texts, C labels, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.errors import SettingError
from tagsmith.evaluation.proportions import Interval
from tagsmith.labels import Labels

FEWEST_TEXTS = 100
_STEPS, _TINY = 300, 1e-6
_RESAMPLES = 200
_MOST_TEXTS = 5000
"""Of more texts a sample of so many is taken: it bounds the time, and shares to a point."""
_ROUNDING = 0.01
_MOST_CONDITION = 30.0


def given_prior(shares: Mapping[str, float], labels: Labels) -> np.ndarray:
    """The shares `(C,)` that a user names for each label; SettingError where they are none."""
    if set(shares) != set(labels.names):
        raise SettingError(
            f"evaluation.prior names {sorted(shares)[:10]}, and the labels are {list(labels.names[:10])}. Expected a "
            "share for each label, as in {ham = 0.9, spam = 0.1}."
        )
    found = labels.in_order(shares)
    if (found <= 0).any() or abs(found.sum() - 1) > _ROUNDING:
        raise SettingError(
            f"The shares in evaluation.prior sum to {found.sum():g}, the smallest is {found.min():g}. Expected shares "
            "above 0 that sum to 1."
        )
    return found / found.sum()


@dataclass(frozen=True)
class PriorEstimate:
    """Shares of labels among unlabelled texts, by EM and from the confusion matrix; `accepted` where the two agree.

    `told` says in words why they are taken, or why not.
    """

    by_em: tuple[Interval, ...]
    by_confusion: tuple[Interval, ...]
    texts: int
    accepted: bool
    told: str

    @property
    def shares(self) -> np.ndarray:
        """The shares `(C,)` by EM."""
        return np.array([each.value for each in self.by_em])

    def as_dict(self, labels: Labels) -> dict[str, Any]:
        """What `calibration.prior` of report.json says of it."""
        return {
            "accepted": self.accepted,
            "told": self.told,
            "texts": self.texts,
            "by_em": {name: each.as_dict() for name, each in zip(labels.names, self.by_em, strict=True)},
            "by_confusion": {name: each.as_dict() for name, each in zip(labels.names, self.by_confusion, strict=True)},
        }


def estimate_prior(
    probs: np.ndarray, prior: np.ndarray, *, held_out_probs: np.ndarray, held_out_truth: np.ndarray, seed: int
) -> PriorEstimate:
    """Shares of labels among unlabelled texts with calibrated `probs (M, C)` at the shares `prior (C,)`.

    By EM (Saerens et al. 2002, equations 9 and 10), which assumes that texts of a label are as they were and only its
    share has changed. The confusion matrix of held-out rows gives a second estimate under the same assumption (Lipton
    et al. 2018, section 3); where the two differ beyond chance, or there are too few texts, it is not accepted.
    Intervals are 95 % bootstrap percentiles over texts and held-out rows.
    """
    rng, classes = np.random.default_rng(seed), len(prior)
    if len(probs) > _MOST_TEXTS:
        probs = probs[rng.permutation(len(probs))[:_MOST_TEXTS]]
    draws = np.array(
        [
            _both(
                probs[rng.integers(0, len(probs), len(probs))],
                prior,
                *_resampled(held_out_probs, held_out_truth, rng),
            )
            for _ in range(_RESAMPLES)
        ]
    )
    values = _both(probs, prior, held_out_probs, held_out_truth)
    lows, highs = np.quantile(draws, [0.025, 0.975], axis=0)
    by_em, by_confusion = (
        tuple(
            Interval(float(values[way, i]), min(float(lows[way, i]), float(values[way, i])),
                     max(float(highs[way, i]), float(values[way, i])))
            for i in range(classes)
        )
        for way in (0, 1)
    )  # fmt: skip
    apart = draws[:, 0] - draws[:, 1]
    # Bonferroni over the labels, so that agreement is denied by chance in one case of twenty at most.
    tails = np.quantile(apart, [0.025 / classes, 1 - 0.025 / classes], axis=0)
    differs = (tails[0] > 0) | (tails[1] < 0)
    return PriorEstimate(by_em, by_confusion, len(probs), *_judged(probs, held_out_probs, held_out_truth, differs))


def _judged(
    probs: np.ndarray, held_out_probs: np.ndarray, held_out_truth: np.ndarray, differs: np.ndarray
) -> tuple[bool, str]:
    if len(probs) < FEWEST_TEXTS:
        return False, f"declined: {len(probs)} unlabelled texts are too few; expected {FEWEST_TEXTS} or more"
    matrix = _confusion(held_out_probs, held_out_truth)
    if matrix is None or np.linalg.cond(matrix) > _MOST_CONDITION:
        return False, "declined: the labels are told apart too badly, or have too few held-out rows, to estimate shares"
    if differs.any():
        return False, (
            f"declined: EM and the confusion matrix disagree on {int(differs.sum())} of {len(differs)} labels beyond "
            "chance, so that more than the shares has changed"
        )
    return True, f"accepted: EM and the confusion matrix agree on {len(probs)} unlabelled texts"


def _resampled(probs: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    drawn = rng.integers(0, len(truth), len(truth))
    return probs[drawn], truth[drawn]


def _both(probs: np.ndarray, prior: np.ndarray, held_out_probs: np.ndarray, held_out_truth: np.ndarray) -> np.ndarray:
    """Shares `(2, C)` by EM and by the confusion matrix."""
    return np.stack([em_prior(probs, prior), _by_confusion(probs, prior, held_out_probs, held_out_truth)])


def em_prior(probs: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The shares `(C,)` that explain `probs (M, C)`, which were told at the shares `prior (C,)`, best."""
    likelihoods = probs / prior
    shares = prior.copy()
    for _ in range(_STEPS):
        posterior = likelihoods * shares
        posterior /= posterior.sum(axis=1, keepdims=True)
        moved = posterior.mean(axis=0)
        if np.abs(moved - shares).max() < _TINY:
            return moved
        shares = moved
    return shares


def _by_confusion(
    probs: np.ndarray, prior: np.ndarray, held_out_probs: np.ndarray, held_out_truth: np.ndarray
) -> np.ndarray:
    from scipy.optimize import nnls

    matrix = _confusion(held_out_probs, held_out_truth)
    if matrix is None:
        return prior
    answered = np.bincount(probs.argmax(axis=1), minlength=len(prior)) / len(probs)
    # Shares sum to 1: a heavy row says so.
    shares, _ = nnls(np.vstack([matrix, np.full(len(prior), 100.0)]), np.append(answered, 100.0))
    return shares / shares.sum() if shares.sum() > 0 else prior


def _confusion(probs: np.ndarray, truth: np.ndarray) -> np.ndarray | None:
    """The share of answers (rows) for each truth (columns) `(C, C)`; None where a label has no row."""
    classes = probs.shape[1]
    counts = np.bincount(probs.argmax(axis=1) * classes + truth, minlength=classes**2).reshape(classes, classes)
    support = counts.sum(axis=0)
    return None if (support == 0).any() else counts / support
