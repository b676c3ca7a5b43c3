import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.batching import length_sorted, packed, padding_share, training_steps

LENGTHS = st.lists(st.integers(0, 300), max_size=200).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = length_sorted(lengths, tokens_per_batch=budget)
    assert sorted(int(row) for rows in batches for row in rows) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max(initial=1) <= budget for rows in batches)


@given(lengths=LENGTHS, rows_per_step=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_holds_every_row_once_in_full_steps(lengths, rows_per_step, seed, epoch):
    steps = training_steps(lengths, rows_per_step=rows_per_step, seed=seed, epoch=epoch)
    assert sorted(int(row) for rows in steps for row in rows) == list(range(len(lengths)))
    sizes = sorted((len(rows) for rows in steps), reverse=True)
    assert sizes[:-1] == [rows_per_step] * (len(sizes) - 1)
    assert len(steps) == -(-len(lengths) // rows_per_step)


@given(lengths=LENGTHS, seed=st.integers(0, 9), budget=st.integers(1, 2000))
def test_micro_batches_of_a_step_hold_its_rows_once_within_the_budget(lengths, seed, budget):
    for rows in training_steps(lengths, rows_per_step=16, seed=seed, epoch=0):
        micro = packed(rows, lengths, tokens_per_batch=budget)
        assert [int(row) for part in micro for row in part] == rows.tolist()
        assert all(len(part) == 1 or len(part) * lengths[part].max(initial=1) <= budget for part in micro)


@given(lengths=LENGTHS, seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_the_order_depends_on_seed_and_epoch_alone(lengths, seed, epoch):
    first = training_steps(lengths, rows_per_step=8, seed=seed, epoch=epoch)
    np.random.seed(0)  # a global state that must not matter
    second = training_steps(lengths, rows_per_step=8, seed=seed, epoch=epoch)
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in second]


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}])
def test_another_seed_or_epoch_is_another_order(other):
    lengths = np.arange(200) % 17 + 1
    plan = {"rows_per_step": 8, "seed": 1, "epoch": 0}
    first, second = (training_steps(lengths, **plan), training_steps(lengths, **plan | other))
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in second]


def test_next_to_nothing_is_padding():
    lengths = np.random.default_rng(0).geometric(0.04, size=3000)
    assert padding_share(lengths, length_sorted(lengths, tokens_per_batch=1024)) < 0.03
    steps = training_steps(lengths, rows_per_step=16, seed=0, epoch=0)
    assert padding_share(lengths, steps) < 0.10
    plain = [np.arange(i, min(i + 16, 3000)) for i in range(0, 3000, 16)]
    assert padding_share(lengths, plain) > 0.5


def test_no_rows_make_no_padding():
    assert padding_share(np.array([], dtype=int), []) == 0.0
