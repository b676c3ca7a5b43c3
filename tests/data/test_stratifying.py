import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.duplicates import group_duplicates
from tagsmith.data.folding import fold
from tagsmith.data.readers import read
from tagsmith.data.splitting import folds, split, split_by
from tagsmith.data.stratifying import _Draws, by_hash
from tagsmith.data.table import Table
from tagsmith.errors import DataError

SHARES = {"validation_share": 0.1, "test_share": 0.2}


@st.composite
def multi_label_tables(draw):
    """Label sets, some of them empty, in groups that may hold several; each label has two rows or more."""
    label_sets = draw(st.lists(st.lists(st.sampled_from("abcde"), unique=True), max_size=60)) + [
        ["a"],
        ["a", "b"],
        ["b"],
    ]
    counts = Counter(label for labels in label_sets for label in labels)
    label_sets += [[label] for label, count in counts.items() if count == 1]
    groups = draw(st.lists(st.integers(0, 40), min_size=len(label_sets), max_size=len(label_sets)))
    return Table.of([f"text {i}" for i in range(len(label_sets))], label_sets, groups=groups)


def labels_of(table):
    return {label for labels in table.label_sets for label in labels}


@given(multi_label_tables(), st.integers(0, 3))
def test_a_multi_label_split_partitions_the_rows_and_keeps_groups_whole(table, seed):
    splits = split(table, **SHARES, seed=seed)
    assert sorted(row for _, part in splits.items() for row in part.rows.tolist()) == table.rows.tolist()
    for (_, one), (_, other) in itertools.combinations(splits.items(), 2):
        assert not set(one.groups.tolist()) & set(other.groups.tolist())


@given(multi_label_tables(), st.integers(0, 3))
def test_each_label_of_a_multi_label_split_is_learnt_and_what_is_missing_is_named(table, seed):
    splits = split(table, **SHARES, seed=seed)
    assert labels_of(splits.train) == labels_of(table)
    told = " ".join(change.reason for change in splits.train.history)
    for label in labels_of(table) - labels_of(splits.test):
        assert "no test rows of the label" in told
        assert f"'{label}'" in told


@given(multi_label_tables(), st.integers(0, 3))
def test_the_same_seed_gives_the_same_multi_label_split(table, seed):
    one, other = (split(table, **SHARES, seed=seed) for _ in range(2))
    assert [part.rows.tolist() for _, part in one.items()] == [part.rows.tolist() for _, part in other.items()]


def test_goemotions_is_split_in_seconds_with_each_label_in_its_share(shared_data):
    table = group_duplicates(read(shared_data / "goemotions" / "train.parquet"), near=0.8).table
    started = time.process_time()
    splits = split(table, **SHARES, seed=1)
    assert time.process_time() - started < 10
    counts = Counter(label for labels in table.label_sets for label in labels)
    tested = Counter(label for labels in splits.test.label_sets for label in labels)
    assert {label: tested[label] for label in counts} == {
        label: pytest.approx(0.2 * count, rel=0.05, abs=3) for label, count in counts.items()
    }
    assert len(splits.test) == pytest.approx(0.2 * len(table), rel=0.02)


def test_draws_are_those_of_numpys_choice():
    odds = np.random.default_rng(1).integers(0, 50, size=(200, 4)) + np.eye(4, dtype=int)[np.arange(200) % 4]
    random, draws = np.random.default_rng(7), _Draws(np.random.default_rng(7))
    expected = [int(random.choice(4, p=row / row.sum())) for row in odds]
    assert [draws.choice(row.tolist()) for row in odds] == expected


# --- folds ----------------------------------------------------------------------------------------------------------


@st.composite
def foldable(draw):
    groups = draw(st.lists(st.integers(0, 60), min_size=20, max_size=80)) + list(range(5))
    multi = draw(st.booleans())
    labels = ["ab"[i % 2] for i in range(len(groups))]
    return Table.of(
        [f"text {i}" for i in range(len(groups))], [[label] for label in labels] if multi else labels, groups=groups
    )


@given(foldable(), st.integers(2, 5), st.integers(0, 3))
def test_each_row_is_tested_in_one_fold_and_groups_stay_whole(table, k, seed):
    splits = folds(table, k, seed)
    assert len(splits) == k
    assert sorted(row for one in splits for row in one.test.rows.tolist()) == table.rows.tolist()
    for one in splits:
        assert sorted(row for _, part in one.items() for row in part.rows.tolist()) == table.rows.tolist()
        for (_, part), (_, other) in itertools.combinations(one.items(), 2):
            assert not set(part.groups.tolist()) & set(other.groups.tolist())


def test_folds_are_of_one_size_and_have_each_label_in_its_share():
    labels = ["a"] * 400 + ["b"] * 85 + ["c"] * 15
    for one in folds(Table.of([f"text {i}" for i in range(500)], labels), 5, 1):
        counts = Counter(one.test.labels)
        assert (counts["a"], counts["b"], counts["c"]) == (80, 17, 3)
        assert len(one.validation) == pytest.approx(50, abs=2)


def test_more_folds_than_groups_are_refused():
    with pytest.raises(DataError, match="Found 3 groups of rows for 5 folds"):
        folds(Table.of(list("abcdef"), list("xyxyxy"), groups=[0, 0, 1, 1, 2, 2]), 5, 1)


# --- hash -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.text("abc", min_size=1, max_size=6), st.integers(0, 30)), min_size=10, max_size=40),
    st.lists(st.tuples(st.text("abc", min_size=1, max_size=6), st.integers(0, 60)), max_size=40),
)
def test_groups_that_did_not_change_keep_their_part_when_the_table_grows(old, new):
    def parts_of(rows):
        texts, groups = zip(*rows, strict=True)
        table = Table.of(list(texts), ["x"] * len(texts), groups=groups)
        parts = by_hash(table, np.array([0.5, 0.1, 0.1, 0.3]), seed=3)
        return {group: part for group, part in zip(groups, parts.tolist(), strict=True)}

    before, after = parts_of(old), parts_of(old + new)
    for group in {group for _, group in old} - {group for _, group in new}:
        assert before[group] == after[group]


def test_a_hash_split_has_its_shares_by_chance_and_moves_with_the_seed():
    table = Table.of([f"text {i}" for i in range(5000)], ["a", "b"] * 2500)
    splits, other = (split_by("hash", table, **SHARES, seed=seed) for seed in (1, 2))
    assert [len(part) for _, part in splits.items()] == pytest.approx([3500, 250, 250, 1000], rel=0.15)
    assert splits.test.rows.tolist() != other.test.rows.tolist()


def test_a_hash_split_can_be_repeated_from_the_documentation():
    import hashlib

    texts = [f" Text  NUMBER {i}" for i in range(300)]
    splits = split_by("hash", Table.of(texts, ["a", "b"] * 150), **SHARES, seed=5)
    for text in texts:
        share = int.from_bytes(hashlib.sha256(f"5\n{fold(text)}".encode()).digest()[:8], "big") / 2**64
        name = "test" if share < 0.2 else "validation" if share < 0.3 else "train"
        assert text in dict(splits.items())[name].texts


def test_a_label_without_training_rows_is_set_aside_and_named():
    texts = [f"text {i}" for i in range(200)]
    plain = split_by("hash", Table.of(texts, ["a", "b"] * 100), **SHARES, seed=1)
    tested = plain.test.texts[0]
    labels = ["rare" if text == tested else "ab"[i % 2] for i, text in enumerate(texts)]
    splits = split_by("hash", Table.of(texts, labels), **SHARES, seed=1)
    assert splits.test.texts == plain.test.texts[1:]
    change = splits.test.history[-1]
    assert (change.step, change.rows) == ("set aside", (texts.index(tested),))
    assert "1 rows set aside: no training row has the label 'rare'" in change.reason


def test_a_split_that_leaves_one_label_to_train_on_is_refused():
    texts = [f"text {i}" for i in range(200)]
    train = set(split_by("hash", Table.of(texts, ["a", "b"] * 100), **SHARES, seed=1).train.texts)
    with pytest.raises(DataError, match="training rows of this split have 'a' alone; 'b' stands in the other parts"):
        split_by("hash", Table.of(texts, ["a" if text in train else "b" for text in texts]), **SHARES, seed=1)
