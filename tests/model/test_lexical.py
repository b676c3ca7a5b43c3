import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.model.lexical_fitting import _folds, fit_lexical, fit_lexical_sets

SPAM = ["win cash now", "free prize call now", "claim your free cash", "urgent: win a prize", "call now to claim"]
HAM = [
    "see you at home",
    "are you coming home later",
    "lunch at noon today",
    "love you see you later",
    "meet today at noon",
]


@pytest.fixture(scope="module")
def rows():
    texts = [f"{text} {i}" for i in range(24) for text in (*SPAM, *HAM)]
    labels = np.array([int(text.rsplit(" ", 1)[0] in SPAM) for text in texts])
    return texts, labels, np.arange(len(texts))


def fit(texts, labels, groups=None, **options):
    groups = np.arange(len(texts)) if groups is None else groups
    return fit_lexical(texts, np.asarray(labels), groups, **({"classes": 2, "seed": 1} | options))


def test_it_learns_words_that_tell_labels_apart(rows):
    model = fit(*rows)
    assert model.probabilities(["win a free prize", "see you at lunch"]).argmax(axis=1).tolist() == [1, 0]


def test_the_same_seed_gives_the_same_bytes(rows):
    first, second = fit(*rows), fit(*rows)
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()


def test_a_text_has_one_answer_whatever_its_neighbours(rows):
    model = fit(*rows)
    texts = ["free cash", "", "home today", "an unknown sentence", "free cash"]
    together = model.probabilities(texts)
    alone = np.concatenate([model.probabilities([text]) for text in texts])
    assert np.array_equal(together, alone)
    assert np.array_equal(together[0], together[4])


def test_texts_longer_than_a_part_of_work_change_nothing(rows, monkeypatch):
    whole = fit(*rows)
    monkeypatch.setattr("tagsmith.model.lexical._CHUNK_LETTERS", 100)
    parts = fit(*rows)
    assert np.array_equal(whole.terms, parts.terms)
    assert np.array_equal(whole.probabilities(rows[0]), parts.probabilities(rows[0]))


@given(st.lists(st.text(max_size=30), max_size=6))
def test_any_text_gets_probabilities_that_sum_to_one(texts):
    probs = _MODEL.probabilities(texts)
    assert probs.shape == (len(texts), 2)
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)


_MODEL = fit([*SPAM, *HAM] * 3, [1] * 5 * 1 + [0] * 5 + ([1] * 5 + [0] * 5) * 2)


@given(st.lists(st.text(alphabet="ab cé\U0001f389", min_size=1, max_size=12), min_size=1, max_size=8))
def test_terms_are_scikit_learns_words_and_characters(texts):
    from sklearn.feature_extraction.text import CountVectorizer

    from tagsmith.model.lexical import Vectoriser, _fold

    folded = [_fold(text) for text in texts]
    counts = Vectoriser.of(texts, least=1).count(texts)
    words = CountVectorizer(analyzer="word", token_pattern=r"(?u)\w+", ngram_range=(1, 2))
    n_grams = CountVectorizer(analyzer=_windows)
    expected = 0
    for vectoriser in (words, n_grams):
        try:
            expected = expected + vectoriser.fit_transform(folded).sum(axis=1)
        except ValueError:  # an empty vocabulary
            continue
    ours = [counts.times[counts.bounds[i] : counts.bounds[i + 1]].sum() for i in range(len(texts))]
    np.testing.assert_array_equal(ours, np.asarray(expected).ravel() if np.ndim(expected) else 0)


def _windows(text):
    padded = [f" {word} " for word in text.split()]
    return [word[i : i + n] for word in padded for n in (2, 3, 4, 5) for i in range(len(word) - n + 1)]


def test_rows_without_any_term_get_the_labels_shares():
    model = fit(["?", "!", "...", ""], [0, 1, 1, 1])
    model = fit([""] * 4, [0, 1, 1, 1])
    np.testing.assert_allclose(model.probabilities(["anything"]), [[0.25, 0.75]])


def test_a_single_label_in_training_is_always_answered():
    model = fit(["one text", "another text"], [1, 1])
    np.testing.assert_array_equal(model.probabilities(["text"]), [[0.0, 1.0]])


def test_a_label_without_training_rows_has_no_chance(rows):
    probs = fit(*rows, classes=4).probabilities(["free cash"])
    assert probs.shape == (1, 4)
    assert probs[0, 2:].tolist() == [0.0, 0.0]


def test_unique_texts_of_a_small_table_still_have_a_vocabulary():
    assert len(fit(["aa", "bb", "cc", "dd"], [0, 1, 0, 1]).terms)


def test_more_than_fifty_labels_are_answered_by_calibrated_scores():
    names = [f"topic{i}" for i in range(60)]
    texts = [f"{name} said {word}" for name in names for word in ("one", "two", "three", "four", "five", "six")]
    labels = np.repeat(np.arange(60), 6)
    model = fit(texts, labels, classes=60)
    probs = model.probabilities(texts)
    assert (probs.argmax(axis=1) == labels).mean() > 0.99
    assert model.scale != 1.0
    np.testing.assert_allclose(probs.sum(axis=1), 1)


def test_weights_move_the_answer_towards_the_heavier_label(rows):
    texts, labels, groups = rows
    plain = fit(texts, labels, groups).probabilities(["zzz"])[0, 1]
    weighted = fit(texts, labels, groups, weights=np.where(labels == 1, 20.0, 1.0)).probabilities(["zzz"])[0, 1]
    assert weighted > plain


@given(st.lists(st.integers(0, 9), min_size=3, max_size=60), st.integers(0, 5))
def test_folds_keep_groups_whole(groups, seed):
    groups = np.array(groups)
    folds = _folds(groups % 2, groups, seed=seed)
    assert all(len(np.unique(folds[groups == group])) == 1 for group in np.unique(groups))


def test_folds_have_equal_shares_of_each_label():
    labels = np.repeat([0, 1, 2], [60, 30, 9])
    folds = _folds(labels, np.arange(99), seed=3)
    counts = np.array([np.bincount(labels[folds == k], minlength=3) for k in range(3)])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_several_labels_are_answered_each_by_itself(rows):
    texts, labels, groups = rows
    sets = (
        np.column_stack([labels == 1, ["home" in text or "cash" in text for text in texts], np.zeros(len(texts))]) > 0
    )
    model = fit_lexical_sets(texts, sets, groups, seed=1)
    probs = model.probabilities(["claim your free cash", "free prize call now", "see you at home", "zzz"])
    assert (probs[:3, :2] > 0.5).tolist() == [[True, True], [True, False], [False, True]]
    assert probs[:, 2].tolist() == [0.0] * 4
    np.testing.assert_allclose(probs[3, :2], sets[:, :2].mean(axis=0), atol=0.25)
    again = fit_lexical_sets(texts, sets, groups, seed=1)
    assert model.weights.tobytes() == again.weights.tobytes()


def test_weights_of_several_labels_leave_their_shares_alone(rows):
    texts, labels, groups = rows
    sets = np.column_stack([labels == 1, labels == 0])
    plain, weighted = (
        fit_lexical_sets(texts, sets, groups, seed=1, weights_C=w).probabilities(texts).mean(axis=0)
        for w in (None, np.array([8.0, 1.0]))
    )
    np.testing.assert_allclose(plain, weighted, atol=0.1)


def test_texts_of_several_labels_without_any_term_get_the_shares():
    model = fit_lexical_sets([""] * 8, np.arange(8)[:, None] < [2, 6], np.arange(8), seed=1)
    np.testing.assert_allclose(model.probabilities(["anything"]), [[0.25, 0.75]], atol=0.05)


def test_prediction_imports_numpy_alone():
    code = (
        "import sys, tagsmith.model.lexical; "
        "print([m for m in ('torch', 'transformers', 'polars', 'sklearn', 'scipy') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_it_matches_the_book_split_of_sms_spam(shared_data):
    folder = shared_data / "sms_spam" / "book_split"
    train, test = (pl.read_csv(folder / f"{part}.csv", infer_schema=False) for part in ("train", "test"))
    model = fit(train["Text"].to_list(), train["Label"].cast(pl.Int64).to_numpy())
    probs = model.probabilities(test["Text"].to_list())
    assert (probs.argmax(axis=1) == test["Label"].cast(pl.Int64).to_numpy()).mean() > 0.96


def test_many_labels_of_few_rows_bring_no_warning(recwarn):
    texts = [f"word{i} and other{i} of kind {j}" for i in range(60) for j in range(2)]
    fit_lexical(texts, np.repeat(np.arange(60), 2), np.arange(120), classes=60, seed=0)
    assert not [str(each.message) for each in recwarn]
