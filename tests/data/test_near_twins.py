import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data import near_twins
from tagsmith.data.duplicates import group_duplicates
from tagsmith.data.folding import distinct, fold_all
from tagsmith.data.near_twins import Components, sketched
from tagsmith.data.readers import read
from tagsmith.data.table import Table

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def shingles(text):
    return {text[i : i + 5] for i in range(len(text) - 4)}


def pairs_above(texts, near):
    """All pairs `(E, 2)` whose Jaccard of 5-grams is at least `near`, by comparing all with all over a common index."""
    numbers, rows, columns = {}, [], []
    for i, text in enumerate(texts):
        for shingle in shingles(text):
            rows.append(i)
            columns.append(numbers.setdefault(shingle, len(numbers)))
    from scipy.sparse import csr_array

    sets = csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(len(texts), len(numbers)))
    sizes = np.diff(sets.indptr)
    shared = (sets @ sets.T).tocoo()
    above = shared.data >= near * (sizes[shared.row] + sizes[shared.col] - shared.data) - 1e-9
    pairs = np.stack([shared.row, shared.col], axis=1)[above]
    return pairs[pairs[:, 0] < pairs[:, 1]]


def found_pairs(texts, near):
    """All pairs that the sketches find, unlinked: every candidate is checked."""
    with sketched(pl.Series(texts, dtype=pl.String), near=near) as sketches:
        parts = [
            sketches.near_twins(pairs, near=near) for pairs in sketches.candidates(Components(len(texts)), near=near)
        ]
    return {(min(pair), max(pair)) for part in parts for pair in part.tolist()}


def templated(count, seed):
    """Texts of one template with much of their own: all in the same buckets, hardly any of them near twins."""
    random = np.random.default_rng(seed)
    template = "".join(random.choice(LETTERS, size=300))
    return [template + "".join(random.choice(LETTERS, size=int(random.integers(40, 60)))) for _ in range(count)]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_are_those_of_a_graph(links):
    components = Components(20)
    expected = list(range(20))
    for one, other in links:
        components.join(np.array([[one, other]]))
        expected = [expected[one] if number == expected[other] else number for number in expected]
    together = Components(20)
    together.join(np.array(links, dtype=np.int64).reshape(-1, 2))
    for i, j in itertools.combinations(range(20), 2):
        assert (components.of[i] == components.of[j]) == (expected[i] == expected[j])
        assert (together.of[i] == together.of[j]) == (expected[i] == expected[j])


def test_recall_and_precision_on_5000_real_rows(shared_data):
    texts = distinct(fold_all(read(shared_data / "sms_spam" / "SMSSpamCollection.tsv").frame["text"]))[0]
    assert len(texts) > 5000
    truth = {tuple(pair) for pair in pairs_above(texts.to_list(), 0.85).tolist()}
    found = found_pairs(texts, 0.85)
    assert len(truth) > 80
    assert found <= truth
    assert len(found & truth) >= 0.99 * len(truth)


def test_no_pair_above_the_threshold_is_left_apart_on_5000_real_rows(shared_data):
    texts = distinct(fold_all(read(shared_data / "goemotions" / "train.parquet").frame["text"]))[0][:5000]
    with sketched(texts, near=0.6) as sketches:
        components = sketches.links(near=0.6)
    pairs = pairs_above(texts.to_list(), 0.6)
    assert len(pairs) > 20
    assert (components[pairs[:, 0]] == components[pairs[:, 1]]).all()


def test_large_buckets_give_the_same_pairs(monkeypatch):
    texts = templated(60, seed=1)
    texts += [text[:-3] + "xyz" for text in texts[:30]]
    texts += [texts[0][:300] + end for end in ("ab", "cde", "fghi", "jklmnop")]
    monkeypatch.setattr(near_twins, "_PAIRS_PER_BUCKET", 10**9)
    plain = found_pairs(texts, 0.8)
    monkeypatch.setattr(near_twins, "_PAIRS_PER_BUCKET", 10)
    monkeypatch.setattr(near_twins, "_PAIRS_PER_TEXT", 2)
    monkeypatch.setattr(near_twins, "_TEXTS_AT_ONCE", 20)
    assert found_pairs(texts, 0.8) == plain
    assert len(plain) >= 30


def test_a_template_with_thousands_of_texts_needs_few_comparisons():
    texts = pl.Series(templated(3000, seed=2))
    with sketched(texts, near=0.8) as sketches:
        compared = sum(len(pairs) for pairs in sketches.candidates(Components(len(texts)), near=0.8))
    assert compared < 0.1 * 3000 * 2999 / 2


def test_a_cluster_of_thousands_is_joined_by_few_comparisons():
    random = np.random.default_rng(3)
    original = random.choice(LETTERS, size=400)
    copies = []
    for _ in range(2000):
        copy = original.copy()
        copy[random.integers(0, 400, size=3)] = random.choice(LETTERS, size=3)
        copies.append("".join(copy))
    texts = distinct(pl.Series(copies))[0]
    components = Components(len(texts))
    compared = 0
    with sketched(texts, near=0.8) as sketches:
        for pairs in sketches.candidates(components, near=0.8):
            compared += len(pairs)
            components.join(sketches.near_twins(pairs, near=0.8))
    assert len(set(components.of.tolist())) == 1
    assert compared < 100 * len(texts)


def test_pairs_are_the_same_however_they_are_cut_into_parts(monkeypatch):
    texts = [text for i in range(20) for text in (f"the number {i} is one of many", f"the number {i} is one of many!")]
    whole = found_pairs(texts, 0.7)
    monkeypatch.setattr(near_twins, "_PAIRS_AT_ONCE", 3)
    monkeypatch.setattr(near_twins, "_CHARACTERS_AT_ONCE", 100)
    monkeypatch.setattr(near_twins, "_BYTES_IN_MEMORY", 64)
    assert found_pairs(texts, 0.7) == whole
    assert len(whole) >= 20


@pytest.mark.parametrize("texts", [[], ["abc"], ["", "abcd", "a text long enough"]])
def test_there_are_no_pairs_of_too_few_or_too_short_texts(texts):
    assert found_pairs(texts, 0.8) == set()


def test_a_template_with_more_pairs_than_are_compared_ends_and_says_which_texts_were_left(monkeypatch):
    monkeypatch.setattr(near_twins, "_PAIRS_COMPARED", 1000)
    monkeypatch.setattr(near_twins, "_PAIRS_COMPARED_PER_TEXT", 1)
    random = np.random.default_rng(0)
    codes = random.integers(10**6, 10**9, size=(1500, 2))
    thanks = "dear customer, thank you for your purchase at our shop. your order {} was shipped. track it with {}."
    template = [thanks.format(*pair) for pair in codes]
    twins = ["an ordinary sentence about the weather in june", "an ordinary sentence about the weather in july"]
    table = Table.of([*template, *twins], ["a"] * 1500 + ["b"] * 2)
    grouped = group_duplicates(table, near=0.8)
    assert 1000 < grouped.not_compared <= 1500
    assert grouped.table.groups[-1] == grouped.table.groups[-2]
    assert any("more look-alikes than are compared" in change.reason for change in grouped.table.history)
    monkeypatch.undo()
    assert group_duplicates(table, near=0.8).not_compared == 0
