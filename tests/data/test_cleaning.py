import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.cleaning import STEPS, clean_text, clean_texts
from tagsmith.data.column_cleaning import clean, clean_table, would_change
from tagsmith.data.pairs import PAIR
from tagsmith.data.table import Table

ALL = tuple(step for step in STEPS if step != "nfc")
PIECES = [
    *("<p>", "<b", ">", "<br/>", "</b>", "<3", "&amp;", "&lt;", "&gt;", "amp;", "&#30;", "&nbsp;"),
    *("<script>", "</script>"),
    *("Ã©", "â€™", "\x85", "e\u0301", "ﬁ", "＜", "＞", "＆", "\u200d", "\u200c", "\u200b", "\ufeff", "👨", "क्", "م"),
    *("\n", "\r\n", "\x0b", " ", "\xa0", "\u3000", "\t", "\x00", "\x1e", "\x1f", "a"),
    *("-- \n", "\n--\n", "> ", "\n>", "b"),
    *("From: x\n", "To: y\n", "Subject: z\n", "On 1 May, Ann wrote:\n", "<!--", "-->", "\U000e0041", "\u202e", "\xad"),
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
chosen_steps = st.sets(st.sampled_from(STEPS)).map(tuple)


@given(texts, chosen_steps)
def test_cleaning_a_clean_text_changes_nothing(text, steps):
    once = clean_text(text, steps)
    assert clean_text(once, steps) == once


@given(st.lists(texts, max_size=6), chosen_steps)
def test_a_text_is_cleaned_alike_alone_and_in_bulk(texts, steps):
    bulk = clean(pl.Series(texts, dtype=pl.String), steps)
    assert bulk.texts.to_list() == [clean_text(text, steps) for text in texts] == clean_texts(texts, steps)
    changed = np.any([np.zeros(len(texts)), *bulk.changed.values()], axis=0)
    assert all(changed[i] for i, text in enumerate(texts) if bulk.texts[i] != text)


@given(texts, texts, chosen_steps)
def test_each_side_of_a_pair_is_cleaned_by_itself(one, other, steps):
    one, other = one.replace(PAIR, ""), other.replace(PAIR, "")
    cleaned = clean_text(one + PAIR + other, steps)
    assert cleaned == clean_text(one, steps) + PAIR + clean_text(other, steps)


@given(texts)
def test_the_order_in_which_steps_are_asked_for_does_not_matter(text):
    assert clean_text(text, ALL) == clean_text(text, ALL[::-1])


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("mojibake", "naÃ¯ve cafÃ© â€™tis", "naïve café ’tis"),
        ("mojibake", "“naïve” café &amp; ﬁ", "“naïve” café &amp; ﬁ"),
        ("html", "<p>One<br />two &amp;amp; &lt;b&gt;three&lt;/b&gt;</p>", "\nOne\ntwo & three\n"),
        ("html", "un<b>believ</b>able <a href='x>y' class=z>link</a>", "unbelievable link"),
        ("html", "<script>if (a < b) {}</script>kept<style type=x>p {}</style><!-- gone -->", "\nkept\n\n"),
        ("html", "a < b, c > d; I <3 you; <user> at <URL>; if a <b and c> d; R&D; x&copy=1; &nonsense;", None),
        ("html", "caf&eacute; &#65;&#x42; &copy;", "café AB ©"),
        ("email", "From: a@b.c\nTo: d@e.f\nSubject: Win\n a prize\n\nHello\n", "Win\n\nHello\n"),
        ("email", "Hello\n> you said\n> this\nNo.", "Hello\nNo."),
        ("email", "Hello\n\nOn 1 May, Ann wrote:\n> you said this\nNo.", "Hello\n\nNo."),
        ("email", "Hello\n-- \nAnn\nSales", "Hello"),
        ("email", "Note: one\n> a single sign\n--\nparts\n--\nof a text", None),
        ("email", "From: a sentence\nthat goes on", None),
        ("invisible", "a\u200bb\ufeffc\xadd\u202ee\x00f\x9fg\tt\nn\r\n", "abcdefg\tt\nn\r\n"),
        ("invisible", "👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 क्\u200dष می\u200cخواهم 🏴\U000e0067\U000e007f", None),
        ("invisible", "a\u200db\u200c 1\u200d2", "ab 12"),
        ("nfc", "e\u0301 ﬁ ①", "é ﬁ ①"),
        ("nfkc", "e\u0301 ﬁ ①", "é fi 1"),
        ("spaces", "  a \t b\xa0c\u3000d \r\n\r\n e\n", "a b c d\ne"),
        ("spaces", "NA", "NA"),
    ],
)
def test_each_step_does_what_it_says(step, text, expected):
    assert clean_text(text, [step]) == (text if expected is None else expected)


def test_words_for_nothing_stay_text():
    texts = ["NA", "null", "None", "nan", "N/A"]
    assert clean_texts(texts, ALL) == texts


def test_a_table_tells_what_each_step_did_and_which_rows_it_emptied():
    table = Table.of(["<p>one</p>", " two  words ", "<br>", "fine", "three "], ["a", "b", "a", "b", "a"])
    cleaned = clean_table(table, ["spaces", "html"])
    assert cleaned.texts == ["one", "two words", "fine", "three"]
    told = [(change.step, change.rows_before, change.rows_after, change.rows) for change in cleaned.history[1:]]
    assert told == [
        ("clean: html", 5, 5, (0, 2)),
        ("clean: spaces", 5, 5, (0, 1, 2, 4)),
        ("drop", 5, 4, (2,)),
    ]
    assert "in 2 rows" in cleaned.history[1].reason
    assert cleaned.labels == ["a", "b", "b", "a"]


def test_a_pair_of_which_nothing_is_left_is_dropped():
    cleaned = clean_table(Table.of([f"<p>{PAIR} ", f"one{PAIR}<p>"], ["a", "b"]), ["html", "spaces"])
    assert cleaned.texts == [f"one{PAIR}"]


def test_without_steps_a_table_keeps_its_history():
    table = Table.of(["<p>one</p>"], ["a"])
    assert clean_table(table, []) == table


def test_only_the_first_thousand_rows_are_listed_and_all_are_counted():
    cleaned = clean_table(Table.of(["a  b"] * 1500, ["x"] * 1500), ["spaces"])
    assert "in 1,500 rows" in cleaned.history[-1].reason
    assert len(cleaned.history[-1].rows) == 1000


def test_each_step_says_alone_what_it_would_change():
    counts = would_change(pl.Series(["cafÃ©", "<p>", "a  b", "plain", None]))
    assert counts == {"mojibake": 1, "html": 1, "email": 0, "invisible": 0, "nfc": 0, "nfkc": 0, "spaces": 1}


@pytest.mark.parametrize(
    "text",
    [
        "<" * 50_000 + "b>" * 50_000,
        "&" * 50_000 + "amp;" * 50_000,
        "<script>" * 50_000,
        "<a " + "b=c " * 50_000,
        " " * 1_000_000 + "\n",
        "From: a\nTo: b\n\n" * 20_000,
        "> a\nb\n" * 50_000,
        "<!--" * 50_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_text_made_to_be_slow_is_cleaned_in_a_moment(text):
    started = time.process_time()
    clean_text(text, ALL)
    assert time.process_time() - started < 2


def test_a_million_plain_rows_take_a_moment():
    texts = pl.select(pl.format("a short message, number {}", pl.int_range(1_000_000))).to_series()
    started = time.process_time()
    assert not any(mask.any() for mask in clean(texts, ALL).changed.values())
    assert time.process_time() - started < 3
