"""Parts in order of time, from a column of dates or numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from tagsmith.data.table import PARTS, Table
from tagsmith.errors import DataError, SettingError


@dataclass(frozen=True)
class Timed:
    """The part of each row `(N,)`, and in words where the cuts lie and which rows went with their group."""

    parts: np.ndarray
    told: str


def by_time(table: Table, shares: np.ndarray) -> Timed:
    """Parts in order of time; rows of one time and rows of one group stay together, a group by its latest row.

    DataError where a time cannot be read, or where times are too few to part the rows.
    """
    times_N = times_of(table)
    latest = pl.DataFrame({"group": table.groups, "time": times_N}).select(pl.col("time").max().over("group"))
    latest_N = latest.to_series().to_numpy()
    starts = _starts(latest_N, shares)
    parts_N = np.searchsorted(starts, latest_N, side="right")
    own_N = np.searchsorted(starts, times_N, side="right")
    return Timed(parts_N, _told(table, times_N, parts_N, moved=int((own_N != parts_N).sum())))


def times_of(table: Table) -> np.ndarray:
    """The time of each row `(N,)`, in seconds or in the column's own numbers; DataError names the first unreadable."""
    if "time" not in table.frame.columns:
        raise SettingError(
            "data.split=time needs to know when each row was written. Name the column of dates or numbers with "
            "--set data.time=NAME."
        )
    values = table.frame["time"].cast(pl.String).str.strip_chars()
    numbers = values.cast(pl.Float64, strict=False)
    finite = numbers.is_finite().fill_null(value=False)
    if 2 * finite.sum() > len(finite):
        return _all_read(table, numbers.set(~finite, None))
    unique = values.unique(maintain_order=True)
    seconds = pl.Series("seconds", [_seconds(value) for value in unique.to_list()], dtype=pl.Float64)
    known = pl.DataFrame({"value": unique, "seconds": seconds})
    read = pl.DataFrame({"value": values}).join(known, on="value", how="left", maintain_order="left", nulls_equal=True)[
        "seconds"
    ]
    return _all_read(table, read)


def _all_read(table: Table, times: pl.Series) -> np.ndarray:
    missing = times.is_null()
    if missing.any():
        raise _unreadable(table, int(missing.arg_max() or 0))
    return times.to_numpy()


def _seconds(value: str | None) -> float | None:
    """Seconds since 1970 of an ISO 8601 date or time; where it names no zone, as if in UTC."""
    try:
        time = datetime.fromisoformat(value or "")
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _unreadable(table: Table, at: int) -> DataError:
    value = (table.frame["time"].cast(pl.String)[at] or "").strip()
    found = f"the time '{value[:60]}'" if value else "no time"
    return DataError(
        f"Row {int(table.rows[at])} has {found}. Expected ISO dates such as 2024-05-31 or 2024-05-31T12:00:00Z in all "
        "rows, or numbers in all of them; mend the row, or take another column with --set data.time=NAME."
    )


def _starts(latest_N: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The times `(3,)` from which on rows validate, calibrate and test: where rows of one time end, near the shares."""
    times, counts = np.unique(latest_N, return_counts=True)
    if len(times) < np.count_nonzero(shares):
        raise DataError(
            f"Found {len(times)} different times when groups of duplicates are kept whole. Expected at least "
            f"{np.count_nonzero(shares)}, one for each part in turn; take --set data.split=group."
        )
    before = np.concatenate([[0], np.cumsum(counts)])
    cuts = [0]
    for part, rows in enumerate(np.cumsum(shares)[:-1] * len(latest_N)):
        nearest = int(np.abs(before - rows).argmin())
        lowest, highest = cuts[-1] + 1, len(times) - int(np.count_nonzero(shares[part + 1 :]))
        cuts.append(min(max(nearest, lowest), highest) if shares[part] > 0 else cuts[-1])
    return np.append(times, math.inf)[cuts[1:]]


def _told(table: Table, times_N: np.ndarray, parts_N: np.ndarray, *, moved: int) -> str:
    values = table.frame["time"].cast(pl.String).str.strip_chars()
    words = []
    for part, name in enumerate(PARTS):
        rows = np.flatnonzero(parts_N == part)
        if len(rows):
            first, last = rows[times_N[rows].argmin()], rows[times_N[rows].argmax()]
            words.append(f"{name} from {values[int(first)]} to {values[int(last)]}")
    overtaken = int((times_N[parts_N == 3] < times_N[parts_N == 0].max()).sum())
    return (
        f"{', '.join(words)}; {moved} rows went to a later part with their group, "
        f"{overtaken} test rows are older than the newest training row"
    )
