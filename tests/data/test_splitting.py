import itertools
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.readers import read
from tagsmith.data.splitting import book_split, second_half, split
from tagsmith.data.table import Table
from tagsmith.errors import DataError, SettingError

SHARES = {"validation_share": 0.1, "test_share": 0.2}


def table_of(labels, groups=None):
    table = Table.of([f"text {i}" for i in range(len(labels))], labels)
    if groups is None:
        return table
    return Table(table.frame.with_columns(pl.Series("group", groups, dtype=pl.UInt32)))


@st.composite
def tables(draw):
    """Two to five labels with two rows or more each, and groups that may hold several labels."""
    labels = draw(st.lists(st.sampled_from("abcde"), max_size=80)) + ["a", "a", "b", "b"]
    labels += [label for label, count in Counter(labels).items() if count == 1]
    groups = draw(st.lists(st.integers(0, 60), min_size=len(labels), max_size=len(labels)))
    return table_of(labels, groups)


@given(tables(), st.integers(0, 5))
def test_splits_partition_the_rows(table, seed):
    splits = split(table, **SHARES, seed=seed)
    rows = [row for _, part in splits.items() for row in part.rows.tolist()]
    assert sorted(rows) == table.rows.tolist()


@given(tables(), st.integers(0, 5))
def test_groups_never_straddle(table, seed):
    splits = split(table, **SHARES, seed=seed)
    for (_, one), (_, other) in itertools.combinations(splits.items(), 2):
        assert not set(one.groups.tolist()) & set(other.groups.tolist())


@given(tables(), st.integers(0, 5))
def test_each_label_has_training_rows_and_the_history_names_what_other_parts_lack(table, seed):
    splits = split(table, **SHARES, seed=seed)
    assert set(splits.train.labels) == set(table.labels)
    told = " ".join(change.reason for change in splits.train.history)
    for label in set(table.labels) - set(splits.test.labels):
        assert "no test rows of the label" in told
        assert f"'{label}'" in told


@given(tables(), st.integers(0, 5))
def test_the_same_seed_gives_the_same_split(table, seed):
    one, other = (split(table, **SHARES, seed=seed) for _ in range(2))
    assert [part.rows.tolist() for _, part in one.items()] == [part.rows.tolist() for _, part in other.items()]


def test_another_seed_gives_another_split():
    table = table_of(["a", "b"] * 100)
    assert split(table, **SHARES, seed=1).test.rows.tolist() != split(table, **SHARES, seed=2).test.rows.tolist()


def test_each_label_keeps_its_share_within_a_row():
    labels = ["a"] * 437 + ["b"] * 91 + ["c"] * 23
    splits = split(table_of(labels), **SHARES, seed=1)
    for label, count in Counter(labels).items():
        for part, share in ((splits.train, 0.7), (splits.validation, 0.1), (splits.test, 0.2)):
            assert abs(part.labels.count(label) - share * count) <= 1


def test_shares_hold_with_many_small_groups():
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(1000), random.integers(1, 6, size=1000))
    labels = random.choice(["a", "b", "c"], size=1000, p=[0.7, 0.2, 0.1])[groups].tolist()
    splits = split(table_of(labels, groups.tolist()), **SHARES, seed=1)
    for label, count in Counter(labels).items():
        assert abs(splits.test.labels.count(label) - 0.2 * count) <= 3


def test_large_groups_are_not_all_put_into_train():
    groups = [i // 10 for i in range(2000)]
    labels = ["ab"[group % 2] for group in groups]
    sizes = [len(split(table_of(labels, groups), **SHARES, seed=seed).test) for seed in range(3)]
    assert sizes == [400] * 3


def test_many_small_labels_do_not_shift_the_totals():
    splits = split(table_of([f"label {i % 77}" for i in range(77 * 5)]), **SHARES, seed=1)
    assert [len(part) for _, part in splits.items()] == pytest.approx([231, 77, 0, 77], abs=1)


def test_a_label_of_two_rows_is_learnt_and_tested():
    splits = split(table_of(["a"] * 50 + ["b"] * 2), **SHARES, seed=1)
    assert (splits.train.labels.count("b"), splits.test.labels.count("b")) == (1, 1)
    assert "no validation rows of the label 'b': too few groups" in [change.reason for change in splits.train.history]


def test_half_the_validation_rows_calibrate_from_200_on():
    enough, short = (split(table_of(["a", "b"] * (rows // 2)), **SHARES, seed=1) for rows in (4000, 3990))
    assert [len(part) for _, part in enough.items()] == [2800, 200, 200, 800]
    assert len(short.calibration) == 0
    assert "no calibration rows: fewer than 200" in short.train.history[-1].reason


def test_a_half_is_half_and_keeps_groups_whole():
    groups = [i // 3 for i in range(600)]
    table = table_of(["ab"[group % 2] for group in groups], groups)
    second = second_half(table, seed=1)
    assert second.sum() == 300
    assert not set(table.groups[second]) & set(table.groups[~second])


def test_one_label_only_is_refused():
    with pytest.raises(
        DataError, match=r"one label only, 'a', in all 10 rows\. Expected at least two labels; name"
    ) as error:
        split(table_of(["a"] * 10), **SHARES, seed=1)
    assert "\n" not in str(error.value)


def test_fewer_than_two_rows_of_a_label_are_refused():
    with pytest.raises(
        DataError, match="fewer than 2 rows of the labels 'b', 'c'.*merge rare labels, drop them, or add"
    ) as error:
        split(table_of(["a"] * 10 + ["c", "b"]), **SHARES, seed=1)
    assert "\n" not in str(error.value)


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="Found no rows"):
        split(table_of([]), **SHARES, seed=1)


def test_shares_that_leave_no_training_rows_are_refused():
    with pytest.raises(SettingError, match="leave no rows to train on"):
        split(table_of(["a", "b"] * 10), validation_share=0.4, test_share=0.6, seed=1)


# --- the book -------------------------------------------------------------------------------------------------------


def test_the_books_split_equals_the_books_files_row_for_row(shared_data):
    splits = book_split(read(shared_data / "sms_spam" / "SMSSpamCollection.tsv", quoting="standard"))
    assert [len(part) for _, part in splits.items()] == [1045, 149, 0, 300]
    for name, part in splits.items():
        if name != "calibration":
            expected = read(shared_data / "sms_spam" / "book_split" / f"{name}.csv")
            assert part.texts == expected.texts
            assert part.labels == expected.labels


def test_the_books_split_balances_by_the_smaller_label_and_says_each_step():
    splits = book_split(table_of(["yes"] * 10 + ["no"] * 40))
    assert [len(part) for _, part in splits.items()] == [14, 2, 0, 4]
    assert Counter(label for _, part in splits.items() for label in part.labels) == {"yes": 10, "no": 10}
    assert [change.step for change in splits.train.history][-3:] == ["undersample", "shuffle", "split"]


def test_the_books_split_is_for_two_labels():
    with pytest.raises(SettingError, match="for two labels; found 3: 'a', 'b', 'c'"):
        book_split(table_of(["a", "b", "c"] * 4))
