"""Stage 1 in one function: a table becomes splits, with counts of all that could mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from tagsmith.config import DataConfig
from tagsmith.data.balancing import balance, priors_of
from tagsmith.data.duplicates import Grouped, Leak, group_duplicates, leak
from tagsmith.data.splitting import CALIBRATION_ROWS, book_split, require_labels, second_half, split
from tagsmith.data.table import Change, Splits, Table
from tagsmith.errors import DataError, SettingError
from tagsmith.events import Event, Listener, silent


@dataclass(frozen=True)
class Prepared:
    """Splits ready to learn from, and what was found on the way.

    `splits.train` is balanced already, as asked. `true_priors` are the labels' shares before any balancing. `leak`
    counts test rows with a twin in the other parts (book split and given files: in train): `exact`, `near`,
    `threshold`; `leaked (N,)` marks those with a near twin, in the order of the test rows. `duplicates` has
    `exact_rows near_rows conflicting_rows conflicting_texts largest lowest threshold`. `notes` are sentences for the
    reader of the report.
    """

    splits: Splits[Table]
    class_weights: Mapping[str, float] | None
    true_priors: Mapping[str, float]
    leak: Mapping[str, float]
    leaked: np.ndarray
    duplicates: Mapping[str, float]
    history: tuple[Change, ...]
    notes: tuple[str, ...] = ()


def prepare(table: Table, config: DataConfig, *, seed: int, listen: Listener = silent) -> Prepared:
    """Group duplicates, split, balance the training rows, and count what leaks; DataError and SettingError as there."""
    require_labels(table)
    if config.split == "book":
        return _prepare_as_the_book(table, config, seed=seed, listen=listen)
    grouped = _grouped(table, config, listen)
    splits = split(grouped.table, validation_share=config.validation_share, test_share=config.test_share, seed=seed)
    seen = pl.concat([part.frame["text"] for name, part in splits.items() if name != "test"])
    found = leak(seen, splits.test.frame["text"], near=grouped.threshold)
    return _finished(splits, grouped, found, config, seed=seed, listen=listen)


def prepare_given(
    train: Table,
    validation: Table | None,
    test: Table | None,
    config: DataConfig,
    *,
    seed: int,
    listen: Listener = silent,
) -> Prepared:
    """As `prepare`, with files of the user's own for validation or test; a part that is not given is split off train.

    Given parts are taken as they are: duplicates between them are counted, not moved. Validation rows of one's own are
    halved for calibration where each half has at least 200 rows. DataError for labels that training does not hold.
    """
    if validation is None and test is None:
        return prepare(train, config, seed=seed, listen=listen)
    if config.split == "book":
        raise SettingError(
            "The book's split makes its own validation and test rows; found files for them. "
            "Leave out --validation and --test, or take --set data.split=group."
        )
    require_labels(train)
    for name, part in (("validation", validation), ("test", test)):
        _require_known(part, train, name=name)
    given = {"train": train, "validation": validation, "test": test}
    present = {name: part for name, part in given.items() if part is not None}
    grouped, regrouped = _grouped_together(list(present.values()), config, listen)
    parts = dict(zip(present, regrouped, strict=True))
    splits = _completed(parts["train"], parts.get("validation"), parts.get("test"), config, seed=seed)
    found = leak(splits.train.frame["text"], splits.test.frame["text"], near=config.near_duplicates)
    return _finished(splits, grouped, found, config, seed=seed, listen=listen, notes=_leak_notes(found, splits))


def _prepare_as_the_book(table: Table, config: DataConfig, *, seed: int, listen: Listener) -> Prepared:
    defaults = DataConfig()
    for name in ("validation_share", "test_share"):
        if getattr(config, name) != getattr(defaults, name):
            raise SettingError(
                f"The book's split is fixed at 70/10/20; found data.{name} = {getattr(config, name):g}. "
                f"Leave out data.{name}, or take --set data.split=group."
            )
    priors = priors_of(table)
    grouped = _grouped(table, config, listen)
    splits = book_split(grouped.table, seed=seed)
    found = leak(splits.train.frame["text"], splits.test.frame["text"], near=config.near_duplicates)
    notes = (*_leak_notes(found, splits), *_balance_notes(priors))
    prepared = _finished(splits, grouped, found, config, seed=seed, listen=listen, notes=notes)
    return replace(prepared, true_priors=_renamed(priors, splits))


def _renamed(priors: Mapping[str, float], splits: Splits[Table]) -> dict[str, float]:
    """The source's priors under the names that the labels have in the splits (`0` and `1` for ham and spam)."""
    if set(priors) <= set(splits.train.labels):
        return dict(priors)
    return {"0": priors["ham"], "1": priors["spam"]}


def _grouped(table: Table, config: DataConfig, listen: Listener) -> Grouped:
    listen(Event("data", "progress", values={"doing": "group duplicates", "rows": len(table)}))
    return group_duplicates(table, near=config.near_duplicates)


def _finished(
    splits: Splits[Table],
    grouped: Grouped,
    found: Leak,
    config: DataConfig,
    *,
    seed: int,
    listen: Listener,
    notes: Sequence[str] = (),
) -> Prepared:
    balanced = balance(splits.train, how=config.balance, seed=seed)
    splits = replace(splits, train=balanced.table)
    for note in notes:
        listen(Event("data", "note", values={"text": note}))
    listen(Event("data", "done", values={name: len(part) for name, part in splits.items()}))
    return Prepared(
        splits=splits,
        class_weights=balanced.class_weights,
        true_priors=balanced.true_priors,
        leak={"exact": found.exact_rows, "near": found.near_rows, "threshold": found.threshold},
        leaked=found.near,
        duplicates=_counts(grouped),
        history=_history(splits),
        notes=tuple(notes),
    )


def _counts(grouped: Grouped) -> dict[str, float]:
    return {
        "exact_rows": grouped.exact_rows,
        "near_rows": grouped.near_rows,
        "conflicting_rows": grouped.conflicting_rows,
        "conflicting_texts": grouped.conflicting_texts,
        "largest": grouped.largest,
        "lowest": grouped.lowest,
        "threshold": grouped.threshold,
    }


# --- given parts ----------------------------------------------------------------------------------------------------


def _require_known(part: Table | None, train: Table, *, name: str) -> None:
    if part is None:
        return
    unknown = sorted(set(part.labels) - set(train.labels))
    if unknown:
        raise DataError(
            f"Labels of the {name} rows not seen in training: {unknown[:5]}; known: {sorted(set(train.labels))[:20]}. "
            "Correct these labels, or add training rows that carry them."
        )


def _grouped_together(parts: Sequence[Table], config: DataConfig, listen: Listener) -> tuple[Grouped, list[Table]]:
    """The parts with groups that hold across them, and what was found in all of them together."""
    frames, offset = [], 0
    for part in parts:
        frames.append(part.frame.with_columns((pl.col("group") + offset).cast(pl.UInt32)))
        offset += int(part.groups.max(initial=0)) + 1
    history = tuple(change for part in parts for change in part.history)
    grouped = _grouped(Table(pl.concat(frames), history), config, listen)
    ends = np.cumsum([len(part) for part in parts])
    return grouped, [grouped.table.take(np.arange(end - len(part), end)) for part, end in zip(parts, ends, strict=True)]


def _completed(
    train: Table, validation: Table | None, test: Table | None, config: DataConfig, *, seed: int
) -> Splits[Table]:
    """Four parts: those given, and the missing ones split off train."""
    shares = {
        "validation_share": 0.0 if validation is not None else config.validation_share,
        "test_share": 0.0 if test is not None else config.test_share,
    }
    made = split(train, **shares, seed=seed) if any(shares.values()) else None
    splits = made or Splits(train, train.take(_NONE), train.take(_NONE), train.take(_NONE))
    if test is not None:
        splits = replace(splits, test=test)
    if validation is not None:
        kept, calibration = _halved(validation, seed=seed)
        splits = replace(splits, validation=kept, calibration=calibration)
    return splits


_NONE = np.empty(0, dtype=np.int64)


def _halved(validation: Table, *, seed: int) -> tuple[Table, Table]:
    """Validation and calibration rows, the latter only where there are at least 200 for each."""
    if len(validation) < 2 * CALIBRATION_ROWS:
        reason = f"no calibration rows: half of the {len(validation)} validation rows is fewer than {CALIBRATION_ROWS}"
        return validation.changed(validation.frame, step="calibration", reason=reason), validation.take(_NONE)
    second = second_half(validation, seed=seed)
    reason = f"{int(second.sum())} of the {len(validation)} validation rows set apart for calibration, groups whole"
    told = validation.changed(validation.frame, step="calibration", reason=reason)
    return told.take(np.flatnonzero(~second)), told.take(np.flatnonzero(second))


def _history(splits: Splits[Table]) -> tuple[Change, ...]:
    """The history of all parts, each line once."""
    return tuple(dict.fromkeys(change for _, part in splits.items() for change in part.history))


# --- notes ----------------------------------------------------------------------------------------------------------


def _leak_notes(found: Leak, splits: Splits[Table]) -> list[str]:
    if not found.near_rows:
        return []
    labels = np.asarray(splits.test.labels)
    shares = {label: float(found.near[labels == label].mean()) for label in sorted(set(labels.tolist()))}
    worst = max(shares, key=lambda label: shares[label])
    note = (
        f"{found.near_rows} of {len(splits.test)} test rows ({found.near_rows / len(splits.test):.1%}) have a near "
        f"twin in the training rows, {found.exact_rows} of them word for word; among test rows of '{worst}' it is "
        f"{shares[worst]:.0%}. The score on such rows says little about new texts."
    )
    return [note]


def _balance_notes(priors: Mapping[str, float]) -> list[str]:
    label, share = min(priors.items(), key=lambda item: item[1])
    note = (
        f"The rows were balanced before the split: the test rows are half '{label}', the source has {share:.1%}, so on "
        f"real traffic the precision of '{label}' will be lower than measured here. --set data.split=group splits the "
        "rows as they are and keeps near twins together."
    )
    return [note]
