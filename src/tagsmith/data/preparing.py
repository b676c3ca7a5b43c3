"""Stage 1 in one function: a table becomes splits, with counts of all that could mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from tagsmith.config import DataConfig
from tagsmith.data.balancing import balance, priors_of
from tagsmith.data.conflicts import settle_conflicts
from tagsmith.data.duplicates import Grouped, Leak, group_duplicates, leak
from tagsmith.data.earlier import Earlier
from tagsmith.data.limiting import limited
from tagsmith.data.near_twins import Sketched, sketched
from tagsmith.data.rare import find_rare, label_counts
from tagsmith.data.splitting import (
    CALIBRATION_ROWS,
    book_split,
    fold,
    require_labels,
    second_half,
    split_by,
    with_known_labels,
)
from tagsmith.data.stratifying import membership
from tagsmith.data.table import PARTS, SLICE, Change, Splits, Table
from tagsmith.errors import DataError, SettingError
from tagsmith.events import Event, Listener, silent


@dataclass(frozen=True)
class Prepared:
    """Splits ready to learn from, and what was found on the way.

    `splits.train` is balanced already, as asked. `true_priors` are the labels' shares before any balancing. `leak`
    counts test rows with a twin in the other parts (book split and given parts: in train): `exact`, `near`,
    `threshold`; `leaked (N,)` marks those with a near twin, in the order of the test rows. `duplicates` has
    `exact_rows near_rows conflicting_rows conflicting_texts largest lowest threshold`. `remembered` is what a later run
    must know to keep the parts. `notes` are sentences for the reader of the report. `whole_train` are all training rows
    where the LLM learns from a sample of them, None where it learns from all.
    """

    splits: Splits[Table]
    class_weights: Mapping[str, float] | None
    true_priors: Mapping[str, float]
    leak: Mapping[str, float]
    leaked: np.ndarray
    duplicates: Mapping[str, float]
    history: tuple[Change, ...]
    remembered: Earlier
    notes: tuple[str, ...] = ()
    whole_train: Table | None = None


def limit_training(prepared: Prepared, most: int | None, *, seed: int) -> Prepared:
    """At most so many training rows for the LLM, of each label its share; all of them stay at hand for TF-IDF."""
    train = prepared.splits.train
    if most is None or most >= len(train):
        return prepared
    few = limited(train, most, seed=seed)
    if len(few) == len(train):  # of each label there is one row, and none is left out
        return prepared
    note = f"The LLM learns from {len(few)} of {len(train)} training rows (tuning.most_rows); TF-IDF from all of them."
    return replace(
        prepared,
        splits=replace(prepared.splits, train=few),
        history=(*prepared.history, few.history[-1]),
        notes=(*prepared.notes, note),
        whole_train=train,
    )


def prepare(
    table: Table, config: DataConfig, *, seed: int, listen: Listener = silent, sketched: Sketched = sketched
) -> Prepared:
    """Settle labels, group duplicates, split, balance the training rows, and count what leaks.

    `sketched` is that of `group_duplicates`.

    DataError and SettingError as in each of these steps.
    """
    _require_agreement(config)
    if config.split_column is not None:
        parts = _by_column(table, config.split_column)
        others = {name: parts.get(name) for name in PARTS[1:]}
        return prepare_given(parts["train"], **others, config=config, seed=seed, listen=listen, sketched=sketched)
    table = settle_conflicts(table, how=config.conflicts)
    table = find_rare(table, how=config.rare_labels, below=config.rare_below, name=config.rare_name).settle(table)
    require_labels(table, fewest=_fewest(config))
    if config.split == "book":
        return _prepare_as_the_book(table, config, seed=seed, listen=listen, sketched=sketched)
    before = Earlier.read(config.earlier) if config.earlier is not None else None
    grouped = _grouped(table, config, listen, sketched)
    splits = _split(grouped.table, config, seed=seed, earlier=before)
    found = _leak_between(splits, grouped.threshold, search=before is not None)
    return _finished(splits, grouped, found, config, seed=seed, listen=listen, before=before)


def _split(table: Table, config: DataConfig, *, seed: int, earlier: Earlier | None = None) -> Splits[Table]:
    if config.split == "kfold":
        splits = fold(table, config.folds, config.fold, seed=seed, validation_share=config.validation_share)
        return with_known_labels(splits)
    assert config.split != "book", "the book's split has a path of its own"
    shares = {"validation_share": config.validation_share, "test_share": config.test_share}
    return split_by(config.split, table, **shares, seed=seed, earlier=earlier)


def prepare_given(
    train: Table,
    validation: Table | None,
    test: Table | None,
    config: DataConfig,
    *,
    seed: int,
    calibration: Table | None = None,
    listen: Listener = silent,
    sketched: Sketched = sketched,
) -> Prepared:
    """As `prepare`, with rows of the user's own for some parts; validation or test rows not given are split off train.

    Given parts are taken as they are: duplicates between them are counted, not moved. Validation rows of one's own are
    halved for calibration where each half has at least 200 rows and none were given. DataError for labels that training
    does not hold.
    """
    if validation is None and test is None and calibration is None:
        return prepare(train, config, seed=seed, listen=listen, sketched=sketched)
    _require_agreement(config)
    _require_own_parts(config)
    train = settle_conflicts(train, how=config.conflicts)
    rare = find_rare(train, how=config.rare_labels, below=config.rare_below, name=config.rare_name)
    given = {"train": train, "validation": validation, "calibration": calibration, "test": test}
    present = {name: rare.settle(part) for name, part in given.items() if part is not None}
    require_labels(present["train"], fewest=_fewest(config))
    for name, part in present.items():
        _require_known(part, present["train"], name=name)
    grouped, regrouped = _grouped_together(list(present.values()), config, listen, sketched)
    parts = dict(zip(present, regrouped, strict=True))
    splits = _completed(parts, config, seed=seed)
    found = _leak_into_test(splits, grouped, near=config.near_duplicates)
    return _finished(splits, grouped, found, config, seed=seed, listen=listen, notes=_leak_notes(found, splits))


def _prepare_as_the_book(
    table: Table, config: DataConfig, *, seed: int, listen: Listener, sketched: Sketched
) -> Prepared:
    defaults = DataConfig()
    for name in ("validation_share", "test_share"):
        if getattr(config, name) != getattr(defaults, name):
            raise SettingError(
                f"The book's split is fixed at 70/10/20; found data.{name} = {getattr(config, name):g}. "
                f"Leave out data.{name}, or take --set data.split=group."
            )
    priors = priors_of(table)
    grouped = _grouped(table, config, listen, sketched)
    splits = book_split(grouped.table, seed=seed)
    found = _leak_into_test(splits, grouped, near=config.near_duplicates)
    notes = (*_leak_notes(found, splits), *_balance_notes(priors))
    prepared = _finished(splits, grouped, found, config, seed=seed, listen=listen, notes=notes)
    return replace(prepared, true_priors=_renamed(priors, splits))


def _renamed(priors: Mapping[str, float], splits: Splits[Table]) -> dict[str, float]:
    """The source's priors under the names that the labels have in the splits (`0` and `1` for ham and spam)."""
    if set(priors) <= set(splits.train.labels):
        return dict(priors)
    return {"0": priors["ham"], "1": priors["spam"]}


def _grouped(table: Table, config: DataConfig, listen: Listener, sketched: Sketched) -> Grouped:
    listen(Event("data", "progress", values={"doing": "group duplicates", "rows": len(table)}))
    return group_duplicates(table, near=config.near_duplicates, sketched=sketched)


def _finished(
    splits: Splits[Table],
    grouped: Grouped,
    found: Leak,
    config: DataConfig,
    *,
    seed: int,
    listen: Listener,
    before: Earlier | None = None,
    notes: Sequence[str] = (),
) -> Prepared:
    remembered = Earlier.of(splits, before)
    balanced = balance(splits.train, how=config.balance, seed=seed)
    splits = replace(splits, train=balanced.table)
    notes = [*notes, *_template_notes(grouped)]
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
        remembered=remembered,
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
        "not_compared": grouped.not_compared,
    }


def _leak_between(splits: Splits[Table], threshold: float, *, search: bool) -> Leak:
    """Test rows with a twin in any other part: without `search` none, for whole groups were split."""
    if not search:
        elsewhere = np.concatenate([part.groups for name, part in splits.items() if name != "test"])
        assert not np.isin(splits.test.groups, elsewhere).any(), "groups are split as wholes"
        none = np.zeros(len(splits.test), dtype=bool)
        return Leak(none, none, threshold)
    seen = pl.concat([part.frame["text"] for name, part in splits.items() if name != "test"])
    return leak(seen, splits.test.frame["text"], near=threshold)


def _leak_into_test(splits: Splits[Table], grouped: Grouped, *, near: float) -> Leak:
    """Test rows with a twin in train; twins share a group, so that other groups need no search."""
    train, test = splits.train, splits.test
    if grouped.threshold > near:  # groups were torn apart there, and no longer hold all twins
        return leak(train.frame["text"], test.frame["text"], near=near)
    both = np.intersect1d(train.groups, test.groups)
    of_test = np.flatnonzero(np.isin(test.groups, both))
    of_train = np.flatnonzero(np.isin(train.groups, both))
    found = leak(train.frame["text"][of_train], test.frame["text"][of_test], near=near)
    exact, close = np.zeros((2, len(test)), dtype=bool)
    exact[of_test], close[of_test] = found.exact, found.near
    return Leak(exact, close, near)


# --- settings that must agree ---------------------------------------------------------------------------------------


def _require_agreement(config: DataConfig) -> None:
    """SettingError for settings that contradict each other, or that the chosen split would ignore."""
    changed = {name for name, default in DataConfig() if getattr(config, name) != default}
    for name, (key, values) in _ONLY_WITH.items():
        if name in changed and getattr(config, key) not in values:
            raise SettingError(
                f"data.{name} = {getattr(config, name)} belongs to data.{key} = {' or '.join(values)}; found "
                f"data.{key} = {getattr(config, key)}. Set both, or leave out data.{name}."
            )
    if config.split == "time" and config.time is None:
        raise SettingError(
            "data.split=time needs to know when each row was written. Name the column of dates or numbers with "
            "--set data.time=NAME."
        )
    if config.fold > config.folds:
        raise SettingError(f"data.fold is {config.fold}, of {config.folds} folds. Expected 1 to {config.folds}.")
    if config.split_column is not None and config.split != "group":
        raise SettingError(
            f"The column '{config.split_column}' (data.split_column) says where each row belongs; found data.split = "
            f"{config.split} too. Leave out one of them."
        )


_ONLY_WITH = {
    "time": ("split", ("time",)),
    "folds": ("split", ("kfold",)),
    "fold": ("split", ("kfold",)),
    "test_share": ("split", ("group", "hash", "time", "book")),
    "earlier": ("split", ("group", "hash", "time")),
    "rare_below": ("rare_labels", ("error", "drop", "merge")),
    "rare_name": ("rare_labels", ("merge",)),
}


def _require_own_parts(config: DataConfig) -> None:
    if config.split == "book":
        raise SettingError(
            "The book's split makes its own validation and test rows; found files for them. "
            "Leave out --validation and --test, or take --set data.split=group."
        )
    if config.split in ("kfold", "time") or config.earlier is not None:
        what = "data.earlier" if config.earlier is not None else f"data.split = {config.split}"
        raise SettingError(
            f"{what} decides where each row belongs; found rows of your own for validation or test. Leave out one of "
            "them."
        )


def _fewest(config: DataConfig) -> int:
    return config.rare_below if config.rare_labels == "error" else 1


# --- given parts ----------------------------------------------------------------------------------------------------


def _by_column(table: Table, column: str) -> dict[str, Table]:
    """The rows of each part that the column `part` names; DataError for a value that names none."""
    if "part" not in table.frame.columns:
        raise SettingError(
            f"data.split_column = '{column}' names a column of a file; found a table that was handed over without it. "
            "Leave it out, or hand over the parts as validation and test."
        )
    names = table.frame["part"].str.strip_chars().str.to_lowercase()
    known = names.replace_strict(_PART_NAMES, default=None, return_dtype=pl.String)
    if known.is_null().any():
        row = int(table.rows[int(known.is_null().arg_max() or 0)])
        other = sorted(names.filter(known.is_null()).unique().fill_null("(empty)").to_list())
        raise DataError(
            f"The column '{column}' holds {other[:5]}, first in row {row}. Expected {', '.join(_PART_NAMES)} in each "
            "row; correct these cells, or leave out data.split_column."
        )
    rows = {name: np.flatnonzero((known == name).to_numpy()) for name in PARTS}
    if not len(rows["train"]) or not (len(rows["test"]) or len(rows["validation"]) or len(rows["calibration"])):
        raise DataError(
            f"All rows with a known part in the column '{column}' are of '{known[0]}'. Expected training rows and "
            "rows of another part; leave out data.split_column to have the rows split."
        )
    counts = ", ".join(f"{name} {len(some)}" for name, some in rows.items())
    table = table.changed(table.frame, step="split", reason=f"{counts} rows, as the column '{column}' says")
    return {name: table.take(some) for name, some in rows.items() if len(some)}


_PART_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "calibration": "calibration",
    "test": "test",
}


def _require_known(part: Table, train: Table, *, name: str) -> None:
    known = label_counts(train)["label"].to_list()
    unknown = sorted(set(label_counts(part)["label"]) - set(known))
    if unknown:
        raise DataError(
            f"Labels of the {name} rows not seen in training: {unknown[:5]}; known: {known[:20]}. "
            "Correct these labels, or add training rows that carry them."
        )


def _grouped_together(
    parts: Sequence[Table], config: DataConfig, listen: Listener, sketched: Sketched
) -> tuple[Grouped, list[Table]]:
    """The parts with groups that hold across them, and what was found in all of them together."""
    frames, offset = [], 0
    for part in parts:
        group = (pl.col("group") + offset).cast(pl.UInt32)
        frames.append(part.frame.select("row", "text", "label", group, pl.col(f"^{SLICE}.*$")))
        offset += int(part.groups.max(initial=0)) + 1
    history = tuple(dict.fromkeys(change for part in parts for change in part.history))
    grouped = _grouped(Table(pl.concat(frames, how="diagonal"), history), config, listen, sketched)
    ends = np.cumsum([len(part) for part in parts])
    return grouped, [grouped.table.take(np.arange(end - len(part), end)) for part, end in zip(parts, ends, strict=True)]


def _completed(parts: Mapping[str, Table], config: DataConfig, *, seed: int) -> Splits[Table]:
    """Four parts: those given, and the missing ones split off train."""
    train, nothing = parts["train"], parts["train"].take(_NONE)
    validation_share = 0.0 if "validation" in parts else config.validation_share
    test_share = 0.0 if "test" in parts else config.test_share
    splits = Splits(train, nothing, nothing, nothing)
    if validation_share or test_share:
        assert config.split in ("group", "hash"), "the other kinds take no given parts"
        splits = split_by(config.split, train, validation_share=validation_share, test_share=test_share, seed=seed)
    if "validation" in parts and "calibration" not in parts:
        kept, calibration = _halved(parts["validation"], seed=seed)
        parts = {**parts, "validation": kept, "calibration": calibration}
    return replace(splits, **{**parts, "train": splits.train})


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
    members = membership(splits.test)
    rates_C = members.counts(found.near) / members.counts(np.ones(len(splits.test), dtype=bool))
    shares = dict(zip(members.names, rates_C.tolist(), strict=True))
    worst = max(shares, key=lambda label: shares[label])
    note = (
        f"{found.near_rows} of {len(splits.test)} test rows ({found.near_rows / len(splits.test):.1%}) have a near "
        f"twin in the training rows, {found.exact_rows} of them word for word; among test rows of '{worst}' it is "
        f"{shares[worst]:.0%}. The score on such rows says little about new texts."
    )
    return [note]


def _template_notes(grouped: Grouped) -> list[str]:
    if not grouped.not_compared:
        return []
    note = (
        f"{grouped.not_compared:,} rows follow templates with more look-alikes than are compared one by one: near "
        "twins among them may stand in different parts, and flatter the score. Name a column whose equal values belong "
        "together with data.group."
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
