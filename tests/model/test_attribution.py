from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.deployment.bundle import load
from tagsmith.model.attribution import explain, pieces_of, scaled, strongest, words_of
from tagsmith.model.lexical_fitting import fit_lexical

PAIR = "\x1e"
plain = st.text("abcdefg", min_size=1, max_size=6)


def says(word, *, sure=0.98):
    """A classifier of two labels that looks for one word and nothing else."""

    def probabilities(texts):
        yes = np.array([sure if word in text.split() else 1 - sure for text in texts])
        probs = np.stack([1 - yes, yes], axis=1)
        probs[[not text.strip() for text in texts]] = np.nan
        return probs

    return probabilities


def words(text, spans):
    return [text[span.start : span.end] for span in spans]


@given(st.lists(plain, max_size=200), st.data())
def test_a_word_that_alone_decides_comes_first(others, data):
    at = data.draw(st.integers(0, len(others)))
    text = data.draw(st.sampled_from([" ", "  ", "\n", "\t "])).join([*others[:at], "DECIDES", *others[at:]])
    (spans,) = explain([text], [1], says("DECIDES"))
    first = strongest(spans)[0]
    assert text[first.start : first.end] == "DECIDES"
    assert first.weight > 0
    assert all(abs(span.weight) < 1e-6 for span in strongest(spans)[1:])


@given(st.lists(plain, min_size=1, max_size=30), st.data())
def test_the_same_word_speaks_against_the_other_label(others, data):
    text = " ".join([*others, "DECIDES"])
    (spans,) = explain([text], [0], says("DECIDES"))
    assert words(text, strongest(spans)[-1:]) == ["DECIDES"]
    assert strongest(spans)[-1].weight < 0


@given(st.text(max_size=300), st.integers(8, 40))
def test_the_pieces_are_the_text_and_the_spans_its_words(text, most):
    (spans,) = explain([text], [0], says("x"), most=most)
    assert "".join(piece for piece, _ in pieces_of(text, spans)) == text
    assert sum(span.end - span.start for span in spans) >= sum(end - start for start, end in words_of(text))
    assert all(earlier.end <= later.start for earlier, later in pairwise(spans))


@pytest.mark.parametrize("count", [0, 1, 5, 63, 64, 65, 1000, 20_000])
def test_no_more_is_asked_than_was_said(count):
    asked = []

    def probabilities(texts):
        asked.extend(texts)
        return says("w7")(texts)

    explain([" ".join(f"w{i}" for i in range(count))], [1], probabilities, most=64)
    assert len(asked) <= 65


def test_in_a_long_text_the_word_is_found_all_the_same():
    text = " ".join(f"w{i}" for i in range(20_000))
    (spans,) = explain([text], [1], says("w13579"))
    assert "w13579" in words(text, strongest(spans)[:1])[0].split()
    assert len(words(text, strongest(spans)[:1])[0].split()) <= 10


def test_all_texts_are_asked_about_together():
    calls = []

    def probabilities(texts):
        calls.append(len(texts))
        return says("b")(texts)

    found = explain(["a b c", "", "b", "x " * 100], [1, 1, 1, 0], probabilities)
    assert calls[0] == 4 + 3 + 0 + 1 + 32
    assert len(calls) <= 12
    assert [len(spans) for spans in found[:3]] == [3, 0, 1]


def test_each_text_has_the_words_that_it_has_alone():
    texts = ["a b c", "b", "c d e f g " * 40, ""]
    together = explain(texts, [1, 0, 1, 0], says("b"))
    assert together == [explain([text], [t], says("b"))[0] for text, t in zip(texts, [1, 0, 1, 0], strict=True)]


def test_no_word_is_of_both_texts_of_a_pair_and_the_separator_stays():
    asked = []

    def probabilities(texts):
        asked.extend(texts)
        return says("b")(texts)

    explain([f"a b{PAIR}b c"], [1], probabilities)
    assert asked[1:] == [f"b{PAIR}b c", f"a {PAIR}b c", f"a b{PAIR}c", f"a b{PAIR}b"]
    asked.clear()
    explain([f"a b{PAIR}b c " + "d " * 100], [1], probabilities, most=4)
    assert all(text.count(PAIR) == 1 for text in asked)


def test_signs_of_scripts_without_spaces_are_words_of_their_own():
    assert [(end - start) for start, end in words_of("私は東京 ok")] == [1, 1, 1, 1, 2]
    assert all(end - start <= 24 for start, end in words_of("ก" * 100))


def test_letters_keep_their_accents():
    text = "e\u0301" * 40
    assert all(text[start] == "e" for start, _ in words_of(text))


def test_scaled_weights_reach_one_and_keep_their_signs():
    (spans,) = explain(["a b c"], [1], says("b"))
    assert [round(span.weight, 6) for span in scaled(spans)] == [0, 1, 0]
    assert scaled([]) == []


def test_a_real_classifier_names_the_words_that_it_learned(toy_rows):
    texts, labels = zip(*toy_rows, strict=True)
    truth = np.array([label == "complaint" for label in labels]).astype(int)
    lexical = fit_lexical(texts, truth, np.arange(len(texts)), classes=2, seed=0)
    text = "room awful garden the dreadful window our stale hotel"
    (spans,) = explain([text], [1], lexical.probabilities)
    assert set(words(text, strongest(spans)[:3])) == {"awful", "dreadful", "stale"}


def test_a_weight_is_what_a_transformers_log_odds_lose_without_the_word(llama_bundle):
    bundle = load(llama_bundle)
    text, shorter = "room awful garden lovely", "room awful lovely"
    (spans,) = explain([text], [1], bundle.predict_proba)
    whole, rest = (np.log(p[1] / (1 - p[1])) for p in bundle.predict_proba([text, shorter]))
    assert spans[2].weight == pytest.approx(whole - rest, abs=1e-4)
