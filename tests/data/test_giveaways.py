import numpy as np
import polars as pl
import pytest

from tagsmith.data.giveaways import find_words, guesses, labels_in_front
from tagsmith.data.languages import words_of


def words(texts, labels, groups=None, dtype=None):
    texts = pl.Series(texts)
    groups = np.arange(len(texts)) if groups is None else np.array(groups)
    return find_words(texts, words_of(texts), pl.Series(labels, dtype=dtype), groups)


def rows(count, seed=0):
    random = np.random.default_rng(seed)
    vocabulary = [f"w{i}" for i in range(60)]
    return [" ".join(random.choice(vocabulary, 6)) for _ in range(count)], random.choice(["a", "b"], count).tolist()


def test_random_words_give_nothing_away():
    assert words(*rows(600)) == []


def test_a_word_that_only_one_label_has_is_found_with_its_interval():
    texts, labels = rows(600)
    texts = [
        f"{text} zzz" if label == "a" and i % 3 == 0 else text
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    found = words(texts, labels)
    assert [(word.word, word.label, word.where) for word in found] == [("zzz", "a", "anywhere")]
    word = found[0]
    assert word.groups == word.hits == sum("zzz" in text for text in texts)
    assert word.precision == 1.0
    assert word.recall == pytest.approx(word.hits / labels.count("a"))
    # Wilson's interval of n of n at 99 %: n / (n + z^2)
    assert word.low == pytest.approx(word.hits / (word.hits + 2.576**2))


def test_rows_of_one_group_count_once():
    texts, labels = rows(600)
    texts[:100], labels[:100] = ["one template zzz"] * 100, ["a"] * 100
    assert "zzz" in {word.word for word in words(texts, labels)}
    assert words(texts, labels, groups=[0] * 100 + list(range(1, 501))) == []


def test_the_commonest_label_is_not_given_away_by_common_words():
    texts, _ = rows(1000)
    assert words([f"the {text}" for text in texts], ["a"] * 950 + ["b"] * 50) == []


def test_signs_at_the_end_and_words_at_the_start_are_looked_at():
    texts, labels = rows(400)
    texts = [f"{text}!" if label == "b" else f"[id] {text}" for text, label in zip(texts, labels, strict=True)]
    found = {(word.word, word.where, word.label) for word in words(texts, labels)}
    assert ("!", "last", "b") in found
    assert any(word in ("id", "[id]") and label == "a" for word, _, label in found)


def test_a_label_of_several_is_given_away_too():
    texts, labels = rows(400)
    sets = [["x", label] if i % 4 == 0 else [label] for i, label in enumerate(labels)]
    sets[1] = []
    texts = [f"{text} zzz" if "x" in names else text for text, names in zip(texts, sets, strict=True)]
    found = words(texts, sets, dtype=pl.List(pl.String))
    assert [(word.word, word.label, word.hits) for word in found] == [("zzz", "x", 100)]


def test_lengths_that_differ_by_label_are_told():
    texts = pl.Series(["x" * (10 + i % 50 + 100 * (i % 2)) for i in range(1000)])
    labels = pl.Series([str(i % 2) for i in range(1000)])
    (guess,) = guesses(texts, labels)
    assert (guess.by, guess.always) == ("length", 0.5)
    assert guess.accuracy > 0.97


def test_a_number_in_front_that_sorts_the_labels_is_told():
    texts = pl.Series([f"{i}: same words" for i in range(1000, 2000)])
    labels = pl.Series(["a"] * 500 + ["b"] * 500)
    by = {guess.by: guess.accuracy for guess in guesses(texts, labels)}
    assert by["number in front"] == 1.0
    assert by["length"] == pytest.approx(0.5, abs=0.01)


def test_digits_of_other_scripts_are_no_error():
    assert [guess.by for guess in guesses(pl.Series(["٤٢ x", "1 y"] * 100), pl.Series(["a", "b"] * 100))] == [
        "length",
        "number in front",
    ]


def test_texts_that_begin_with_their_label_are_told():
    texts, labels = rows(200)
    led = [f"[{label}land] {text}" for text, label in zip(texts, labels, strict=True)]
    shares = labels_in_front(pl.Series(led), pl.Series([f"{label}LAND" for label in labels]))
    assert shares == {"aLAND": 1.0, "bLAND": 1.0}
    assert labels_in_front(pl.Series(texts), pl.Series([f"{label}LAND" for label in labels])) == {}
