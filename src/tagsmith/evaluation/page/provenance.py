"""Where the numbers come from: the rows and what was done to them, the model, the machine, the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagsmith.data.check_page import findings_section, giveaways_section, lengths_section, shares_section
from tagsmith.evaluation.page.wording import facts, paragraph, section
from tagsmith.markup import Html, escape, number, table_of

_MOST_ROW_NUMBERS = 12


def data_section(data: Mapping[str, Any]) -> Html:
    """What was read, dropped and split, step by step, and what was found in the rows before training."""
    told = [f"{number(data['rows'])} rows were read."]
    splits = ", ".join(f"{name} {number(rows)}" for name, rows in (data.get("splits") or {}).items())
    if splits:
        told.append(f"Parts: {splits}.")
    leak, cut = data.get("leak") or {}, data.get("truncated") or {}
    if leak:
        told.append(
            f"Test rows that stand word for word in training: {number(leak.get('exact', 0))}; with a near twin there "
            f"(Jaccard from {leak.get('threshold')}): {number(leak.get('near', 0))}."
        )
    if cut:
        told.append(
            f"Texts cut at the token limit: {number(cut.get('rows', 0))} ({100 * (cut.get('share') or 0):.1f} %)."
        )
    if padding := data.get("padding"):
        told.append(f"Of what tuning computed, {100 * padding['share']:.1f} % was padding.")
    rows = [
        [each["step"], number(each["rows_before"]), number(each["rows_after"]), each["reason"], _row_numbers(each)]
        for each in data.get("history", [])
    ]
    history = table_of(
        ["step", "before", "after", "reason", "rows concerned"],
        rows,
        numbers=(1, 2),
        texts=(3, 4),
        caption="What was done to the rows, step by step",
    )
    return section("data", "What happened to the data", "".join(map(paragraph, told)) + history + _check(data))


def _check(data: Mapping[str, Any]) -> str:
    """What was found in the rows before training, as `tagsmith check` shows it."""
    check = data.get("check")
    if not check:
        return ""
    found = {**check, "tokens": data.get("tokens")}
    return (
        findings_section(check["findings"], title="What was found in the data")
        + lengths_section(found)
        + giveaways_section(check["giveaways"])
        + shares_section(found)
    )


def _row_numbers(change: Mapping[str, Any]) -> str:
    rows = change.get("rows") or []
    shown, all_rows = ", ".join(str(row) for row in rows[:_MOST_ROW_NUMBERS]), change.get("concerned") or len(rows)
    return shown if all_rows <= _MOST_ROW_NUMBERS else f"{shown} … ({all_rows:,} in all)"


def run_section(report: Mapping[str, Any], run: Mapping[str, Any]) -> Html:
    """The command that repeats it, the model, its calibration, the time it took and the machine."""
    model = {key: value for key, value in (report.get("model") or {}).items() if key != "depth"}
    parts = [
        ("The model", model),
        ("Calibration", report.get("calibration") or {}),
        ("Time in seconds", run.get("timing") or {}),
        ("Forecast and truth", _forecast(report, run)),
        ("Environment", (run.get("environment") or {}) | ({"date": run["date"]} if run.get("date") else {})),
    ]
    tables = "".join(f"<h3>{title}</h3>{facts(values)}" for title, values in parts if values)
    settings = f"<details><summary>All settings</summary>{facts(report.get('settings') or {})}</details>"
    command = (
        f'<h3>To repeat it</h3><pre tabindex="0">{escape(report["reproduce"])}</pre>' if report.get("reproduce") else ""
    )
    made = f'<p class="soft">Made by Tagsmith {escape(report.get("tagsmith", ""))}.</p>'
    return section("run", "What was run", f"{command}{tables}{settings}{made}")


def _forecast(report: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    """What was forecast before the first step, beside what came; nothing where nobody forecast."""
    forecast, truth, plan = run.get("forecast"), run.get("truth"), report.get("forecast")
    if not (forecast and truth and plan):
        return {}
    total, least = forecast["seconds"]["total"], forecast["seconds"]["least"]
    sooner = f" ({least:.1f} if tuning stops as early as it can)" if least < total else ""
    steps = f"with {number(report['model']['steps'])} of {number(plan['steps'])} steps"
    memory, came = (each["memory_bytes"] / 2**30 for each in (forecast, truth))
    bundle, written = plan["disk_bytes"]["bundle"] / 2**20, truth["bundle_bytes"] / 2**20
    return {
        "seconds from tuning to the bundle": f"forecast {total:.1f}{sooner}, came {truth['seconds']:.1f} {steps}",
        "most memory": f"forecast {memory:.2f} GiB, came {came:.2f} GiB",
        "bundle": f"forecast {bundle:.0f} MiB, came {written:.0f} MiB",
        "states": plan["states"]["text"],
    }
