"""How many more labels? What a head on frozen states gains from each doubling, and what the next one may bring.

Axes: S sizes, N rows, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.evaluation.resampling import LEVEL, block_sums, resampled_sums

SHARES = (0.125, 0.25, 0.5, 1.0)
_MOST_DRAWS = 2
_STEEPNESS = np.linspace(0.1, 1.0, 10)
FEWEST_ROWS = 100
"""With fewer rows a curve would be mostly chance."""

Right = Callable[[np.ndarray], np.ndarray]
"""From the rows `(N,)` bool that may be learnt from to how right each row `(N,)` is answered unseen, 0 to 1."""


@dataclass(frozen=True)
class Measured:
    """How right each row is answered after learning from parts of the rows: `right (S, N)` for `rows (S,)` of them."""

    rows: tuple[int, ...]
    right: np.ndarray
    groups: np.ndarray


def measure_curve(right_of: Right, groups: np.ndarray, *, learnt_share: float, seed: int) -> Measured:
    """Nested subsets of whole groups, each double the last; small ones are drawn several times and averaged.

    `learnt_share` is the share of a subset that folds leave to learn from.
    """
    distinct, group_N = np.unique(groups, return_inverse=True)
    sizes, rights = [], []
    for share in SHARES:
        draws = max(1, round(min(_MOST_DRAWS, 0.5 / share)))
        found = []
        for draw in range(draws):  # the same order for all shares: subsets of one draw are nested
            place_N = np.random.default_rng([seed, draw]).permutation(len(distinct))[group_N]
            kept_N = place_N < round(share * len(distinct))
            found.append((int(kept_N.sum()), right_of(kept_N)))
        sizes.append(round(learnt_share * np.mean([count for count, _ in found])))
        rights.append(np.mean([right for _, right in found], axis=0))
    return Measured(tuple(sizes), np.array(rights), groups)


def learning_curve(measured: Measured, *, measure: str, resamples: int, seed: int) -> dict[str, Any]:
    """The key `learning_curve` of report.json: measured points, a forecast for twice the rows, and both in words.

    The error at n rows is taken as a + b n^-c with a, b >= 0 and 0.1 <= c <= 1 (Hestness et al. 2017, section 3), least
    squares; intervals resample groups, whose rows are the same at each size. `measure` names what is counted.
    """
    errors_SN = 1 - measured.right
    sums = block_sums(np.vstack([errors_SN, np.ones(errors_SN.shape[1])]).T, measured.groups, seed=seed)
    drawn = resampled_sums(sums, resamples=resamples, seed=seed)
    draws_BS = drawn[:, :-1] / drawn[:, -1:]
    errors_S = errors_SN.mean(axis=1)
    rows = np.asarray(measured.rows, dtype=float)
    more = np.append(rows, 2 * rows[-1])
    fitted, fitted_draws = (_fitted(rows, errors, more) for errors in (errors_S[None], draws_BS))
    gain = _interval(100 * (fitted[0, -2] - fitted[0, -1]), 100 * (fitted_draws[:, -2] - fitted_draws[:, -1]))
    # The forecast starts where the last point was measured, not where the curve passes it.
    ahead = _interval(errors_S[-1] - gain["value"] / 100, draws_BS[:, -1] - fitted_draws[:, -2] + fitted_draws[:, -1])
    return {
        "measure": measure,
        "points": [
            {"rows": int(count), "accuracy": _right(_interval(error, draws))}
            for count, error, draws in zip(rows, errors_S, draws_BS.T, strict=True)
        ],
        "forecast": [{"rows": int(more[-1]), "accuracy": _right(ahead)}],
        "gain": gain,
        "text": _told(gain),
    }


def _fitted(rows_S: np.ndarray, errors_BS: np.ndarray, at: np.ndarray) -> np.ndarray:
    """What the best curve of each draw says at some numbers of rows `(B, len(at))`."""
    best_B, found = np.full(len(errors_BS), np.inf), np.zeros((len(errors_BS), len(at)))
    for steepness in _STEEPNESS:
        falling_S = rows_S**-steepness
        level_B, slope_B = _line(falling_S, errors_BS)
        loss_B = ((level_B[:, None] + slope_B[:, None] * falling_S - errors_BS) ** 2).sum(axis=1)
        better = loss_B < best_B
        best_B[better] = loss_B[better]
        found[better] = (level_B[:, None] + slope_B[:, None] * at**-steepness)[better]
    return found


def _line(x_S: np.ndarray, y_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level and slope `(B,)` of least squares, neither below 0."""
    mean, means_B = x_S.mean(), y_BS.mean(axis=1)
    slope_B = ((y_BS - means_B[:, None]) @ (x_S - mean)) / ((x_S - mean) ** 2).sum()
    slope_B = np.maximum(slope_B, 0)
    level_B = means_B - slope_B * mean
    through_zero_B = (y_BS @ x_S) / (x_S**2).sum()
    return np.maximum(level_B, 0), np.where(level_B < 0, through_zero_B, slope_B)


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": float(value), "low": float(min(low, value)), "high": float(max(high, value))}


def _right(error: dict[str, float]) -> dict[str, float]:
    return {"value": 1 - error["value"], "low": 1 - error["high"], "high": 1 - error["low"]}


def _told(gain: dict[str, float]) -> str:
    value, low, high = (max(0.0, gain[key]) for key in ("value", "low", "high"))
    told = f"Twice as many labels are expected to give {value:+.1f} points ({low:.1f} to {high:.1f})."
    return told if low >= 0.05 else f"{told} They may give nothing."


NOTE = (
    "Measured with a linear head on the frozen states, on rows that it did not see; the tuned model, which moves the "
    "states too, starts elsewhere and may gain more or less. New labels are assumed to come as these did."
)
"""What the curve is of."""


def sampled(count: int, *, seed: int, most: int, strata: Sequence[int] | np.ndarray) -> np.ndarray:
    """Places of at most `most` of `count` rows, in order; each stratum `(N,)` keeps its share, and one row at least."""
    if count <= most:
        return np.arange(count)
    strata = np.asarray(strata)
    drawn = np.random.default_rng(seed).permutation(count)
    _, of_row, sizes = np.unique(strata[drawn], return_inverse=True, return_counts=True)
    order = np.argsort(of_row, kind="stable")
    rank = np.empty(count)
    rank[order] = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    rank[order[np.concatenate([[0], np.cumsum(sizes)[:-1]])]] = -1.0
    return np.sort(drawn[np.argsort(rank, kind="stable")[:most]])
