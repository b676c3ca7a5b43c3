import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.encoding import MOST_WINDOWS, Encoder, mean_of_pieces
from tagsmith.data.pairs import PAIR
from tagsmith.errors import DataError, SettingError

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


@pytest.fixture(scope="module")
def encoder(tiny_folder):
    return Encoder.from_folder(tiny_folder, max_tokens=48)


@pytest.fixture(scope="module")
def pieces(bert_folder):
    return Encoder.from_folder(bert_folder, max_tokens=48)


@given(texts=st.lists(UNICODE, max_size=8))
def test_tokens_of_many_texts_are_those_of_each_alone(texts, encoder):
    tokens = encoder.encode(texts)
    assert len(tokens) == len(texts)
    for i, text in enumerate(texts):
        own = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]]
        assert own.tolist() == encoder.encode([text]).ids.tolist()


@given(text=UNICODE)
def test_a_text_that_fits_is_read_whole(text, encoder):
    tokens = encoder.encode([text])
    assert tokens.truncated[0] or encoder.tokenizer.decode(tokens.ids.tolist(), skip_special_tokens=False) == text


@given(data=st.data(), texts=st.lists(UNICODE, min_size=1, max_size=8))
def test_padding_loses_nothing(data, texts, encoder):
    tokens = encoder.encode(texts)
    rows = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=10)))
    ids_BL, lengths = tokens.padded(rows)
    assert ids_BL.shape == (len(rows), max(1, lengths.max()))
    for i, row in enumerate(rows):
        own = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
        assert ids_BL[i].tolist() == [*own.tolist(), *[0] * (ids_BL.shape[1] - len(own))]


@pytest.mark.parametrize("text", CONTROL)
def test_the_string_of_a_control_token_stays_text(text, encoder, pieces):
    sample = f"before {text} after{text}"
    special = set(encoder.tokenizer.get_added_tokens_decoder())
    assert not special & set(encoder.encode([sample]).ids.tolist())
    read = [pieces.tokenizer.id_to_token(i) for i in pieces.encode([sample]).ids.tolist()]
    assert (read[0], read[-1]) == ("[CLS]", "[SEP]")
    assert not {"[CLS]", "[SEP]", "[PAD]", "[MASK]"} & set(read[1:-1])


@pytest.mark.parametrize("text", CONTROL)
def test_the_string_of_a_control_token_stays_text_in_the_saved_tokenizer_too(text, encoder, pieces, tmp_path):
    from transformers import AutoTokenizer

    for i, each in enumerate((encoder, pieces)):
        folder = tmp_path / str(i)
        folder.mkdir()
        each.save(folder)
        again = AutoTokenizer.from_pretrained(folder)
        for sample in (text, f"a {text} b 1234", f"{text}{text}"):
            assert again(sample)["input_ids"] == each.encode([sample]).ids.tolist()


@pytest.mark.parametrize(
    "kind", ["GPT2Tokenizer", "LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"]
)
@pytest.mark.parametrize("sides", [{}, {"padding_side": "left", "truncation_side": "left"}], ids=["right", "left"])
def test_transformers_reads_the_saved_tokenizer_as_we_do(kind, sides, make_folder, tmp_path):
    from transformers import AutoTokenizer

    encoder = Encoder.from_folder(
        make_folder("llama", tokenizer_config={"tokenizer_class": kind} | sides), max_tokens=20
    )
    encoder.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["the room 1234 was lovely", " two  spaces", "Größe\n😀", "12 " * 50, "the <|im_end|>"]
    ours = encoder.encode(texts)
    assert again(texts, truncation=True)["input_ids"] == [
        ours.ids[a:b].tolist() for a, b in zip(ours.offsets, ours.offsets[1:], strict=False)
    ]
    assert again.padding_side == "right"


def test_limits_in_the_tokenizer_file_are_not_ours(pieces):
    """all-MiniLM's file pads and cuts to 128."""
    assert pieces.encode(["lovely"]).lengths.tolist() == [3]
    pieces_of_100 = Encoder(pieces.tokenizer, max_tokens=100)
    assert pieces_of_100.encode(["1 " * 200]).lengths.tolist() == [100]


def test_texts_are_cut_from_the_end_and_counted(encoder):
    tokens = encoder.encode(["1" * 48, "1" * 49, "2" * 500])
    assert tokens.lengths.tolist() == [48, 48, 48]
    assert tokens.truncated.tolist() == [False, True, True]
    assert encoder.encode(["1" * 48 + "2"]).ids.tolist() == encoder.encode(["1" * 48]).ids.tolist()


def test_an_empty_text_has_no_tokens_where_the_tokenizer_adds_none(encoder, pieces):
    assert encoder.encode(["", "a", ""]).lengths.tolist() == [0, 1, 0]
    assert pieces.encode([""]).lengths.tolist() == [2]


def test_no_texts_have_no_tokens(encoder):
    tokens = encoder.encode([])
    assert len(tokens) == 0
    assert tokens.ids.dtype == np.int32
    assert tokens.offsets.tolist() == [0]


@pytest.mark.parametrize("text", ["\ud83d", "fine until \udc00 here"])
def test_half_a_surrogate_pair_is_refused_and_the_text_is_named(text, encoder):
    with pytest.raises(DataError, match=r"^Text 2 holds half of a surrogate pair"):
        encoder.encode(["a", "b", text])


def test_more_texts_than_are_read_at_once_keep_their_order(encoder):
    texts = [str(i) for i in range(5000)]
    tokens = encoder.encode(texts)
    found = [
        encoder.tokenizer.decode(tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist())
        for i in (0, 2047, 2048, 4999)
    ]
    assert [text.replace(" ", "") for text in found] == ["0", "2047", "2048", "4999"]


@pytest.mark.parametrize(("family", "pad"), [("llama", "<|im_end|>"), ("gpt2", "<|endoftext|>"), ("bert", "[PAD]")])
def test_the_pad_token_is_the_tokenizers_own_or_its_end_of_text(family, pad, make_folder):
    encoder = Encoder.from_folder(make_folder(family), max_tokens=48)
    assert encoder.pad_token == pad
    assert encoder.tokenizer.id_to_token(encoder.pad_id) == pad


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"has no tokenizer\.json"):
        Encoder.from_folder(tmp_path, max_tokens=8)


# ---- long texts


LONG = " ".join(str(i) for i in range(400))


def pieces_of(tokens):
    return [tokens.ids[a:b] for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


@pytest.mark.parametrize("folder", ["tiny_folder", "bert_folder"])
@pytest.mark.parametrize("policy", ["head", "tail", "head_tail", "windows"])
@given(texts=st.lists(UNICODE, max_size=5))
def test_a_text_that_fits_is_read_alike_under_every_policy(policy, texts, folder, request):
    plain = Encoder.from_folder(request.getfixturevalue(folder), max_tokens=120)
    read = plain.reading(policy).encode(texts)
    fits = ~plain.encode(texts).truncated
    assert (read.truncated <= ~fits).all()
    for row in np.flatnonzero(fits):
        own = [piece.tolist() for piece, owner in zip(pieces_of(read), read.rows, strict=True) if owner == row]
        assert own == [plain.encode([texts[row]]).ids.tolist()]


def test_each_policy_reads_its_part_of_a_long_text(encoder, pieces):
    for each, before, after in ((encoder, 0, 0), (pieces, 1, 1)):
        whole = Encoder(each.reading("head").tokenizer, max_tokens=2000).encode([LONG]).ids.tolist()
        whole = whole[before : len(whole) - after]
        room = each.max_tokens - before - after

        def inner(policy, each=each, before=before, after=after):
            tokens = each.reading(policy).encode([LONG])
            assert tokens.lengths.max() <= each.max_tokens
            return [piece.tolist()[before : len(piece) - after] for piece in pieces_of(tokens)]

        assert inner("head") == [whole[:room]]
        assert inner("tail") == [whole[-room:]]
        assert inner("head_tail") == [whole[: room - room // 2] + whole[-(room // 2) :]]
        windows = inner("windows")
        assert len(windows) == MOST_WINDOWS
        assert windows[0] == whole[:room]
        assert windows[-1] == whole[-room:]


@given(length=st.integers(1, 350))
def test_windows_cover_a_text_unless_it_is_counted_as_truncated(length, encoder):
    tokens = encoder.reading("windows").encode(["7" * length])
    assert tokens.rows.tolist() == [0] * len(tokens.lengths)
    assert bool(tokens.truncated[0]) == (length > MOST_WINDOWS * 48)
    assert tokens.sizes[0] >= min(length, MOST_WINDOWS * 48)


def test_pieces_of_texts_are_found_again(encoder):
    tokens = encoder.reading("windows").encode(["short", LONG, "x", LONG])
    found, owners = tokens.pieces(np.array([3, 0, 3]))
    assert tokens.rows[found].tolist() == [3] * 8 + [0] + [3] * 8
    assert owners.tolist() == [0] * 8 + [1] + [2] * 8


def test_logits_of_a_text_are_the_mean_over_its_pieces():
    logits_PC = np.array([[1.0, 3.0], [2.0, 0.0], [4.0, 2.0]], dtype=np.float32)
    assert mean_of_pieces(logits_PC, np.array([0, 1, 1]), texts=2).tolist() == [[1.0, 3.0], [3.0, 1.0]]


@pytest.mark.parametrize("policy", ["head", "tail"])
def test_transformers_cuts_a_long_text_as_the_saved_policy_says(policy, make_folder, tmp_path):
    from transformers import AutoTokenizer

    encoder = Encoder.from_folder(make_folder("bert"), max_tokens=20, long_texts=policy)
    encoder.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(LONG, truncation=True)["input_ids"] == encoder.encode([LONG]).ids.tolist()


# ---- text pairs


def test_a_pair_is_encoded_as_transformers_encodes_pairs(pieces, tmp_path):
    from transformers import AutoTokenizer

    paired = Encoder(pieces.tokenizer, max_tokens=20, pairs=True, settings=pieces.settings)
    paired.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for first, second in (("the room", "was lovely"), ("the room " * 20, "was lovely"), ("", "x")):
        expected = again(first, second, truncation=True)["input_ids"]
        assert paired.encode([f"{first}{PAIR}{second}"]).ids.tolist() == expected
    assert paired.pair_separator_id == pieces.tokenizer.token_to_id("[SEP]")


def test_a_pair_stands_on_two_lines_where_the_tokenizer_knows_no_pairs(encoder):
    paired = Encoder(encoder.tokenizer, max_tokens=48, pairs=True)
    assert paired.encode([f"a{PAIR}b"]).ids.tolist() == paired.encode(["a\nb"]).ids.tolist()
    assert paired.pair_separator_id is None


def test_a_pair_is_not_read_in_windows(encoder):
    with pytest.raises(SettingError, match=r"^model.long_texts is 'windows', which knows single texts only"):
        Encoder(encoder.tokenizer, max_tokens=48, pairs=True).reading("windows").encode([f"a{PAIR}b"])
