"""Logistic regressions of all labels at once, each label against the rest: what TF-IDF needs where labels are many.

The labels share the matrix, and reading it is what takes the time.

Axes: N rows, V terms, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_MOST_ITERATIONS = 60
_TOLERANCE = 1e-3
_LINE_STEPS = 4


@dataclass
class OneVsRest:
    """Weights `(V, C)` float32 and bias `(C,)` of the labels' log-odds."""

    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def at_prior(cls, truth_NC: np.ndarray, *, terms: int, row_weights_NC: np.ndarray) -> OneVsRest:
        """No term counts, and each label has its (weighted) log-odds."""
        positives = (truth_NC * row_weights_NC).sum(axis=0) + 0.5
        negatives = (~truth_NC * row_weights_NC).sum(axis=0) + 0.5
        bias = np.log(positives / negatives).astype(np.float32)
        return cls(np.zeros((terms, truth_NC.shape[1]), dtype=np.float32), bias)

    def scores(self, matrix: csr_matrix) -> np.ndarray:
        """Log-odds `(N, C)`."""
        return matrix @ self.weights + self.bias


def fit_one_vs_rest(
    matrix: csr_matrix, truth_NC: np.ndarray, start: OneVsRest, *, c: float, row_weights_NC: np.ndarray
) -> OneVsRest:
    """For each label the weights w and bias b of least |w|^2 / 2 + c * (weighted log loss of the rows).

    Preconditioned conjugate gradients (Polak and Ribiere 1969, restarted where they would not descend), from `start`
    on, until each label's squared gradient is a thousandth of that at the prior. A step's length is found among the
    scores, which are linear in it, so that an iteration reads the matrix twice.
    """
    problem = _Problem(matrix, truth_NC, np.float32(c), row_weights_NC)
    weights_VC, bias_C = start.weights.copy(), start.bias.copy()
    scores_NC = start.scores(matrix)
    # The curvature at the start: frequent terms are steep, rare ones flat.
    steepness_VC, steepness_C = problem.curvature(scores_NC)
    enough = _TOLERANCE * problem.gradient_norm_at_prior(steepness_VC, steepness_C)
    before = direction = None
    for _ in range(_MOST_ITERATIONS):
        gradient = problem.gradient(weights_VC, scores_NC)
        scaled = (gradient[0] / steepness_VC, gradient[1] / steepness_C)
        size_C = _dot(gradient, scaled)
        if (size_C <= enough).all():
            break
        if before is None or direction is None:
            direction = (-scaled[0], -scaled[1])
        else:
            last_gradient, last_size_C = before
            share_C = np.maximum(size_C - _dot(last_gradient, scaled), 0) / np.maximum(last_size_C, 1e-30)
            direction = (share_C * direction[0] - scaled[0], share_C * direction[1] - scaled[1])
            uphill_C = _dot(gradient, direction) >= 0
            if uphill_C.any():
                for way, steepest in zip(direction, scaled, strict=True):
                    way[..., uphill_C] = -steepest[..., uphill_C]
        moved_NC = matrix @ direction[0] + direction[1]
        length_C = problem.line_search(weights_VC, scores_NC, direction[0], moved_NC)
        weights_VC += length_C * direction[0]
        bias_C += length_C * direction[1]
        scores_NC += length_C * moved_NC
        before = (gradient, size_C)
    return OneVsRest(weights_VC, bias_C)


@dataclass(frozen=True)
class _Problem:
    matrix: csr_matrix
    truth_NC: np.ndarray
    c: np.float32
    row_weights_NC: np.ndarray

    def gradient(self, weights_VC: np.ndarray, scores_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of weights `(V, C)` and bias `(C,)`."""
        misses_NC = self.c * self.row_weights_NC * (_sigmoid(scores_NC) - self.truth_NC)
        return weights_VC + self.matrix.T @ misses_NC, misses_NC.sum(axis=0)

    def curvature(self, scores_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The diagonal of the Hessian, about: each term's squares times the label's mean weight."""
        chance_NC = _sigmoid(scores_NC)
        bend_C = self.c * (self.row_weights_NC * chance_NC * (1 - chance_NC)).mean(axis=0)
        squares_V = np.asarray(self.matrix.multiply(self.matrix).sum(axis=0), dtype=np.float32).ravel()
        return 1 + np.outer(squares_V, bend_C), bend_C * len(scores_NC) + np.float32(1e-6)

    def gradient_norm_at_prior(self, steepness_VC: np.ndarray, steepness_C: np.ndarray) -> np.ndarray:
        """What convergence is measured by `(C,)`: it must not depend on where the search starts."""
        terms, classes = steepness_VC.shape
        prior = OneVsRest.at_prior(self.truth_NC, terms=terms, row_weights_NC=self.row_weights_NC)
        scores_NC = np.broadcast_to(prior.bias, (self.matrix.shape[0], classes))
        gradient = self.gradient(prior.weights, scores_NC)
        return _dot(gradient, (gradient[0] / steepness_VC, gradient[1] / steepness_C))

    def line_search(
        self, weights_VC: np.ndarray, scores_NC: np.ndarray, way_VC: np.ndarray, moved_NC: np.ndarray
    ) -> np.ndarray:
        """For each label the length `(C,)` of no slope: Newton's method, halving where it overshoots."""
        length_C = np.zeros(scores_NC.shape[1], dtype=np.float32)
        low_C, high_C = length_C, np.full_like(length_C, np.inf)
        along_C, square_C = _columns(weights_VC, way_VC), _columns(way_VC, way_VC)
        for _ in range(_LINE_STEPS):
            chance_NC = _sigmoid(scores_NC + length_C * moved_NC)
            pulls_NC = self.c * self.row_weights_NC * moved_NC
            slope_C = along_C + length_C * square_C + _columns(pulls_NC, chance_NC - self.truth_NC)
            bend_C = square_C + _columns(pulls_NC * moved_NC, chance_NC * (1 - chance_NC))
            low_C, high_C = np.where(slope_C < 0, length_C, low_C), np.where(slope_C < 0, high_C, length_C)
            newton_C = length_C - slope_C / np.maximum(bend_C, 1e-20)
            length_C = np.where((newton_C >= low_C) & (newton_C <= high_C), newton_C, (low_C + high_C) / 2)
        return length_C


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return (0.5 * (1 + np.tanh(0.5 * scores))).astype(np.float32)


def _columns(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->j", a, b)


def _dot(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return _columns(a[0], b[0]) + a[1] * b[1]
