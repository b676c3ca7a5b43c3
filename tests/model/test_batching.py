import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.batching import Work, evenly_sorted, length_sorted, packed, training_steps, work_of

LENGTHS = st.lists(st.integers(0, 300), max_size=200).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = length_sorted(lengths, tokens_per_batch=budget)
    assert sorted(int(row) for rows in batches for row in rows) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max(initial=1) <= budget for rows in batches)


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_even_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = evenly_sorted(lengths, tokens_per_batch=budget)
    assert [int(row) for rows in batches for row in rows] == np.argsort(-lengths, kind="stable").tolist()
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max(initial=1) <= budget for rows in batches)
    few = len(length_sorted(lengths, tokens_per_batch=budget))
    assert few <= len(batches) <= max(few, 1 << max(0, few - 1).bit_length())


def test_no_core_is_left_with_a_sliver():
    lengths = np.full(32, 25)
    assert [len(rows) for rows in length_sorted(lengths, tokens_per_batch=512)] == [20, 12]
    assert [len(rows) for rows in evenly_sorted(lengths, tokens_per_batch=512)] == [16, 16]
    assert [len(rows) for rows in evenly_sorted(np.full(60, 25), tokens_per_batch=512)] == [15, 15, 15, 15]


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


def test_a_batch_is_tokens_for_linear_layers_and_pairs_of_tokens_for_attention():
    assert work_of(np.array([3, 1, 2]), [np.array([0, 2]), np.array([1])]) == Work(tokens=6, pairs=14, cells=19)


def test_padding_is_the_share_of_multiplications_that_a_rectangle_adds():
    work = Work(tokens=6, pairs=14, cells=19)
    assert work.padding(weights=100, width=4) == pytest.approx(1 - (600 + 8 * 14) / (600 + 8 * 19))
    assert (work + work).padding(weights=100, width=4) == pytest.approx((work * 7).padding(weights=100, width=4))


@given(lengths=LENGTHS)
def test_a_text_alone_pads_nothing(lengths):
    assert work_of(lengths, [np.array([row]) for row in range(len(lengths))]).padding(weights=10, width=4) == 0


def test_rows_of_like_length_pad_next_to_nothing():
    lengths = np.random.default_rng(0).geometric(0.04, size=3000)
    size = {"weights": 3_540_000, "width": 576}  # a block of SmolLM2
    for batches in (
        length_sorted(lengths, tokens_per_batch=1024),
        training_steps(lengths, rows_per_step=16, seed=0, epoch=0),
    ):
        assert 0 < work_of(lengths, batches).padding(**size) < 0.01
