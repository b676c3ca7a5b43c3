from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.rare import find_rare, label_counts
from tagsmith.data.table import Table
from tagsmith.errors import DataError

LABELS = st.lists(st.sampled_from("abcdef"), max_size=30)


def table_of(labels):
    return Table.of([f"text {i}" for i in range(len(labels))], labels)


def settled(table, how, below=3, name="other"):
    return find_rare(table, how=how, below=below, name=name).settle(table)


@given(LABELS)
def test_dropping_leaves_no_rare_label_and_all_rows_of_the_others(labels):
    counts = Counter(labels)
    table = settled(table_of(labels), "drop")
    assert table.labels == [label for label in labels if counts[label] >= 3]


@given(LABELS)
def test_merging_keeps_every_row_and_leaves_no_rare_label(labels):
    counts = Counter(labels)
    rare = [label for label in labels if counts[label] < 3]
    if 0 < len(rare) < 3:
        with pytest.raises(DataError, match="rows of 'other', into which"):
            settled(table_of(labels), "merge")
    else:
        table = settled(table_of(labels), "merge")
        assert table.labels == [label if counts[label] >= 3 else "other" for label in labels]


@given(st.lists(st.lists(st.sampled_from("abcd"), unique=True), max_size=20))
def test_dropping_a_label_of_a_set_leaves_the_others_and_takes_emptied_rows(label_sets):
    counts = Counter(label for labels in label_sets for label in labels)
    table = Table.of([f"text {i}" for i in range(len(label_sets))], label_sets or [[]][:0])
    if not table.multi_label:
        return
    kept = [[label for label in labels if counts[label] >= 3] for labels in label_sets]
    expected = [set(after) for before, after in zip(label_sets, kept, strict=True) if after or not before]
    assert [set(labels) for labels in settled(table, "drop").label_sets] == expected


def test_merging_within_a_set_gives_the_new_name_once():
    table = Table.of(list("vwxyz"), [["a", "b"], ["a"], ["a", "c"], ["a", "b", "c"], []])
    assert settled(table, "merge").label_sets == [["a", "other"], ["a"], ["a", "other"], ["a", "other"], []]


def test_what_was_done_is_counted_and_listed():
    table = table_of(["a"] * 4 + ["b", "c", "c"])
    merged, dropped = (settled(table, how).history[-1] for how in ("merge", "drop"))
    assert (merged.rows, dropped.rows, dropped.rows_after) == ((4, 5, 6), (4, 5, 6), 4)
    assert "3 rows: 'b', 'c' became 'other', for each has fewer than 3 rows" in merged.reason
    assert "3 rows dropped that had 'b', 'c' alone" in dropped.reason


def test_an_error_names_the_labels_and_what_to_do():
    with pytest.raises(DataError, match="fewer than 3 rows of the labels 'b', 'c'.*data.rare_labels=merge or drop"):
        find_rare(table_of(["a"] * 4 + ["b", "c", "c"]), how="error", below=3, name="other")


def test_keeping_keeps():
    table = table_of(["a", "b"])
    assert settled(table, "keep") is table


def test_a_label_that_has_the_new_name_already_takes_the_others_in():
    table = settled(table_of(["a"] * 3 + ["other", "b", "c"]), "merge")
    assert table.labels == ["a"] * 3 + ["other"] * 3


def test_counts_of_label_sets_count_rows():
    table = Table.of(["one", "two", "three"], [["a", "b"], ["a"], []])
    assert dict(label_counts(table).iter_rows()) == {"a": 2, "b": 1}
