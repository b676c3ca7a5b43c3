"""What the facts of a check mean: sentences with what to do about each, the worst first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tagsmith.config import DataConfig
from tagsmith.data.cleaning import in_order
from tagsmith.data.languages import UNDETERMINED
from tagsmith.data.token_lengths import MOST_UNKNOWN

Severity = Literal["error", "warning", "note"]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing to know: `error` means that training would refuse, `warning` that its result could mislead.

    `code` stays the same from release to release.
    """

    severity: Severity
    code: str
    text: str
    advice: str


def find(facts: Facts, config: DataConfig) -> tuple[Finding, ...]:
    """All findings; within a severity those that could mislead most come first."""
    found = [finding for look in _LOOKS for finding in look(facts, config)]
    return tuple(sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity)))


def _label_findings(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    labels = facts["labels"]
    if labels["kind"] == "none":
        yield Finding(
            "error", "no_labels", f"Only the texts were looked at: {labels['why_none'] or 'there are no labels.'}",
            "Name the column with --set data.label=NAME, or give rows that have labels.",
        )  # fmt: skip
    elif labels["number"] == 1:
        only = labels["smallest"]["label"]
        yield Finding(
            "error", "one_label", f"All rows have the one label '{only}'.",
            "Give rows of at least two labels, or name another column with --set data.label=NAME.",
        )  # fmt: skip
    elif labels["below_2"] and config.rare_labels == "error":
        yield Finding(
            "error", "rare_labels",
            f"{_few(labels['below_2'], 'label has', 'labels have')} a single row, such as "
            f"'{labels['smallest']['label']}'.",
            "Add rows, or let them be left out or merged with --set data.rare_labels=drop or =merge.",
        )  # fmt: skip


def _other_file(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    leak = facts["leak"]
    if leak is None:
        return
    if leak["unknown_labels"]:
        shown = ", ".join(f"'{name}'" for name in leak["unknown_labels"][:5])
        yield Finding(
            "error", "unknown_labels", f"The other file has labels that the source lacks: {shown}.",
            "Correct these labels, or add rows that carry them to the source.",
        )  # fmt: skip
    if leak["near"]:
        share = leak["near"] / max(1, leak["rows"])
        yield Finding(
            "warning" if share >= 0.005 else "note", "leak",
            f"{leak['near']:,} of {leak['rows']:,} rows of the other file ({share:.1%}) have a near twin in the "
            "source, "
            f"{leak['exact']:,} of them word for word: a score on them says little about new texts.",
            "Take them out of one of the two, or give one file and let Tagsmith split it.",
        )  # fmt: skip


def _giveaway_findings(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    giveaways = facts["giveaways"]
    if giveaways is None:
        return
    for label, share in list(giveaways["in_front"].items())[:3]:
        yield Finding(
            "warning", "label_in_front", f"{share:.0%} of the texts of '{label}' begin with the name of the label.",
            "Take the name out of the texts unless new texts will have it too; else nothing is learned but to read it.",
        )  # fmt: skip
    strong = [word for word in giveaways["words"] if word["recall"] >= 0.5]
    for word in strong[:3]:
        yield Finding(
            "warning", "giveaway",
            f"{_words(word)} stands in {word['recall']:.0%} of the texts of '{word['label']}', and "
            f"{word['precision']:.0%} "
            "of the texts that hold it have that label.",
            "Make sure that new texts will hold it too, and that it is no trace of how the rows were gathered.",
        )  # fmt: skip
    for guess in giveaways["guesses"]:
        yield from _guess_finding(guess)
    if weak := [word for word in giveaways["words"] if word["recall"] < 0.5]:
        shown = ", ".join(f"{_words(word)} -> {word['label']}" for word in weak[:4])
        yield Finding(
            "note", "telling_words", f"{_few(len(weak), 'word all but decides', 'words all but decide')} a "
            f"label: {shown}.",
            "See whether these are what the task is about, or traces of where the rows come from.",
        )  # fmt: skip


def _guess_finding(guess: Mapping[str, Any]) -> Iterator[Finding]:
    gain, error = guess["accuracy"] - guess["always"], 1 - guess["accuracy"]
    telling = error <= (1 - guess["always"]) / 2
    if telling or gain >= 0.1:
        yield Finding(
            "warning" if telling else "note", "guess",
            f"The {guess['by']} of a text alone guesses {guess['accuracy']:.0%} of the labels; always the commonest "
            f"label is right for {guess['always']:.0%}.",
            "See why the labels differ in it; if it is how they were gathered, a score shows that and no "
            "understanding.",
        )  # fmt: skip


def _words(word: Mapping[str, Any]) -> str:
    place = {"first": " at the start", "last": " at the end"}.get(word["where"], "")
    return f"'{word['word']}'{place}"


def _token_findings(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    tokens = facts["tokens"]
    if tokens is None:
        return
    if tokens["unknown"] > MOST_UNKNOWN:
        yield Finding(
            "warning", "unknown_tokens",
            f"The backbone's tokenizer does not know {tokens['unknown']:.1%} of the tokens (at most {MOST_UNKNOWN:.0%} "
            "is eligible).",
            "Choose a backbone that was trained on this language or kind of text.",
        )  # fmt: skip
    if tokens["cut"] >= 0.001:
        yield Finding(
            "warning" if tokens["cut"] >= 0.05 else "note", "long_texts",
            f"{tokens['cut']:.1%} of the texts are longer than {tokens['max_tokens']} tokens (the longest has "
            f"{tokens['longest']:,}).",
            "Read more with --set model.max_tokens=N, or choose what is read with --set model.long_texts=NAME.",
        )  # fmt: skip


def _conflict_findings(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    conflicts = facts["conflicts"]
    if conflicts["rows"]:
        share = conflicts["rows"] / facts["rows"]
        yield Finding(
            "warning" if share >= 0.01 else "note", "conflicts",
            f"{_few(conflicts['texts'], 'text carries', 'texts carry')} different labels in {conflicts['rows']:,} "
            "rows: "
            "no model can be right about all of them.",
            "Correct them, or settle them with --set data.conflicts=majority or =drop.",
        )  # fmt: skip
    if alike := facts["labels"]["alike"]:
        shown = "; ".join(" and ".join(f"'{name}'" for name in group[:3]) for group in alike[:4])
        yield Finding(
            "warning", "alike_labels", f"Names of labels that are nearly the same: {shown}.",
            "If they mean the same, merge them with data.merge_labels or in the source.",
        )  # fmt: skip


def _size_findings(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    test, labels = facts["test"], facts["labels"]
    if labels["kind"] == "none":
        return
    least = test["minimum_difference"]
    if least is None or least >= 2:
        shown = "no difference between two models" if least is None else f"no difference under {least:.1f} points"
        yield Finding(
            "warning", "small_test", f"On {test['rows']:,} test rows {shown} can ever be significant.",
            "Give more rows, or a larger --set data.test_share.",
        )  # fmt: skip
    if labels["number"] > 1 and labels["below_50"]:
        smallest = labels["smallest"]
        yield Finding(
            "note", "small_labels",
            f"{_few(labels['below_50'], 'label has', 'labels have')} fewer than 50 rows, '{smallest['label']}' has "
            f"{smallest['rows']:,}: about a fifth are measured on, too few to say much of the label.",
            "Add rows of these labels, or merge labels that may be one.",
        )  # fmt: skip
    most = labels["counts"][0]
    if labels["kind"] == "single" and labels["number"] > 1 and most["rows"] >= 0.8 * facts["rows"]:
        share = most["rows"] / facts["rows"]
        yield Finding(
            "note", "imbalance", f"{share:.1%} of the rows are '{most['label']}': always saying so is as often right.",
            "Look at macro F1 rather than accuracy; --set evaluation.metric=macro_f1 also tunes for it.",
        )  # fmt: skip


def _row_findings(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    dropped = sum(line["rows_before"] - line["rows_after"] for line in facts["history"] if line["step"] == "drop")
    share = dropped / max(1, dropped + facts["rows"])
    if share >= 0.01:
        yield Finding(
            "warning" if share >= 0.1 else "note", "dropped", f"{dropped:,} rows ({share:.1%}) have no text or "
            "no label.",
            "See whether the right columns were taken; these rows are left out.",
        )  # fmt: skip
    duplicates = facts["duplicates"]
    twins = duplicates["exact_rows"] + duplicates["near_rows"]
    if twins >= 0.01 * facts["rows"] and twins:
        yield Finding(
            "note", "duplicates",
            f"{duplicates['exact_rows']:,} rows repeat an earlier one and {duplicates['near_rows']:,} have a near "
            "twin; "
            f"the largest group has {duplicates['largest']:,} rows.",
            "Nothing to do: Tagsmith keeps each group on one side of the split, so that it cannot flatter the score.",
        )  # fmt: skip


def _cleaning_findings(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    rows, counts = max(1, facts["looked_at"]), facts["cleaning"]
    steps = [step for step in ("mojibake", "html", "email", "invisible", "nfc") if counts[step]]
    if not steps:
        return
    shown = ", ".join(f"{step} {counts[step]:,}" for step in steps)
    serious = max(counts["mojibake"], counts["html"]) >= 0.02 * rows
    yield Finding(
        "warning" if serious else "note", "cleaning",
        f"Cleaning would change texts, in rows of the {rows:,} looked at: {shown}.",
        f"Look at some of them; to switch it on: --set data.clean={','.join(in_order([*steps, *config.clean]))}",
    )  # fmt: skip


def _language_findings(facts: Facts, config: DataConfig) -> Iterator[Finding]:
    shares = {name: share for name, share in facts["languages"].items() if name != UNDETERMINED and share >= 0.05}
    if shares and set(shares) != {"English"}:
        shown = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        yield Finding(
            "note", "languages", f"The texts are in {shown} (guessed from letters and common words).",
            "Choose a backbone that knows these languages; the default one was trained on English for the most part.",
        )  # fmt: skip


_LOOKS = (
    _label_findings,
    _other_file,
    _giveaway_findings,
    _conflict_findings,
    _token_findings,
    _size_findings,
    _cleaning_findings,
    _row_findings,
    _language_findings,
)


def _few(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
