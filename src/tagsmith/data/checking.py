"""What a table holds and what could mislead in it, before any training: facts, and findings with the worst first."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from tagsmith.config import DataConfig
from tagsmith.data.column_cleaning import would_change
from tagsmith.data.conflicts import conflicting_rows, label_keys
from tagsmith.data.duplicates import Grouped, leak
from tagsmith.data.findings import Finding, find
from tagsmith.data.folding import distinct, fold_all
from tagsmith.data.giveaways import find_words, guesses, labels_in_front
from tagsmith.data.languages import WORD, languages_of, scripts_of, words_of
from tagsmith.data.power import USUAL_DISCORDANCE, detectable_difference, minimum_difference
from tagsmith.data.table import Table
from tagsmith.data.token_lengths import TokenLengths, spaced

Plain = dict[str, Any]
MOST_ROWS, MOST_CHARACTERS = 50_000, 10_000_000
"""Words, languages and what cleaning would change are counted on evenly spaced rows, at most so many."""
_MOST_LABELS, _MOST_EXAMPLES, _LONGEST_EXAMPLE = 1000, 10, 120


@dataclass(frozen=True)
class Check:
    """What was found in a table.

    `facts` are plain data with the keys `rows looked_at history labels lengths tokens duplicates conflicts leak
    giveaways scripts languages cleaning test`; one is None where there was nothing to look at.
    """

    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]

    def as_dict(self) -> Plain:
        """Facts and findings as plain data; examples of texts are cut short."""
        return {**self.facts, "findings": [asdict(finding) for finding in self.findings]}

    def compact(self) -> Plain:
        """The shape of `data.check` in report.json: without the text of any row."""
        kept = {
            key: self.facts[key] for key in ("looked_at", "lengths", "giveaways", "scripts", "languages", "cleaning")
        }
        conflicts = {key: value for key, value in self.facts["conflicts"].items() if key != "examples"}
        return kept | {"conflicts": conflicts, "findings": [asdict(finding) for finding in self.findings]}


def check(
    grouped: Grouped,
    config: DataConfig,
    *,
    against: Table | None = None,
    tokens: TokenLengths | None = None,
    test_rows: int | None = None,
    no_labels: str = "",
) -> Check:
    """Look at a table whose duplicates are grouped, and at the rows of `against`, which are to be measured on.

    `tokens` are those of the backbone that was asked for, None where its tokenizer is not at hand. `test_rows` is how
    many rows are measured on: those of `against`, or else the share that would be split off. `no_labels` says why no
    labels were found.
    """
    table = grouped.table
    sampled = replace(table, frame=_sample(table.frame))
    texts = sampled.frame["text"]
    words = words_of(texts)
    if test_rows is None:
        test_rows = len(against) if against is not None else round(config.test_share * len(table))
    facts = {
        "rows": len(table),
        "looked_at": len(sampled),
        "history": [{key: value for key, value in vars(line).items() if key != "rows"} for line in table.history],
        "labels": _labels(table) | {"why_none": no_labels},
        "lengths": _lengths(table.frame["text"], texts),
        "tokens": None if tokens is None else tokens.as_dict(),
        "duplicates": _duplicates(grouped),
        "conflicts": _conflicts(table),
        "leak": None if against is None else _leak(table, against, near=grouped.threshold),
        "giveaways": _giveaways(sampled, words),
        "scripts": scripts_of(texts),
        "languages": languages_of(texts, words),
        "cleaning": would_change(texts),
        "test": _test(test_rows),
    }
    return Check(facts, find(facts, config))


def _sample(frame: pl.DataFrame) -> pl.DataFrame:
    kept = spaced(frame["text"], most_rows=MOST_ROWS, most_characters=MOST_CHARACTERS)
    return frame.gather_every(-(-frame.height // max(1, len(kept)))) if len(kept) < frame.height else frame


# --- sections -------------------------------------------------------------------------------------------------------


def _labels(table: Table) -> Plain:
    """Names with their rows, the most frequent first; shares are of rows, so those of label sets may exceed 1."""
    label = table.frame["label"]
    counts = (label.explode(empty_as_null=True) if table.multi_label else label).drop_nulls().value_counts()
    counts = counts.sort("count", "label", descending=[True, False])
    names = counts["label"].to_list()
    return {
        "kind": "none" if not names else "multi" if table.multi_label else "single",
        "number": len(names),
        "counts": [{"label": name, "rows": rows} for name, rows in counts.head(_MOST_LABELS).iter_rows()],
        "smallest": None if not names else {"label": names[-1], "rows": counts["count"][-1]},
        "below_2": int((counts["count"] < 2).sum()),
        "below_50": int((counts["count"] < 50).sum()),
        "without": int((label.list.len() == 0).sum()) if table.multi_label else 0,
        "alike": alike(names),
    }


def alike(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that differ by case, signs or one letter only, as a slip of the pen would have it."""
    keys: dict[str, list[str]] = {}
    for name in names:
        key = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()) or name
        keys.setdefault(key, []).append(name)
    same = [sorted(group) for group in keys.values() if len(group) > 1]
    return sorted(same + ([] if len(names) > _MOST_LABELS else _one_letter_apart(keys)))


def _one_letter_apart(keys: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Pairs of long names of which one has a letter more, or another one; never a digit: `class 1` is not `class 2`."""
    without: dict[str, set[str]] = {}
    for key in (key for key in keys if len(key) >= 6):
        for i, letter in enumerate(key):
            if not letter.isdigit():
                without.setdefault(key[:i] + key[i + 1 :], set()).add(key)
        without.setdefault(key, set()).add(key)
    pairs = {pair for group in without.values() for pair in itertools.combinations(sorted(group), 2)}
    return [[keys[one][0], keys[other][0]] for one, other in sorted(pairs) if _slip(one, other)]


def _slip(one: str, other: str) -> bool:
    """Whether one letter was left out, added, replaced or swapped with its neighbour."""
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    swapped = a[:2] == b[1::-1] and a[2:] == b[2:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or swapped


def _lengths(texts: pl.Series, sampled: pl.Series) -> Plain:
    return {"characters": _spread(texts.str.len_chars()), "words": _spread(sampled.str.count_matches(WORD))}


def _spread(values: pl.Series) -> Plain:
    numbers = values.to_numpy()
    if not len(numbers):
        return {"least": 0, "median": 0, "p95": 0, "most": 0}
    median, p95 = np.quantile(numbers, [0.5, 0.95])
    return {"least": int(numbers.min()), "median": float(median), "p95": float(p95), "most": int(numbers.max())}


def _duplicates(grouped: Grouped) -> Plain:
    counts = {key: value for key, value in vars(grouped).items() if key != "table" and not key.startswith("conflict")}
    table = grouped.table
    sizes = table.frame["group"].value_counts(sort=True)
    if grouped.largest < 2 or not sizes.height:
        return counts | {"examples": []}
    members = table.frame.filter(pl.col("group") == sizes["group"][0])["text"].unique(maintain_order=True).head(3)
    return counts | {"examples": [_short(text) for text in members]}


def _conflicts(table: Table) -> Plain:
    """Texts that carry different labels, those of the most rows first."""
    text_ids = distinct(fold_all(table.frame["text"]))[1]
    rows = conflicting_rows(table, text_ids)
    found = table.take(rows)
    frame = found.frame.select("row", "text", label_keys(found).alias("key"), pl.Series("id", text_ids[rows]))
    groups = frame.group_by("id", maintain_order=True).agg("row", "text", "key")
    first = groups.sort(pl.col("row").list.len(), descending=True, maintain_order=True).head(_MOST_EXAMPLES)
    examples = [
        {
            "text": _short(example["text"][0]),
            "rows": example["row"][:_MOST_EXAMPLES],
            "labels": {_set(key): example["key"].count(key) for key in sorted({*example["key"]} - {None})},
        }
        for example in first.iter_rows(named=True)
    ]
    return {"rows": len(rows), "texts": groups.height, "examples": examples}


def _set(key: str) -> str:
    return ", ".join(key.split("\0")) or "-"


def _leak(table: Table, against: Table, *, near: float) -> Plain:
    """Rows of `against` that stand in the table, and labels that do not."""
    found = leak(table.frame["text"], against.frame["text"], near=near)
    known = {name for names in table.label_sets for name in names}
    names = {name for names in against.label_sets for name in names if name is not None}
    texts = against.frame["text"]
    return {
        "rows": len(against),
        "exact": found.exact_rows,
        "near": found.near_rows,
        "threshold": found.threshold,
        "unknown_labels": sorted(names - known)[:_MOST_LABELS],
        "examples": [
            {"row": int(against.rows[i]), "text": _short(texts[int(i)]), "exact": bool(found.exact[i])}
            for i in np.flatnonzero(found.near)[:_MOST_EXAMPLES]
        ],
    }


def _giveaways(table: Table, words: pl.DataFrame) -> Plain | None:
    frame = table.frame
    if frame["label"].null_count() == frame.height:
        return None
    found = {"words": [asdict(word) for word in find_words(frame["text"], words, frame["label"], table.groups)]}
    if table.multi_label:
        return found | {"guesses": [], "in_front": {}}
    return found | {
        "guesses": [asdict(guess) for guess in guesses(frame["text"], frame["label"])],
        "in_front": labels_in_front(frame["text"], frame["label"]),
    }


def _test(rows: int) -> Plain:
    return {
        "rows": rows,
        "minimum_difference": minimum_difference(np.arange(rows)),
        "detectable_difference": detectable_difference(rows, USUAL_DISCORDANCE),
        "discordance": USUAL_DISCORDANCE,
    }


def _short(text: str) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= _LONGEST_EXAMPLE else folded[:_LONGEST_EXAMPLE].rstrip() + " …"
