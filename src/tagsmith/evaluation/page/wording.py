"""Numbers, intervals and facts in the words of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tagsmith.markup import Html, escape, shorten, table_of, word

Measure = Mapping[str, Any]
"""A value with its interval, as report.json has them: `value`, `low`, `high`, each a number or None."""

_SPACE = "\N{NO-BREAK SPACE}"

SINGLE = {"accuracy": "accuracy", "macro F1": "macro_f1", "log loss": "log_loss", "ECE": "ece"}
SETS = {
    "micro F1": "micro_f1",
    "macro F1": "macro_f1",
    "exact sets": "accuracy",
    "log loss": "log_loss",
    "ECE": "ece",
}
FURTHER = {
    "balanced accuracy": "balanced_accuracy",
    "weighted F1": "weighted_f1",
    "micro F1": "micro_f1",
    "MCC": "mcc",
    "ROC AUC": "roc_auc",
    "PR AUC": "pr_auc",
    "Brier": "brier",
}
"""Titles of measures and their keys; `FURTHER` ones are shown where a report has them."""

_UNITLESS = {"log_loss", "brier", "mcc", "expected_cost"}


def section(name: str, title: str, body: str) -> Html:
    """A part of the page that can be linked to; nothing where its body is empty."""
    if not body:
        return Html("")
    return Html(f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>')


def paragraph(text: str, *, soft: bool = False) -> str:
    """A paragraph of our words and escaped ones."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>" if text else ""


def has_sets(test: Mapping[str, Any]) -> bool:
    """Whether a text may have several labels."""
    return test.get("kind") == "multi_label"


def measures_of(test: Mapping[str, Any], verdict: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The main measures of a report by title, with the one that its verdict compares by."""
    if has_sets(test):
        return SETS
    by = (verdict or {}).get("measure")
    return SINGLE | {title: key for title, key in FURTHER.items() if key == by}


def measured(key: str, measure: Measure | None) -> str:
    """A value with its interval in the unit of its kind; empty where nothing was measured."""
    if key in _UNITLESS:
        return _with_interval(measure, scale=1, digits=3, unit="")
    return percent_of(measure)


def percent_of(measure: Measure | None) -> str:
    """A share in per cent with its interval."""
    return _with_interval(measure, scale=100, digits=1, unit=f"{_SPACE}%")


def _with_interval(measure: Measure | None, *, scale: float, digits: int, unit: str) -> str:
    if not measure or measure["value"] is None:
        return ""
    value, low, high = (None if measure[key] is None else f"{scale * measure[key]:.{digits}f}" for key in KEYS)
    if low is None or high is None:
        return f"{value}{unit}"
    return f"{value}{unit} ({low}{_SPACE}to{_SPACE}{high})"  # so that it breaks before the bracket, if anywhere


KEYS = ("value", "low", "high")


def share(value: float | None, digits: int = 1) -> str:
    """A share in per cent."""
    return "" if value is None else f"{100 * value:.{digits}f}{_SPACE}%"


def signed(points: float) -> str:
    """A difference in points, with its sign."""
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    if value < 0.1:
        return f"{1000 * value:.2g} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def size(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**10:.0f} KiB"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values in two columns, nested ones under dotted names."""
    rows = [[word(name), value if isinstance(value, Html) else _long(value)] for name, value in _flat(values)]
    return table_of([], rows, texts=(1,))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _long(value: object) -> Html:
    shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else value
    return Html(f"<bdi>{escape('none' if shown is None else shorten(str(shown), 400))}</bdi>")


def listed(names: Sequence[str]) -> str:
    """A, B and C."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
