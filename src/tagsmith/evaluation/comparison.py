"""Two models on the same rows: which is better, beyond chance, and what these rows could show at all.

Axes: N rows, C labels, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tagsmith.data.power import detectable_difference, minimum_difference
from tagsmith.evaluation.proportions import Interval, design_effect

Value = Literal["better", "worse", "practically equal", "undecided"]
Measure = Literal["accuracy", "micro_f1", "macro_f1", "balanced_accuracy"]
SIGNIFICANCE = 0.05
LLM = "LLM"
"""What a verdict need not name: the one that a training is about."""


@dataclass(frozen=True)
class Wording:
    """What a verdict's sentence needs: the names of model and baseline, what the rows can show, margin and unit."""

    names: tuple[str, str]
    limit: str
    margin: float
    unit: str = "points"


@dataclass(frozen=True)
class Verdict:
    """Whether a model beats its baseline; all differences in points (hundredths) of `measure`.

    `minimum_difference` is the smallest difference that these rows could ever call significant, None where no
    difference could, and for F1, where it depends on too much. `detectable_difference` is the one seen with 80 % power,
    None where the discordance is not known or does not allow it.
    """

    p_value: float
    difference: Interval
    minimum_difference: float | None
    detectable_difference: float | None
    wording: Wording
    measure: Measure = "accuracy"
    whose: str = LLM

    @property
    def value(self) -> Value:
        """Which of the four it is."""
        return decide(self.difference, self.p_value, self.wording.margin)

    @property
    def text(self) -> str:
        """The verdict in a sentence, which names what it is about where that is not the LLM alone."""
        told = sentence(self.value, self.difference, self.p_value, self.wording)
        return told if self.whose == LLM else f"{self.whose[0].upper()}{self.whose[1:]}: {told[0].lower()}{told[1:]}"

    def as_dict(self) -> dict[str, Any]:
        """The shape of `verdict` in report.json."""
        return {
            "value": self.value,
            "text": self.text,
            "p_value": self.p_value,
            "minimum_difference": self.minimum_difference,
            "detectable_difference": self.detectable_difference,
            "difference": self.difference.as_dict(),
            "measure": self.measure,
        }


def compare(
    truth: np.ndarray,
    probs_model: np.ndarray,
    probs_baseline: np.ndarray,
    groups: np.ndarray,
    *,
    margin: float = 1.0,
    discordance: float | None = None,
    names: tuple[str, str] = ("LLM", "TF-IDF"),
) -> Verdict:
    """The paired comparison of `probs_model (N, C)` with `probs_baseline (N, C)` against `truth (N,)`.

    In this order: an interval inside -`margin` to +`margin` points is "practically equal", even where the small
    difference is significant; else p < 0.05 is "better" or "worse"; else "undecided". The p-value comes from flipping
    the sign of whole groups, which is the exact McNemar test where every row is its own group; the interval is Tango's
    on effective rows. `discordance` is the share of rows, seen in validation, on which exactly one of the two is right.
    """
    right = probs_model.argmax(axis=1) == truth
    right_baseline = probs_baseline.argmax(axis=1) == truth
    return compare_hits(right, right_baseline, groups, margin=margin, discordance=discordance, names=names)


def compare_hits(
    right_model: np.ndarray,
    right_baseline: np.ndarray,
    groups: np.ndarray,
    *,
    margin: float = 1.0,
    discordance: float | None = None,
    names: tuple[str, str] = ("LLM", "TF-IDF"),
) -> Verdict:
    """`compare`, told which rows `(N,)` bool each of the two gets right."""
    gains = right_model.astype(np.int64) - right_baseline
    difference = _difference(gains, groups)
    p_value = sign_flip_p(gains, groups)
    minimum = minimum_difference(groups)
    rows = len(gains) / design_effect(gains.astype(np.float64), groups)
    limit = "no difference" if minimum is None else f"no difference under {_small(minimum)} points"
    wording = Wording(names, f"on {len(gains):,} rows {limit} can be significant", margin)
    detectable = None if discordance is None else detectable_difference(rows, discordance)
    return Verdict(p_value, difference, minimum, detectable, wording)


def sign_flip_p(gains: np.ndarray, groups: np.ndarray) -> float:
    """The exact two-sided p-value of the sum of `gains (N,)` in {-1, 0, 1} when each group's sum may have either sign.

    The sum's distribution is a convolution: the groups whose sums have the size s add s (2 Binomial(k, 1/2) - k).
    Without groups this is the exact McNemar test (McNemar 1947).
    """
    _, group = np.unique(groups, return_inverse=True)
    sums = np.abs(np.bincount(group, weights=gains)).astype(np.int64)
    sizes, counts = np.unique(sums[sums > 0], return_counts=True)
    chance = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        chance = _convolve(chance, _signed_sums(size, count))
    centre, seen = len(chance) // 2, abs(int(gains.sum()))
    far = np.abs(np.arange(len(chance)) - centre) >= seen
    return float(np.clip(chance[far].sum(), 0, 1))


def corrected(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Verdicts on several models, each decided again by p-values corrected for their number."""
    p_values = holm([each.p_value for each in verdicts.values()])
    return {name: replace(each, p_value=p) for (name, each), p in zip(verdicts.items(), p_values, strict=True)}


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for their number so that all of them together err once in twenty (Holm 1979)."""
    order, corrected, largest = np.argsort(p_values, kind="stable"), [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = float(largest)
    return corrected


def _signed_sums(size: int, count: int) -> np.ndarray:
    """Chances of the sums -size * count ... size * count of `count` signs times `size`."""
    from scipy.stats import binom

    chances = np.zeros(2 * size * count + 1)
    chances[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
    return chances


def _convolve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from scipy.signal import convolve

    return np.maximum(convolve(first, second), 0)


def _difference(gains: np.ndarray, groups: np.ndarray) -> Interval:
    inflation = design_effect(gains.astype(np.float64), groups)
    wins, losses, rows = (gains > 0).sum() / inflation, (gains < 0).sum() / inflation, len(gains) / inflation
    low, high = _tango(float(wins), float(losses), float(rows))
    value = 100 * float(gains.mean())
    return Interval(value, min(100 * low, value), max(100 * high, value))


def _tango(wins: float, losses: float, rows: float) -> tuple[float, float]:
    """The score interval of a paired difference of proportions (Tango 1998, Statistics in Medicine 17, equation 9)."""
    level = 1.959963984540054
    value = (wins - losses) / rows

    def score(difference: float) -> float:
        b = -wins - losses + (2 * rows - wins + losses) * difference
        c = -losses * difference * (1 - difference)
        lost = (np.sqrt(max(b * b - 8 * rows * c, 0)) - b) / (4 * rows)
        variance = rows * (2 * lost + difference * (1 - difference))
        return (rows * difference - wins + losses) / np.sqrt(max(variance, 1e-15))

    low = -1.0 if value <= -1 else _rising_root(lambda d: score(d) + level, -1.0, value)
    high = 1.0 if value >= 1 else _rising_root(lambda d: score(d) - level, value, 1.0)
    return low, high


def _rising_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises from below 0 crosses it, or the nearer end."""
    from scipy.optimize import root_scalar

    if function(low) >= 0:
        return low
    return high if function(high) <= 0 else float(root_scalar(function, bracket=(low, high), xtol=1e-10).root)


def decide(difference: Interval, p_value: float, margin: float) -> Value:
    """The verdict of an interval in points and a p-value, in the order that `compare` states."""
    assert difference.low is not None and difference.high is not None
    if -margin <= difference.low and difference.high <= margin:
        return "practically equal"
    if p_value >= SIGNIFICANCE:
        return "undecided"
    return "better" if difference.value > 0 else "worse"


def sentence(value: Value, difference: Interval, p_value: float, wording: Wording) -> str:
    """The verdict in words."""
    model, baseline = wording.names
    unit, margin = wording.unit, wording.margin
    shown = f"{_points(difference.low)} to {_points(difference.high)}, {_p(p_value)}"
    size = _points(abs(difference.value))
    if value == "better":
        return f"Better than {baseline} by {size} {unit} ({shown})."
    if value == "worse":
        turned = f"{_points(-(difference.high or 0.0))} to {_points(-(difference.low or 0.0))}, {_p(p_value)}"
        return f"Worse than {baseline} by {size} {unit} ({turned}): use {baseline}."
    if value == "practically equal":
        return (
            f"Practically equal to {baseline}: the difference is {_points(difference.value)} {unit} ({shown}), "
            f"within {margin:g} either way; {baseline} is the cheaper one."
        )
    return f"Undecided: {model} minus {baseline} is {_points(difference.value)} {unit} ({shown}); {wording.limit}."


def with_cost(verdict: Mapping[str, Any], cost: Mapping[str, Mapping[str, float]], *, name: str = "LLM") -> str:
    """The verdict of report.json in one sentence, with what the LLM costs beside TF-IDF (`cost` of run.json).

    `name` is what answers, where that is not the LLM alone.
    """
    told, times = str(verdict["text"]).removesuffix("."), _times(cost)
    if verdict["value"] == "better":
        gain = verdict["difference"]["value"]
        fewer = f"{round(10 * gain):,} errors fewer in 1,000 texts, " if verdict["measure"] == "accuracy" else ""
        return f"{told}: {fewer}for {times} its cost per text."
    whose = "the LLM's" if name == LLM else "its"
    return f"{told}; {whose} answers cost {times} as much."


def _times(cost: Mapping[str, Mapping[str, float]]) -> str:
    ratio = cost["model"]["seconds_per_thousand"] / max(cost["tfidf"]["seconds_per_thousand"], 1e-9)
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _points(value: float | None) -> str:
    """One decimal, without a negative zero."""
    return f"{round(value or 0.0, 1) + 0.0:.1f}"


def _small(value: float) -> str:
    return _points(value) if value >= 0.1 else f"{value:.1g}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
