"""Report: everything measured, as plain data; JSON first, the page second. No time, no date, no text of a row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import numpy as np

from tagsmith import __version__
from tagsmith.errors import BundleError
from tagsmith.evaluation.comparison import LLM, Verdict, compare_hits, corrected
from tagsmith.evaluation.label_sets import SetScores, measure_sets
from tagsmith.evaluation.metrics import Scores, measure, require_probabilities
from tagsmith.evaluation.sections import Asked, Measured, sections_of
from tagsmith.evaluation.set_comparison import as_sets, compare_sets, compared_by
from tagsmith.evaluation.spread import spread_of
from tagsmith.labels import Labels
from tagsmith.model.decision import Rule, decided

Plain = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The keys of report.json, in its order; each value is plain data.

    `test`, `test_clean` (rows without a twin in training), `test_leaked`, `before_tuning` and each of `baselines` have
    the shape of `Scores.as_dict()`, of `SetScores.as_dict()` where a text may have several labels, or are None where
    there was nothing to measure.
    """

    tagsmith: str
    verdict: Plain
    notes: list[str]
    test: Plain
    baselines: dict[str, Plain]
    before_tuning: Plain | None
    test_clean: Plain | None
    test_leaked: Plain | None
    data: Plain
    model: Plain
    calibration: Plain
    comparisons: list[Plain] = field(default_factory=list)
    reliability: list[Plain] = field(default_factory=list)
    abstention: Plain = field(default_factory=dict)
    cascade: Plain | None = None
    slices: list[Plain] = field(default_factory=list)
    at_prior: Plain | None = None
    expected_cost: Plain | None = None
    robustness: list[Plain] = field(default_factory=list)
    score_table: Plain | None = None
    mistakes: list[Plain] = field(default_factory=list)
    label_audit: Plain | None = None
    learning_curve: Plain | None = None
    shift: Plain | None = None
    candidates: list[Plain] = field(default_factory=list)
    curves: list[Plain] = field(default_factory=list)
    seeds: list[Plain] = field(default_factory=list)
    spread: Plain = field(default_factory=dict)
    forecast: Plain | None = None
    settings: Plain = field(default_factory=dict)
    reproduce: str = ""

    def as_dict(self) -> Plain:
        """Plain data in the order of the fields; a number that is not finite is None."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def headline(self) -> dict[str, float | str | None]:
        """What a run is known by: the main scores with the ends of their intervals, rivals' scores, the verdict."""
        names = [name for name in _MAIN if name in self.test and (name != "micro_f1" or "kind" in self.test)]
        told = {f"{name}{end}": self.test[name][key] for name in names for end, key in _ENDS.items()}
        for rival, scores in (*self.baselines.items(), ("before_tuning", self.before_tuning)):
            told |= {f"{rival}_{name}": scores[name]["value"] for name in names if scores}
        return _plain(told | {"verdict": self.verdict["value"], **{k: self.verdict[k] for k in ("p_value", "text")}})

    def to_json(self) -> str:
        """The text of report.json: the same report gives the same bytes."""
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """The report of a parsed report.json; keys of later releases are left out, BundleError names a missing one."""
        names = {each.name for each in fields(cls)}
        optional = {each.name for each in fields(cls) if not each.default is each.default_factory is MISSING}
        missing = sorted(names - optional - set(plain))
        if missing:
            raise BundleError(f"report.json lacks {missing}; expected a report that Tagsmith wrote. Train again.")
        return cls(**{name: value for name, value in plain.items() if name in names})


_MAIN = ("accuracy", "micro_f1", "macro_f1", "log_loss", "ece")
_ENDS = {"": "value", "_low": "low", "_high": "high"}


_NOTHING = Asked()


def build_report(
    *,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    truth: np.ndarray,
    probs: np.ndarray,
    baseline_probs: Mapping[str, np.ndarray],
    groups: np.ndarray,
    labels: Labels,
    margin: float,
    resamples: int,
    seed: int,
    before_probs: np.ndarray | None = None,
    leaked: np.ndarray | None = None,
    discordance: float | None = None,
    thresholds: Mapping[str, Rule] | None = None,
    metric: str = "log_loss",
    llm_probs: np.ndarray | None = None,
    name: str = LLM,
    asked: Asked = _NOTHING,
    cascade: Mapping[str, Any] | None = None,
    robustness: Sequence[Mapping[str, Any]] = (),
    calibration: Mapping[str, Any] | None = None,
    candidates: Sequence[Mapping[str, Any]] = (),
    curves: Sequence[Mapping[str, Any]] = (),
    seeds: Sequence[Mapping[str, Any]] = (),
    forecast: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    reproduce: str = "",
) -> Report:
    """Measure `probs (N, C)` and each of `baseline_probs` against `truth (N,)` on the test rows, and compare.

    `baseline_probs` needs `tfidf`, with which the verdict compares; `leaked (N,)` bool marks test rows with a twin in
    training, None where nobody looked; `before_probs (N, C)` are the scores before tuning. `data`, `model` and the
    rest are plain data that is kept as it is, `data.labels` added where it is absent.

    `asked` says what else the report should have, `cascade` and `robustness` are what was measured apart. Where the
    model is no pure LLM, `name` says what it is, and `llm_probs (N, C)` are those of the best LLM: both are compared
    with TF-IDF then, and p-values corrected (Holm). DataError where probabilities are none.

    Where `labels` are multi-label `truth` is `(N, C)` bool, and `thresholds` needs `model`, each name of
    `baseline_probs`, and `before_tuning` with `before_probs`: arrays `(C,)`. `metric` then decides by what is compared
    (see `compared_by`), and `discordance` is the `paired_spread` of that measure.
    Where they are not, a Decision in it says that another label than the likeliest is answered.
    """
    for whose, each in {"the model": probs, **baseline_probs}.items():
        require_probabilities(each, several=labels.multi_label, whose=whose)
    rows = _TestRows(truth, groups, labels, resamples, seed)
    rivals = {name: each for name, each in (("served", probs), ("llm", llm_probs)) if each is not None}
    verdicts = rows.compared(
        rivals, baseline_probs["tfidf"], thresholds, name=name, metric=metric, margin=margin, spread=discordance
    )
    own, before = ((thresholds or {}).get(name) for name in ("model", "before_tuning"))
    return Report(
        tagsmith=__version__,
        verdict=verdicts["served"].as_dict(),
        comparisons=[{"model": name, "baseline": "tfidf"} | each.as_dict() for name, each in verdicts.items()],
        notes=list(notes),
        test=rows.measured(probs, own).as_dict(),
        baselines={
            name: rows.measured(baseline, (thresholds or {}).get(name)).as_dict()
            for name, baseline in baseline_probs.items()
        },
        before_tuning=rows.measured(before_probs, before).as_dict() if before_probs is not None else None,
        test_clean=rows.measured_among(probs, own, None if leaked is None else ~leaked),
        test_leaked=rows.measured_among(probs, own, leaked),
        data={"labels": list(labels.names)} | _plain(data),
        model=_plain(model),
        **_plain(
            sections_of(
                Measured(truth, probs, groups, labels, own),
                asked,
                baseline_probs=baseline_probs,
                baseline_rules=thresholds,
                resamples=resamples,
                seed=seed,
            )
        ),
        cascade=_plain(cascade),
        robustness=_plain(robustness),
        calibration=_plain(calibration or {"temperature": 1.0, "rows": 0, "note": "not calibrated"}),
        candidates=_plain(candidates),
        curves=_plain(curves),
        seeds=_plain(seeds),
        spread=_plain(spread_of(seeds)),
        forecast=_plain(forecast),
        settings=_plain(settings),
        reproduce=reproduce,
    )


@dataclass(frozen=True)
class _TestRows:
    truth: np.ndarray
    groups: np.ndarray
    labels: Labels
    resamples: int
    seed: int

    def measured(self, probs: np.ndarray, thresholds: Rule) -> Scores | SetScores:
        drawn = {"labels": self.labels, "resamples": self.resamples, "seed": self.seed}
        if not isinstance(thresholds, np.ndarray):
            return measure(self.truth, probs, self.groups, rule=thresholds, **drawn)
        return measure_sets(self.truth, probs, self.groups, thresholds=thresholds, **drawn)

    def measured_among(self, probs: np.ndarray, thresholds: Rule, chosen: np.ndarray | None) -> Plain | None:
        if chosen is None or not chosen.any():
            return None
        part = _TestRows(self.truth[chosen], self.groups[chosen], self.labels, self.resamples, self.seed)
        return part.measured(probs[chosen], thresholds).as_dict()

    def compared(
        self,
        rivals: Mapping[str, np.ndarray],
        baseline: np.ndarray,
        thresholds: Mapping[str, Rule] | None,
        *,
        name: str,
        metric: str,
        margin: float,
        spread: float | None,
    ) -> dict[str, Verdict]:
        """Each of `rivals` against TF-IDF, p-values corrected for their number."""
        found = {}
        for rival, probs in rivals.items():
            rules = thresholds or {}
            answers = decided(probs, rules.get("model" if rival == "served" else rival))
            beside = decided(baseline, rules.get("tfidf"))
            by = compared_by(metric, rules.get("model"))
            if by == "accuracy" and answers.ndim == 1:
                hits = (answers == self.truth, beside == self.truth)
                found[rival] = compare_hits(*hits, self.groups, margin=margin, discordance=spread)
                continue
            found[rival] = compare_sets(
                as_sets(self.truth, len(self.labels)),
                as_sets(answers, len(self.labels)),
                as_sets(beside, len(self.labels)),
                self.groups,
                measure=by,
                resamples=self.resamples,
                seed=self.seed,
                margin=margin,
                spread=spread,
            )
        named = {rival: replace(each, whose=name if rival == "served" else LLM) for rival, each in found.items()}
        return corrected(named)


def _plain(value: Any) -> Any:
    """Lists, dictionaries, strings and finite numbers; NumPy's own kinds turned into Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
