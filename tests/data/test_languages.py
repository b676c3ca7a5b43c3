import polars as pl
import pytest

from tagsmith.data.languages import UNDETERMINED, languages_of, scripts_of, words_of

SENTENCES = {
    "Arabic": "هذا الكتاب من أجمل ما قرأت في هذه السنة",
    "Chinese": "这家酒店的房间很干净，早餐也不错。",
    "English": "The room was clean and the staff were kind to us",
    "French": "La chambre était très propre et nous avons bien dormi dans ce lit",
    "German": "Das Zimmer war sauber und wir haben dort sehr gut geschlafen",
    "Greek": "Το δωμάτιο ήταν καθαρό",
    "Hindi": "यह कमरा बहुत साफ है और सब लोग अच्छे हैं",
    "Italian": "La camera era pulita e non c'è niente di più bello per una notte",
    "Japanese": "部屋はとてもきれいで、朝食もおいしかったです。",
    "Korean": "방이 아주 깨끗하고 아침 식사도 맛있었어요",
    "Portuguese": "O quarto não era muito grande mas você não precisa de mais",
    "Spanish": "La habitación estaba muy limpia y el desayuno no era malo",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_in_its_language(language):
    texts = pl.Series([SENTENCES[language]])
    assert languages_of(texts, words_of(texts)) == {language: 1.0}


@pytest.mark.parametrize("text", ["", "ok", "xyzzy plugh 42", "BREAKING https://t.co/abc #news", "😀😀", "Nokia 3310"])
def test_what_cannot_be_told_is_undetermined(text):
    texts = pl.Series([text])
    assert languages_of(texts, words_of(texts)) == {UNDETERMINED: 1.0}


def test_shares_are_of_rows_and_add_up_to_one():
    texts = pl.Series([SENTENCES["English"]] * 3 + [SENTENCES["German"]] * 2 + ["42", ""])
    shares = languages_of(texts, words_of(texts))
    assert list(shares) == ["English", "German", UNDETERMINED]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["English"] == pytest.approx(3 / 7)


def test_tweets_in_eight_languages_are_rarely_taken_for_another_one(shared_data):
    rows = pl.read_parquet(shared_data / "xlmt_sentiment" / "test.parquet")["text"]
    assert len(rows) == 8 * 870  # 870 of each, in this order; the Hindi ones mix Latin script and English words
    for i, language in enumerate(["Arabic", "English", "French", "German", None, "Italian", "Portuguese", "Spanish"]):
        texts = rows[870 * i : 870 * (i + 1)]
        shares = languages_of(texts, words_of(texts))
        wrong = sum(share for name, share in shares.items() if name not in (language, UNDETERMINED))
        assert language is None or wrong < 0.03, (language, shares)
        assert language is None or shares[language] > 0.3


def test_scripts_are_shares_of_letters():
    shares = scripts_of(pl.Series(["abcd 123 !", "абвг", "中文", "ab"]))
    assert shares == pytest.approx({"Latin": 6 / 12, "Cyrillic": 4 / 12, "Han": 2 / 12})
    assert scripts_of(pl.Series(["123", ""])) == {}


def test_a_word_counts_once_in_a_text_and_a_sign_is_a_word_without_spaces():
    words = words_of(pl.Series(["Go, go GO!", "中文abc中", ""]))
    assert sorted(words.rows()) == [(0, "go"), (1, "abc"), (1, "中"), (1, "文")]
