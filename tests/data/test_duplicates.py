import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.duplicates import group_duplicates, leak
from tagsmith.data.folding import fold, fold_all
from tagsmith.data.readers import read
from tagsmith.data.table import Table

SENTENCES = (
    "Congratulations you have won a prize of 1000 pounds call 09061701461 now to claim it",
    "Sorry I will call you later in the evening when the meeting has come to an end",
    "The quick brown fox jumps over the lazy dog and runs away into the dark forest",
)


@st.composite
def texts(draw):
    """Some sentences, and copies of them with another case, more spaces, or a few characters changed."""
    result = []
    for _ in range(draw(st.integers(1, 12))):
        text = draw(st.sampled_from(SENTENCES))
        if draw(st.booleans()):
            text = text.upper().replace(" ", "  ")
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(text) - 1))
            text = text[:at] + draw(st.characters(codec="utf-8")) + text[at + 1 :]
        result.append(text)
    return result + draw(st.lists(st.text(max_size=8), max_size=4))


def varied(count, seed):
    """Texts at all degrees of likeness: each a sentence of random words, and copies with 1 to 12 words changed."""
    random = np.random.default_rng(seed)
    words = [
        "".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), size=size)) for size in random.integers(2, 9, 500)
    ]
    result = []
    while len(result) < count:
        original = random.choice(words, size=int(random.integers(8, 40)))
        for changes in range(4):
            copy = original.copy()
            copy[random.integers(0, len(copy), size=changes)] = random.choice(words, size=changes)
            result.append(" ".join(copy))
    return result


def jaccard(all_texts):
    """Similarity of all with all, computed the plain way."""
    folded = [fold(text) for text in all_texts]
    sets = [{text[i : i + 5] for i in range(len(text) - 4)} or {text} for text in folded]
    return np.array([[len(one & other) / len(one | other) for other in sets] for one in sets])


def near_pairs(all_texts, near):
    return [(i, j) for i, j in np.argwhere(jaccard(all_texts) >= near).tolist() if i < j]


def test_folding_lowers_and_squeezes():
    assert fold("  Free\tENTRY\n\n in  2 ") == "free entry in 2"
    assert fold_all(pl.Series(["A  B", ""])).to_list() == ["a b", ""]


@given(st.text())
def test_folding_twice_is_folding_once(text):
    assert fold(fold(text)) == fold(text)


@given(texts())
def test_texts_equal_after_folding_always_share_a_group(all_texts):
    groups = group_duplicates(Table.of(all_texts, ["a"] * len(all_texts)), near=0.8).table.groups
    for i, j in itertools.combinations(range(len(all_texts)), 2):
        if fold(all_texts[i]) == fold(all_texts[j]):
            assert groups[i] == groups[j]


@given(texts(), st.sampled_from([0.6, 0.8, 0.95]))
def test_groups_are_what_comparing_all_with_all_gives(all_texts, near):
    grouped = group_duplicates(Table.of(all_texts, ["a"] * len(all_texts)), near=near)
    expected = list(range(len(all_texts)))
    for i, j in near_pairs(all_texts, grouped.threshold):
        one, other = expected[i], expected[j]
        expected = [one if number == other else number for number in expected]
    groups = grouped.table.groups
    for i, j in itertools.combinations(range(len(all_texts)), 2):
        assert (groups[i] == groups[j]) == (expected[i] == expected[j])


def test_a_leak_is_what_comparing_all_with_all_finds():
    all_texts = varied(600, seed=1)
    found = leak(all_texts[::2], all_texts[1::2], near=0.85)
    truth = (jaccard(all_texts)[1::2, ::2] >= 0.85).any(axis=1)
    assert not (found.near & ~truth).any()
    assert (found.near & truth).sum() >= 0.99 * truth.sum()
    assert truth.sum() > 50


def test_near_pairs_are_found_at_low_thresholds_too():
    all_texts = varied(300, seed=2)
    groups = group_duplicates(Table.of(all_texts, ["a"] * len(all_texts)), near=0.55).table.groups
    pairs = near_pairs(all_texts, 0.55)
    assert np.mean([groups[i] == groups[j] for i, j in pairs]) >= 0.99


def test_short_texts_match_exactly_only():
    grouped = group_duplicates(Table.of(["ok", "OK ", "okk", "no", "oka"], list("aaaaa")), near=0.51)
    one, two, *others = grouped.table.groups.tolist()
    assert one == two
    assert len({one, *others}) == 4


def test_the_users_groups_are_joined_in():
    table = Table.of(
        ["alpha beta gamma", "ALPHA  beta gamma", "something else entirely", "nothing of the kind"], list("abab")
    )
    table = Table(table.frame.with_columns(pl.Series("group", [0, 1, 1, 2], dtype=pl.UInt32)))
    one, two, three, four = group_duplicates(table, near=0.8).table.groups.tolist()
    assert one == two == three != four


def test_conflicting_labels_are_kept_and_listed():
    grouped = group_duplicates(Table.of(["good one", "Good  one", "other text"], ["x", "y", "x"]), near=0.8)
    change = grouped.table.history[-1]
    assert (grouped.conflicting_rows, grouped.conflicting_texts, len(grouped.table)) == (2, 1, 3)
    assert change.rows == (0, 1)
    assert "different labels" in change.reason


def test_a_chain_raises_the_threshold_with_notice():
    letters = "".join(np.random.default_rng(3).choice(list("abcdefghijklmnopqrstuvwxyz"), size=400))
    chain = [letters[i : i + 100] for i in range(0, 160, 8)]
    others = varied(100, seed=4)[::4]
    grouped = group_duplicates(Table.of(chain + others, ["a"] * (len(chain) + len(others))), near=0.8)
    assert grouped.threshold > 0.8
    assert len(set(grouped.table.groups[: len(chain)].tolist())) == len(chain)
    assert any("raised from 0.8" in change.reason for change in grouped.table.history)


def test_one_text_that_repeats_is_no_chain():
    all_texts = ["the very same text again"] * 50 + varied(200, seed=5)[::4]
    grouped = group_duplicates(Table.of(all_texts, ["a"] * len(all_texts)), near=0.8)
    assert (grouped.threshold, grouped.largest, grouped.exact_rows, grouped.lowest) == (0.8, 50, 49, 1.0)


def test_an_empty_table_has_no_duplicates():
    grouped = group_duplicates(Table.of([], []), near=0.8)
    assert (grouped.exact_rows, grouped.near_rows, grouped.largest) == (0, 0, 0)
    assert leak([], [], near=0.8).near_rows == 0
    assert leak(["some text"], [], near=0.8).near.shape == (0,)


def test_sms_spam_has_415_duplicates(shared_data):
    grouped = group_duplicates(read(shared_data / "sms_spam" / "SMSSpamCollection.tsv"), near=0.8)
    assert (grouped.exact_rows, grouped.conflicting_rows, grouped.threshold) == (415, 0, 0.8)


def test_the_books_split_leaks_58_of_300(shared_data):
    train, test = (read(shared_data / "sms_spam" / "book_split" / f"{name}.csv") for name in ("train", "test"))
    found = leak(train.texts, test.texts, near=0.8)
    assert (found.exact_rows, found.near_rows) == (40, 58)
    assert np.asarray(test.labels)[found.near].tolist().count("1") == 54


@pytest.mark.parametrize(("name", "exact"), [("hate", 236), ("chnsenticorp", 331), ("banking77", 7), ("trec6", 11)])
def test_exact_leaks_of_the_shared_sets_are_as_counted(shared_data, name, exact):
    train, test = (read(shared_data / name / f"{part}.parquet") for part in ("train", "test"))
    assert leak(train.texts, test.texts, near=0.8).exact_rows == exact


def test_mpqa_has_98_texts_with_both_labels(shared_data):
    # 99 as its README counts them: the last one is the empty text, and rows without text are dropped on reading.
    assert group_duplicates(read(shared_data / "mpqa" / "all.parquet"), near=0.8).conflicting_texts == 98
