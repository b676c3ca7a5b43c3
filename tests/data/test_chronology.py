import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.chronology import by_time, times_of
from tagsmith.data.table import Table
from tagsmith.errors import DataError, SettingError

SHARES = np.array([0.7, 0.1, 0.0, 0.2])


def table_of(times, groups=None):
    table = Table.of([f"text {i}" for i in range(len(times))], ["a"] * len(times), groups=groups)
    return Table(table.frame.with_columns(pl.Series("time", [None if t is None else str(t) for t in times])))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 15)), min_size=20, max_size=60))
def test_parts_follow_each_other_but_for_rows_that_went_with_their_group(rows):
    times, groups = (np.array(column) for column in zip(*rows, strict=True))
    latest = np.array([times[groups == group].max() for group in groups])
    if len(set(latest.tolist())) < 3:
        return
    parts = by_time(table_of(times, groups.tolist()), SHARES).parts
    for earlier, later in ((0, 1), (1, 3)):
        assert latest[parts == earlier].max() < latest[parts == later].min()
    assert times[parts == 0].max() < latest[parts == 3].min()
    for group in set(groups.tolist()):
        assert len(set(parts[groups == group].tolist())) == 1


@given(st.permutations(range(100)))
def test_without_ties_the_shares_are_exact(times):
    parts = by_time(table_of(times), SHARES).parts
    assert np.bincount(parts, minlength=4).tolist() == [70, 10, 0, 20]
    assert sorted(np.array(times)[parts == 3].tolist()) == list(range(80, 100))


def test_ties_stay_together():
    parts = by_time(table_of([1] * 60 + [2] * 20 + [3] * 5 + [4] * 15), SHARES).parts
    assert parts.tolist() == [0] * 60 + [1] * 20 + [3] * 20


def test_moved_rows_and_overtaken_test_rows_are_told():
    groups = list(range(10))
    groups[0] = groups[9]
    told = by_time(table_of(range(10), groups), SHARES).told
    assert "1 rows went to a later part with their group, 1 test rows are older than the newest training row" in told
    assert "train from 1 to 6" in told or "train from 1 to 7" in told


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-31", "2024-02-01T00:00:00Z", "2024-02-01 00:30:00+00:00"],
        [" 9", "10.5", "1e3"],
        ["2024-02-01T01:00:00+02:00", "2024-02-01", "2024-02-01T00:00:00.5"],
    ],
)
def test_dates_and_numbers_are_put_in_order(times):
    read = times_of(table_of(times))
    assert read[0] < read[1] < read[2]


@pytest.mark.parametrize(
    ("times", "found"),
    [
        (["2024-01-31", "31.01.2024"], "Row 1 has the time '31.01.2024'"),
        (["1", "2", "soon"], "Row 2 has the time 'soon'"),
        (["2024-01-31", None], "Row 1 has no time"),
        (["1", "2", "inf"], "Row 2 has the time 'inf'"),
        (["2024-01-31", ""], "Row 1 has no time"),
    ],
)
def test_a_time_that_cannot_be_read_is_named_with_its_row(times, found):
    with pytest.raises(DataError, match=f"{found}.*Expected ISO dates"):
        times_of(table_of(times))


def test_too_few_times_are_refused():
    with pytest.raises(DataError, match="Found 2 different times"):
        by_time(table_of([1] * 5 + [2] * 5), SHARES)


def test_a_table_without_the_column_is_refused():
    with pytest.raises(SettingError, match="data.time=NAME"):
        times_of(Table.of(["one"], ["a"]))
