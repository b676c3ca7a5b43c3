import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.limiting import limited
from tagsmith.data.table import Table


def test_a_sample_has_each_label_in_its_share_and_in_the_order_of_the_rows():
    labels = np.random.default_rng(0).permutation(np.repeat(["a", "b", "c"], [700, 200, 100])).tolist()
    few = limited(Table.of([f"text {i}" for i in range(1000)], labels), 100, seed=1)
    counts = {label: few.labels.count(label) for label in "abc"}
    assert all(abs(counts[label] - share) <= 1 for label, share in {"a": 70, "b": 20, "c": 10}.items())
    assert (np.diff(few.rows.astype(int)) > 0).all()
    assert few.history[-1].step == "limit"
    assert (few.history[-1].rows_before, few.history[-1].rows_after) == (1000, len(few))


def test_enough_rows_are_left_alone():
    table = Table.of(["a text", "another"], ["x", "y"])
    assert limited(table, 2, seed=0) is table


@given(
    sets=st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=3), min_size=1, max_size=60),
    most=st.integers(2, 20),
    seed=st.integers(0, 9),
)
def test_no_label_is_left_out(sets, most, seed):
    table = Table.of([f"text {i}" for i in range(len(sets))], sets)
    few = limited(table, most, seed=seed)
    assert {label for labels in few.label_sets for label in labels} == {label for labels in sets for label in labels}
    assert len(few) <= max(most, 2) + 8
