"""How large a difference between two models a number of test rows can show."""

from __future__ import annotations

import math

import numpy as np

_FEWEST_DISCORDANT = 6  # 2 * 0.5**6 = 0.031 is the first two-sided p below 0.05
_LEVEL, _POWER = 1.959963984540054, 0.8416212335729143  # normal quantiles of 0.975 and 0.8
USUAL_DISCORDANCE = 0.065
"""The share of rows on which just one of two good models is right, where it is not known yet."""


def minimum_difference(groups: np.ndarray) -> float | None:
    """The smallest difference in points that rows in these groups `(N,)` could ever call significant.

    Six discordant rows in six groups, all in favour of one model; None below six groups.
    """
    if len(np.unique(groups)) < _FEWEST_DISCORDANT:
        return None
    return 100 * _FEWEST_DISCORDANT / len(groups)


def detectable_difference(rows: float, discordance: float) -> float | None:
    """The difference in points that McNemar's test sees with 80 % power on `rows` effective rows.

    `discordance` q is the share of rows on which exactly one model is right. Solves, for d, the sample size
    n = (z_a sqrt(q) + z_b sqrt(q - d^2))^2 / d^2 (Connor 1987, Biometrics 43), which is quadratic in d. None where
    even one-sided discordance would not be enough.
    """
    if discordance <= 0 or rows * discordance < _LEVEL**2:
        return None
    spread = _POWER * math.sqrt(max(rows + _POWER**2 - _LEVEL**2, 0))
    difference = math.sqrt(discordance) * (_LEVEL * math.sqrt(rows) + spread) / (rows + _POWER**2)
    return 100 * difference if difference <= discordance else None
