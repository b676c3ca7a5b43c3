"""Whether an engine answers as the reference does, on held-out rows, and how much faster: a gate with its numbers.

Axes: N rows, C labels.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.deployment.engine import Engine, probabilities
from tagsmith.deployment.held_out import HeldOut
from tagsmith.evaluation.label_sets import f1_of, label_sums
from tagsmith.model.calibration import is_sure
from tagsmith.model.decision import Decision, Rule, decided

TOLERANCE = 1e-4
"""How far probabilities of two engines in fp32 may differ."""
LEAST_AGREEMENT, MOST_F1_LOST, LEAST_SPEEDUP = 0.99, 0.5, 1.2
"""The lower bound of the share of equal answers; points of macro-F1; and how many times as fast an int8 export is."""
LEAST_AT_ONCE = 32
_ROWS_TO_TIME, _ROUNDS = 128, 3
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Parity:
    """An engine beside the reference on the same rows.

    `agreement` is the share of equal answers and `agreement_low` its lower bound (one-sided, 95 %, Clopper-Pearson);
    None where rows were made and no share means anything. `decided_by_rounding` counts rows whose answers differ and
    whose top two (or a threshold) lie within twice the tolerance. `largest_difference` is of probabilities. F1 is in
    [0, 1], None without labels. Speeds are rows per second on this machine, alternately measured; None where they were
    not.
    """

    engine: str
    reference: str
    rows: str
    n: int
    agreement: float
    agreement_low: float | None
    decided_by_rounding: int
    largest_difference: float
    mean_difference: float
    macro_f1: float | None
    macro_f1_reference: float | None
    machine: str
    rows_per_second: float | None = None
    rows_per_second_reference: float | None = None

    @property
    def speedup(self) -> float | None:
        """How many times as many rows a second as the reference."""
        if self.rows_per_second is None or self.rows_per_second_reference is None:
            return None
        return self.rows_per_second / self.rows_per_second_reference

    @property
    def points_lost(self) -> float | None:
        """Points of macro-F1 below the reference."""
        if self.macro_f1 is None or self.macro_f1_reference is None:
            return None
        return 100 * (self.macro_f1_reference - self.macro_f1)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"speedup": self.speedup, "points_lost": self.points_lost}


def compare(engine: Engine, reference: Engine, held_out: HeldOut) -> Parity:
    """Both engines on the same texts, of which none may be empty, and how fast they are on the first of them."""
    probs_NC, wanted_NC = (probabilities(each, held_out.texts) for each in (engine, reference))
    found = compared(
        probs_NC,
        wanted_NC,
        held_out.truth,
        names=(engine.name, reference.name),
        told=held_out.told,
        thresholds=reference.thresholds,
        sureties=reference.sureties,
    )
    fast, slow = _speeds(engine, reference, held_out.texts[:_ROWS_TO_TIME])
    return replace(found, rows_per_second=fast, rows_per_second_reference=slow)


def compared(
    probs_NC: np.ndarray,
    wanted_NC: np.ndarray,
    truth: np.ndarray | None,
    *,
    names: tuple[str, str],
    told: str,
    thresholds: Rule,
    sureties: np.ndarray | None = None,
) -> Parity:
    """Probabilities beside those of the reference; `names` are the engine's and the reference's.

    Below one of `sureties (C,)` no label is answered, and silence is an answer that must agree too.
    """
    answers, wanted = (_answers(each, thresholds) for each in (probs_NC, wanted_NC))
    differ = answers != wanted if answers.ndim == 1 else (answers != wanted).any(axis=1)
    if sureties is not None:
        differ |= _sure(probs_NC, sureties) != _sure(wanted_NC, sureties)
    gaps, n, classes = np.abs(probs_NC - wanted_NC), len(wanted), probs_NC.shape[1]
    return Parity(
        engine=names[0],
        reference=names[1],
        rows=told,
        n=n,
        agreement=float(1 - differ.mean()),
        agreement_low=None if truth is None else _lower_bound(int(n - differ.sum()), n),
        decided_by_rounding=int((differ & (_margin(wanted_NC, thresholds) <= 2 * TOLERANCE)).sum()),
        largest_difference=float(gaps.max()),
        mean_difference=float(gaps.mean()),
        macro_f1=None if truth is None else _macro_f1(truth, answers, classes),
        macro_f1_reference=None if truth is None else _macro_f1(truth, wanted, classes),
        machine=f"{platform.machine()}, {processor_name()}",
    )


def exactly(found: Parity) -> list[str]:
    """Why an engine in fp32 does not count as the same; empty where it does."""
    changed = round((1 - found.agreement) * found.n) - found.decided_by_rounding
    return [
        *_unless(
            found.largest_difference <= TOLERANCE,
            f"probabilities differ by up to {found.largest_difference:.1e}, and {TOLERANCE:.0e} is allowed",
        ),
        *_unless(changed <= 0, f"{changed} of {found.n} labels changed"),
    ]


def closely(found: Parity) -> list[str]:
    """Why an engine of fewer bits does not count as close enough; empty where it does."""
    if found.agreement_low is None or found.points_lost is None:
        return [f"it was compared on {found.rows}; give labelled rows with --rows"]
    low, n = found.agreement_low, found.n
    enough = int(np.ceil(np.log(1 - _CONFIDENCE) / np.log(LEAST_AGREEMENT)))
    few = f"; {enough} rows without a difference are the fewest that can show it" if n < enough else ""
    return [
        *_unless(
            low >= LEAST_AGREEMENT,
            f"{100 * found.agreement:.2f} % of the answers on {n} rows agree, at least {100 * low:.2f} % by the lower "
            f"bound, and {100 * LEAST_AGREEMENT:.0f} % are needed{few}",
        ),
        *_unless(
            found.points_lost <= MOST_F1_LOST,
            f"macro-F1 falls by {found.points_lost:.2f} points, and {MOST_F1_LOST} are allowed",
        ),
    ]


def closely_and_faster(found: Parity) -> list[str]:
    """Why an int8 export is not worth it; empty where it is."""
    speedup = found.speedup or 0.0
    return closely(found) + _unless(
        speedup >= LEAST_SPEEDUP,
        f"it is {speedup:.2f} times as fast as {found.reference} here, and {LEAST_SPEEDUP} times are needed",
    )


def at_once(found: Parity) -> list[str]:
    """Why an engine is not let in on the few rows that are looked at when a bundle is saved; empty where it is."""
    changed = round((1 - found.agreement) * found.n)
    return [
        *_unless(found.n >= LEAST_AT_ONCE, f"it was compared on {found.n} rows, and {LEAST_AT_ONCE} are the fewest"),
        *_unless(changed == 0, f"{changed} of {found.n} answers changed"),
    ]


def _unless(passed: bool, why: str) -> list[str]:
    return [] if passed else [why]


def _answers(probs_NC: np.ndarray, thresholds: Rule) -> np.ndarray:
    """Label ids `(N,)`, or sets `(N, C)` bool."""
    return decided(probs_NC, thresholds)


def _sure(probs_NC: np.ndarray, sureties: np.ndarray) -> np.ndarray:
    """Whether each row's likeliest label is likely enough to be answered `(N,)`."""
    return np.array([is_sure(probs_C, int(probs_C.argmax()), sureties) for probs_C in probs_NC], dtype=bool)


def _margin(probs_NC: np.ndarray, thresholds: Rule) -> np.ndarray:
    """How far each row is from another answer `(N,)`."""
    if isinstance(thresholds, Decision):
        return thresholds.margins(probs_NC)
    if thresholds is not None:
        return np.abs(probs_NC - thresholds).min(axis=1)
    if probs_NC.shape[1] < 2:
        return np.ones(len(probs_NC))
    top = np.sort(probs_NC, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def _macro_f1(truth: np.ndarray, answers: np.ndarray, classes: int) -> float:
    one = truth.ndim == 1
    truth_NC, answers_NC = (np.eye(classes, dtype=bool)[each] if one else each for each in (truth, answers))
    rows = np.arange(len(truth))
    return float(f1_of(label_sums(truth_NC, answers_NC, rows, seed=0).sum(axis=0, keepdims=True), "macro")[0])


def _lower_bound(hits: int, rows: int) -> float:
    from scipy.special import betaincinv

    return 0.0 if not hits else float(betaincinv(hits, rows - hits + 1, 1 - _CONFIDENCE))


def _speeds(engine: Engine, reference: Engine, texts: Sequence[str]) -> tuple[float, float]:
    """Rows per second of both, from the fastest of a few rounds in turn: what else the machine does takes time away."""
    best = [np.inf, np.inf]
    for _ in range(_ROUNDS):
        for i, each in enumerate((engine, reference)):
            start = time.perf_counter()
            each.logits_of(each.encode(texts))
            best[i] = min(best[i], time.perf_counter() - start)
    return len(texts) / best[0], len(texts) / best[1]


def processor_name() -> str:
    """What the processor calls itself, where the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.system()
