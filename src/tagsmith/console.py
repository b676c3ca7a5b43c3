"""What a person sees while a command works: bars in a terminal, lines in a log; all of it on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from tagsmith.events import Event

_SECONDS_BETWEEN_LINES = 10.0
"""Where there is no terminal to draw a bar on, a line says from time to time how far a long work is."""


class Console:
    """A listener that shows events. `tuning` says whether steps have begun."""

    def __init__(self) -> None:
        self._console = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[detail]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self.tuning = False
        self._noted: set[str] = set()
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self.tuning = event.stage == "tuning" and event.name in ("step", "evaluated")
        show = getattr(self, f"_on_{event.stage}_{event.name}", None)
        if show is not None:
            show(event)
        elif event.name == "note":
            self._noted.add(str(event.values["text"]))
            self.say(f"Note: {event.values['text']}")

    def say(self, text: str) -> None:
        """A line of text."""
        self._console.print(escape(text))

    def scores(
        self, report: Mapping[str, Any], *, run: Mapping[str, Any] | None = None, file: TextIO | None = None
    ) -> None:
        """The scores of model and baselines, as a table, and the verdict, with its price where `run` knows it.

        Notes that were shown when they arose are not shown again.
        """
        console = RichConsole(file=file or sys.stderr, highlight=False, soft_wrap=True)
        shares = {"accuracy": "accuracy", "macro F1": "macro_f1"}
        if report["test"].get("kind") == "multi_label":
            shares = {"micro F1": "micro_f1", "macro F1": "macro_f1"}
        rows = RichTable("", *shares, "log loss", box=None, pad_edge=False, header_style="bold")
        named = {"this classifier": report["test"]}
        if report.get("test_leaked") and report.get("test_clean"):
            named[f"- on the {report['test_clean']['n']} untouched by training"] = report["test_clean"]
        named |= {"TF-IDF + linear": report["baselines"]["tfidf"]}
        named |= {"frozen probe": report["baselines"]["probe"]} if report["baselines"].get("probe") else {}
        named |= {"majority": report["baselines"]["majority"]}
        named |= {"before tuning": report["before_tuning"]} if report.get("before_tuning") else {}
        for name, scores in named.items():
            rows.add_row(name, *(_percent(scores[key]) for key in shares.values()), _plain(scores["log_loss"]))
        console.print(f"\nOn {report['test']['n']} test rows (with 95 % intervals):")
        console.print(rows)
        if report.get("spread"):
            console.print(_spread(report, shares))
        for note in report.get("notes", ()):
            if note not in self._noted:
                console.print(escape(f"Note: {note}"))
        if report.get("shift"):
            console.print(escape(report["shift"]["text"]))
        facts = run or {}
        if report.get("cascade") and facts.get("cost"):
            console.print(escape(f"\nCascade: {report['cascade']['text']}"))
        console.print(f"\n[bold]{escape(facts.get('verdict') or report['verdict']['text'])}[/bold]")

    def side_by_side(self, compared: Mapping[str, Any]) -> None:
        """Several reports as a table, then what may be said of each pair; on stdout."""
        console = RichConsole(file=sys.stdout, highlight=False, soft_wrap=True)
        titles = [key.replace("_", " ") for key in compared["measures"]]
        rows = RichTable("", "rows", *titles, "TF-IDF", box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(compared["names"]):
            cells = [
                _plain(each[i]) if key == "log_loss" else _percent(each[i])
                for key, each in compared["measures"].items()
            ]
            rows.add_row(escape(name), str(compared["rows"][i]), *cells, _percent(compared["tfidf"][i]))
        console.print(rows)
        for name, values in compared["settings"].items():
            console.print(escape(f"{name}: {', '.join(map(str, values))}"))
        for note in compared["notes"]:
            console.print(escape(f"Note: {note}"))
        for pair in compared["pairs"]:
            console.print(f"\n[bold]{escape(pair['text'])}[/bold]")

    def check(self, found: Mapping[str, Any]) -> None:
        """What a check found, on stdout; titles stand out where it is a terminal."""
        from tagsmith.data.check_text import lines_of

        console = RichConsole(file=sys.stdout, highlight=False, soft_wrap=True)
        bar = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
        for line in lines_of(found, bar=bar):
            console.print(escape(line), style="bold" if line[:1].strip() else "")

    def summary(self, report: Mapping[str, Any], folder: Path) -> None:
        """All that is said at the end of a training."""
        if report.get("book"):
            self._book(report["book"])
        facts = folder / "run.json"
        self.scores(report, run=json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else None)
        self.say(f'\nReport: {folder / "report.html"}\nBundle: {folder}\nAsk it: tagsmith predict {folder} "a text"')
        self.say(f"Serve it: tagsmith serve {folder}")

    def _book(self, book: Mapping[str, Any]) -> None:
        """The tables of the book's chapter: class counts, accuracies before, the course of tuning, accuracies after."""
        for title, counts in book["counts"].items():
            self.say(f"\n{title}")
            for label, count in counts.items():
                self.say(f"  {label:<6} {count:>5}")
        for title in ("before", "after"):
            if title == "after":
                self._book_course(book["course"])
            self.say(f"\nAccuracy {title} fine-tuning")
            for part, share in book[title].items():
                self.say(f"  {part.capitalize() + ' accuracy:':<22} {100 * share:.2f}%")

    def _book_course(self, course: list[Mapping[str, Any]]) -> None:
        self.say("\nFine-tuning")
        for values in course:
            self.say(
                f"  Ep {values['epoch']:g} (Step {values['step']:06d}): Train loss {values['train_loss']:.3f}, "
                f"Val loss {values['validation_loss']:.3f}; training accuracy {100 * values['train_accuracy']:.2f}%, "
                f"validation accuracy {100 * values['validation_accuracy']:.2f}%"
            )

    def _on_assets_progress(self, event: Event) -> None:
        size = f"{(event.step or 0) / 2**20:.0f} of {(event.total or 0) / 2**20:.0f} MiB"
        self._bar(f"Fetching {event.values.get('asset', '')}", event, detail=size)

    def _on_data_read(self, event: Event) -> None:
        self.say(f"Read {event.values['rows']} labelled rows from {event.values['source']}.")

    def _on_data_done(self, event: Event) -> None:
        self.say("Split: " + ", ".join(f"{count} {name}" for name, count in event.values.items()) + " rows.")

    def _on_data_tokens(self, event: Event) -> None:
        values = event.values
        cut = f"; {values['cut']:.1%} are longer than {values['max_tokens']}" if values["cut"] else ""
        self.say(
            f"Texts have {values['median']:.0f} tokens in the median, {values['p95']:.0f} at 95 %, {values['longest']} "
            f"at most{cut}."
        )

    def _on_model_built(self, event: Event) -> None:
        values = event.values
        self.say(f"Backbone {values['backbone']}, {values['layers']} blocks, pooling {values['pooling']}.")

    def _on_model_frozen(self, event: Event) -> None:
        self._bar("Frozen blocks, once", event, detail=f"{event.step} of {event.total} texts")

    def _on_tuning_forecast(self, event: Event) -> None:
        self.say(f"{event.values['text']}")

    def _on_tuning_step(self, event: Event) -> None:
        values = event.values
        name = f"Seed {values['seed']}" if "seed" in values else "Tuning"
        self._bar(name, event, detail=f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.0%}")

    def _on_tuning_search(self, event: Event) -> None:
        self.say(f"{event.values['text']}")

    def _on_tuning_candidate(self, event: Event) -> None:
        values = event.values
        told = f"log loss {values['loss']:.4f}, accuracy {values['accuracy']:.1%}" if values["is_judged"] else "dropped"
        self.say(f"  {values['name']}: {told}")

    def _on_tuning_hybrid(self, event: Event) -> None:
        self.say("Fitting TF-IDF, to answer together with the LLM.")

    def _on_tuning_rival(self, event: Event) -> None:
        self.say("Fitting TF-IDF, to see which of the two reads better.")

    def _on_tuning_refit(self, event: Event) -> None:
        self.say(f"Training once more, on {event.values['rows']} rows: those of validation too.")

    def _on_tuning_padding(self, event: Event) -> None:
        self.say(f"Padding computed: {event.values['share']:.1%}.")

    def _on_tuning_trial(self, event: Event) -> None:
        self._bar(f"Trying {event.values['layers']} blocks", event, detail=f"loss {event.values['loss']:.3f}")

    def _on_tuning_evaluated(self, event: Event) -> None:
        values = event.values
        when = f"Epoch {values['epoch']:.2f}" if event.step else "Probe"
        when = f"Seed {values['seed']}, {when.lower()}" if "seed" in values else when
        self.say(
            f"{when}: train loss {values['train_loss']:.3f}, accuracy {values['train_accuracy']:.1%}; "
            f"validation loss {values['validation_loss']:.3f}, accuracy {values['validation_accuracy']:.1%}"
        )

    def _on_evaluation_baselines(self, event: Event) -> None:
        self.say("Fitting TF-IDF on the same rows.")

    def _on_evaluation_test(self, event: Event) -> None:
        self.say(f"Opening the {event.values['rows']} test rows with the saved bundle.")

    def _on_evaluation_audit(self, event: Event) -> None:
        self.say(f"Auditing the labels of {event.values['rows']} training rows.")

    def _on_evaluation_explaining(self, event: Event) -> None:
        self.say(f"Looking for the words behind {event.values['mistakes']} mistakes.")

    def _on_deployment_progress(self, event: Event) -> None:
        done = f"{event.step:,}" + (f" of {event.total:,}" if event.total else "") + " rows"
        self._bar("Labelling", event, detail=done)
        left, now = event.values.get("seconds_left"), time.monotonic()
        if self._console.is_terminal or now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        self.say(
            f"Labelled {done}" + (f", about {timedelta(seconds=round(left))} left." if isinstance(left, float) else ".")
        )

    def _bar(self, name: str, event: Event, *, detail: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=event.total, detail=detail)
        self._progress.update(self._tasks[name], completed=event.step or 0, total=event.total, detail=detail)


def _spread(report: Mapping[str, Any], shares: Mapping[str, str]) -> str:
    """Mean and standard deviation over seeds in one line."""
    spread = report["spread"]
    parts = [
        f"{title} {100 * spread[key]['mean']:.2f} % ± {100 * spread[key]['standard_deviation']:.2f}"
        for title, key in shares.items()
    ]
    parts.append(f"log loss {spread['log_loss']['mean']:.3f} ± {spread['log_loss']['standard_deviation']:.3f}")
    return f"Over {len(report['seeds'])} seeds (mean ± standard deviation): {', '.join(parts)}."


def _percent(measure: Mapping[str, float | None]) -> str:
    if measure["low"] is None or measure["high"] is None:
        return f"{100 * (measure['value'] or 0):.2f} %"
    return f"{100 * (measure['value'] or 0):.2f} % ({100 * measure['low']:.1f} to {100 * measure['high']:.1f})"


def _plain(measure: Mapping[str, float | None]) -> str:
    value = measure["value"]
    return "-" if value is None else f"{value:.3f}"
