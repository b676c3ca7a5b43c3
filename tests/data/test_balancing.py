from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.balancing import balance
from tagsmith.data.table import Table


def table_of(labels):
    return Table.of([f"text {i}" for i in range(len(labels))], labels)


LABELS = st.lists(st.sampled_from("abc"), max_size=40).map(lambda labels: [*labels, "a", "b"])


@given(LABELS, st.integers(0, 5))
def test_undersampling_keeps_whole_rows_of_the_smallest_count(labels, seed):
    balanced = balance(table_of(labels), how="undersample", seed=seed).table
    assert set(Counter(balanced.labels).values()) == {min(Counter(labels).values())}
    assert len(set(balanced.rows.tolist())) == len(balanced)
    assert all(labels[row] == label for row, label in zip(balanced.rows, balanced.labels, strict=True))


@given(LABELS, st.integers(0, 5))
def test_oversampling_repeats_rows_evenly_to_the_largest_count(labels, seed):
    balanced = balance(table_of(labels), how="oversample", seed=seed).table
    assert set(Counter(balanced.labels).values()) == {max(Counter(labels).values())}
    for label in set(labels):
        times = Counter(row for row, name in zip(balanced.rows.tolist(), balanced.labels, strict=True) if name == label)
        assert len(times) == labels.count(label)
        assert max(times.values()) - min(times.values()) <= 1


@given(LABELS)
def test_weights_average_to_one_over_the_rows(labels):
    balanced = balance(table_of(labels), how="weights", seed=1)
    assert balanced.table.labels == labels
    assert sum(balanced.class_weights[label] for label in labels) == pytest.approx(len(labels))
    assert balanced.class_weights["a"] == pytest.approx(len(labels) / (len(set(labels)) * labels.count("a")))


@pytest.mark.parametrize("how", ["none", "undersample", "oversample", "weights"])
def test_the_true_priors_are_those_before_balancing(how):
    balanced = balance(table_of(["a"] * 30 + ["b"] * 10), how=how, seed=1)
    assert balanced.true_priors == {"a": 0.75, "b": 0.25}
    assert (balanced.class_weights is not None) == (how == "weights")


def test_what_was_done_is_in_the_history():
    for how, count in (("undersample", 20), ("oversample", 10)):
        change = balance(table_of(["a"] * 30 + ["b"] * 10), how=how, seed=1).table.history[-1]
        assert change.step == "balance"
        assert "20 rows" in change.reason
        assert len(change.rows) == count


def test_the_same_seed_draws_the_same_rows():
    table = table_of(["a"] * 30 + ["b"] * 10)
    one, same, other = (balance(table, how="undersample", seed=seed).table.rows.tolist() for seed in (1, 1, 2))
    assert one == same != other
