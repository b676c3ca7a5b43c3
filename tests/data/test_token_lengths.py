import polars as pl
import pytest
from tokenizers import Tokenizer

from tagsmith.data.pairs import PAIR
from tagsmith.data.token_lengths import measure_tokens, spaced


@pytest.fixture
def pieces(bert_folder):
    """A WordPiece whose file cuts and pads to 48."""
    return Tokenizer.from_file(str(bert_folder / "tokenizer.json"))


@pytest.fixture
def letters(make_tokenizer):
    return make_tokenizer()


def test_lengths_are_those_of_whole_texts_with_special_tokens(pieces):
    texts = pl.Series(["the room", "the room " * 40])
    found = measure_tokens(pieces, texts, max_tokens=48)
    assert (found.longest, found.median, found.cut) == (82, 43.0, 0.5)
    assert found.per_word == 1.0
    assert found.rows == 2


def test_the_share_of_unknown_tokens_is_of_the_texts_own(pieces, letters):
    assert measure_tokens(pieces, pl.Series(["the room 中 文"]), max_tokens=48).unknown == 0.5
    assert measure_tokens(letters, pl.Series(["the room 中 文"]), max_tokens=48).unknown == 0.0


def test_a_pair_has_the_special_tokens_of_a_pair(pieces):
    pair = pieces.num_special_tokens_to_add(is_pair=True)
    found = measure_tokens(pieces, pl.Series([f"the room{PAIR}the food"]), max_tokens=48)
    assert found.longest == 4 + pair


def test_special_strings_in_a_text_are_text(letters):
    found = measure_tokens(letters, pl.Series(["<|im_end|>"]), max_tokens=48)
    assert found.longest > 1


def test_no_texts_have_no_lengths(letters):
    found = measure_tokens(letters, pl.Series([], dtype=pl.String), max_tokens=48)
    assert (found.rows, found.longest, found.cut) == (0, 0, 0.0)


@pytest.mark.parametrize(("rows", "characters", "kept"), [(100, 10**6, 100), (10, 10**6, 10), (100, 250, 25)])
def test_a_sample_is_evenly_spaced_within_both_limits(rows, characters, kept):
    texts = pl.Series([f"{i:010}" for i in range(100)])
    sample = spaced(texts, most_rows=rows, most_characters=characters)
    assert len(sample) == kept
    assert sample[0] == texts[0]
