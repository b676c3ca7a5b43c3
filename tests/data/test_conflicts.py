from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.conflicts import conflicting_rows, settle_conflicts
from tagsmith.data.folding import distinct, fold_all
from tagsmith.data.table import Table

ROWS = st.lists(
    st.tuples(st.sampled_from(["one text", "One  TEXT", "other", "third"]), st.sampled_from("abc")), max_size=20
)


def table_of(rows):
    return Table.of([text for text, _ in rows], [label for _, label in rows])


def conflicts_of(table):
    return conflicting_rows(table, distinct(fold_all(table.frame["text"]))[1])


@given(ROWS)
def test_no_conflict_is_left_by_majority_or_drop(rows):
    for how in ("majority", "drop"):
        assert len(conflicts_of(settle_conflicts(table_of(rows), how=how))) == 0


@given(ROWS)
def test_dropping_takes_the_conflicting_rows_and_no_others(rows):
    table = table_of(rows)
    dropped = settle_conflicts(table, how="drop")
    assert sorted([*dropped.rows.tolist(), *conflicts_of(table).tolist()]) == table.rows.tolist()
    assert dropped.history[-1].concerned == len(conflicts_of(table))


@given(ROWS)
def test_a_majority_relabels_and_a_tie_is_dropped(rows):
    counts = {}
    for text, label in rows:
        counts.setdefault(" ".join(text.lower().split()), Counter())[label] += 1
    expected = []
    for row, (text, _) in enumerate(rows):
        (label, most), *others = counts[" ".join(text.lower().split())].most_common()
        if not others or others[0][1] < most:
            expected.append((row, label))
    settled = settle_conflicts(table_of(rows), how="majority")
    assert list(zip(settled.rows.tolist(), settled.labels, strict=True)) == expected


def test_the_history_counts_relabelled_and_tied_rows():
    rows = [("good", "x"), ("Good", "x"), ("good ", "y"), ("odd", "x"), ("odd", "y"), ("plain", "x")]
    relabelled, tied = settle_conflicts(table_of(rows), how="majority").history[-2:]
    assert (relabelled.rows, tied.rows) == ((2,), (3, 4))
    assert "5 rows hold 2 texts that have different labels; 1 rows take their text's majority" in relabelled.reason
    assert "2 rows hold 1 texts whose labels tie; dropped" in tied.reason


def test_keeping_changes_nothing():
    table = table_of([("good", "x"), ("good", "y")])
    assert settle_conflicts(table, how="keep") is table


def test_label_sets_conflict_when_they_differ_as_sets():
    table = Table.of(["one", "One", "two", "two", "three", "three"], [["a", "b"], ["b", "a"], ["a"], [], [], []])
    assert conflicts_of(table).tolist() == [2, 3]
    assert settle_conflicts(table, how="drop").label_sets == [["a", "b"], ["b", "a"], [], []]


def test_a_majority_of_label_sets_is_one_of_the_sets():
    table = Table.of(["one"] * 3, [["a", "b"], ["b", "a"], ["c"]])
    assert [set(labels) for labels in settle_conflicts(table, how="majority").label_sets] == [{"a", "b"}] * 3


def test_settling_a_settled_table_says_that_there_is_nothing():
    table = settle_conflicts(table_of([("one", "x"), ("two", "y")]), how="drop")
    assert table.history[-1].reason == "no text has different labels"
    assert np.array_equal(table.rows, [0, 1])
