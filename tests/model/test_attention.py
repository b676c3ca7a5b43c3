import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagsmith.data.encoding import Encoder
from tagsmith.data.pairs import PAIR
from tagsmith.model import attention
from tagsmith.model.attention import SHORT, _is_short, _written_out
from tagsmith.model.backbone import FAMILIES, Backbone, load_backbone
from tagsmith.model.layout import Layout
from tagsmith.model.packing import inference_copy
from tagsmith.model.pooling import POOLINGS, pool

ALL = sorted(set(FAMILIES) - {"xlm-roberta"})  # RoBERTa's code with another vocabulary
WITH_LAST_ROW = ["llama", "qwen2", "qwen3", "gpt2"]
LENGTHS = st.lists(st.integers(1, 14), min_size=1, max_size=6)
MIXED = [9, 4, 1, 9]


@pytest.fixture(scope="module")
def backbones(make_trunk):
    return {family: Backbone(make_trunk(family)) for family in ALL}


def some_ids(lengths, *, behind=0):
    """The same ids twice: in a rectangle with zeros as padding, and in a row with some zeros behind."""
    generator = torch.Generator().manual_seed(sum(lengths))
    texts = [torch.randint(3, 100, (length,), generator=generator) for length in lengths]
    rectangle = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    row = torch.cat([*texts, torch.zeros(behind, dtype=torch.int64)])[None]
    return rectangle, row, torch.tensor(lengths)


def states_of(backbone, ids, lengths, **options):
    hidden = backbone.embed(ids, lengths)
    return backbone.run(hidden, backbone.context(hidden, lengths), start=0, stop=backbone.depth, **options)


def assert_same_texts(row, rectangle, lengths, *, atol=1e-5):
    start = 0
    for line, length in zip(rectangle, lengths.tolist(), strict=True):
        torch.testing.assert_close(row[0, start : start + length], line[:length], atol=atol, rtol=atol)
        start += length


@pytest.mark.parametrize("family", ALL)
@settings(max_examples=15)
@given(lengths=LENGTHS, behind=st.integers(0, 7))
@torch.no_grad()
def test_texts_in_a_row_have_the_states_that_they_have_in_a_rectangle(family, lengths, behind, backbones):
    rectangle, row, lengths_B = some_ids(lengths, behind=behind)
    backbone = backbones[family]
    assert_same_texts(states_of(backbone, row, lengths_B), states_of(backbone, rectangle, lengths_B), lengths_B)


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_states_are_those_of_hugging_faces_own_attention(family, make_trunk, backbones):
    rectangle, row, lengths_B = some_ids(MIXED)
    theirs = make_trunk(family)
    real = torch.arange(9)[None] < lengths_B[:, None]
    ids = torch.where(real, rectangle, torch.tensor(getattr(theirs.config, "pad_token_id", 0) or 0))
    expected = theirs(input_ids=ids, attention_mask=real.long()).last_hidden_state
    backbone = backbones[family]
    assert theirs.config._attn_implementation != backbone.config._attn_implementation
    assert_same_texts(backbone.final_norm(states_of(backbone, row, lengths_B)), expected, lengths_B)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "bert", "modernbert"])
def test_texts_in_a_row_give_the_gradients_that_they_give_in_a_rectangle(family, make_trunk):
    backbone = Backbone(make_trunk(family))
    rectangle, row, lengths_B = some_ids(MIXED, behind=5)
    gradients = []
    for ids in (rectangle, row):
        backbone.zero_grad()
        pool(states_of(backbone, ids, lengths_B), lengths_B, how="mean").square().sum().backward()
        gradients.append([weight.grad.clone() for weight in backbone.blocks.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", POOLINGS)
@given(lengths=LENGTHS, behind=st.integers(0, 3))
def test_pooling_reads_a_row_as_a_rectangle(how, lengths, behind):
    states = [torch.randn(length, 3, generator=torch.Generator().manual_seed(length)) for length in lengths]
    lengths_B = torch.tensor(lengths)
    row = torch.cat([*states, torch.full((behind, 3), 9.0)])[None]
    rectangle = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    torch.testing.assert_close(pool(row, lengths_B, how=how), pool(rectangle, lengths_B, how=how))


@pytest.mark.parametrize("packed", [False, True], ids=["own blocks", "packed blocks"])
@pytest.mark.parametrize("family", WITH_LAST_ROW)
@settings(max_examples=8)
@given(lengths=LENGTHS, behind=st.integers(0, 7))
@torch.no_grad()
def test_the_last_block_on_one_row_per_text_reads_a_row_too(family, packed, lengths, behind, backbones):
    backbone = backbones[family]
    _, row, lengths_B = some_ids(lengths, behind=behind)
    hidden = backbone.embed(row, lengths_B)
    context = backbone.context(hidden, lengths_B)
    whole = pool(backbone.run(hidden, context, start=2, stop=3), lengths_B, how="last")
    block = inference_copy(backbone.blocks[2:], dtype=torch.float32)[0] if packed else backbone.blocks[2]
    torch.testing.assert_close(backbone.run_last_row(hidden, context, block), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_second_text_of_each_pair_in_a_row_has_its_type(bert_folder):
    encoder = Encoder.from_folder(bert_folder, max_tokens=48, pairs=True)
    backbone = load_backbone(bert_folder)
    backbone.pair_separator_id = encoder.pair_separator_id
    tokens = encoder.encode([f"the room{PAIR}was lovely", "one text only", f"a{PAIR}b"])
    ids_BL, lengths = (torch.from_numpy(each) for each in tokens.padded(np.arange(3)))
    row = torch.from_numpy(tokens.ids).long()[None]
    assert_same_texts(backbone.embed(row, lengths), backbone.embed(ids_BL, lengths), lengths)


# ---- The kernel of an accelerator, by what its documentation says of it


def documented_varlen(query, key, value, starts, key_starts, longest, longest_key, *, scale, window_size, enable_gqa):
    """`torch.nn.attention.varlen.varlen_attn` text by text: a window of (left, right), -1 for no bound."""
    assert enable_gqa and torch.equal(starts, key_starts) and starts.dtype == torch.int32
    assert longest == longest_key == int(starts.diff().max())
    left, right = window_size
    found = torch.full_like(query, float("nan"))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        ahead = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        seen = (ahead >= (-left if left >= 0 else -end)) & (ahead <= (right if right >= 0 else end))
        text = [states[start:end].transpose(0, 1) for states in (query, key, value)]
        attended = torch.nn.functional.scaled_dot_product_attention(*text, attn_mask=seen, scale=scale, enable_gqa=True)
        found[start:end] = attended.transpose(0, 1)
    return found


@pytest.mark.parametrize("family", sorted(set(ALL) - {"gemma2"}))
@torch.no_grad()
def test_the_kernel_is_asked_for_what_the_rectangle_computes(family, backbones, monkeypatch):
    backbone = backbones[family]
    rectangle, row, lengths_B = some_ids([13, 9, 4, 1])
    expected = states_of(backbone, rectangle, lengths_B)
    monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
    assert_same_texts(states_of(backbone, row, lengths_B), expected, lengths_B)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["own keys", "shared keys"])
def test_the_kernel_of_this_pytorch_takes_what_it_is_given(heads, monkeypatch):
    """There need be no GPU: tensors that hold nothing know what shape the kernel and its way back give them."""
    monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    monkeypatch.setattr(attention, "_dtype_of", lambda query: query.dtype)  # there is no autocast for such tensors
    options = {"device": "meta", "dtype": torch.bfloat16, "requires_grad": True}
    query, key, value = (torch.randn(1, count, 14, 8, **options) for count in (heads[0], heads[1], heads[1]))
    layout = Layout(torch.tensor([9, 4, 1], device="meta"), (1, 14))
    layout.__dict__["longest"] = 9  # lengths that hold nothing have no largest
    ragged = attention.Ragged(layout, attention.Reach(before=4, after=0), attention.CAUSAL)
    attended, _ = attention.attend(torch.nn.Identity(), query, key, value, ragged, scaling=0.5)
    attended.sum().backward()
    assert attended.shape == (1, 14, heads[0], 8)
    assert [states.grad.shape for states in (query, key, value)] == [states.shape for states in (query, key, value)]


@torch.no_grad()
def test_the_kernel_is_given_half_precision_by_autocast(backbones, monkeypatch):
    """Rotated queries leave autocast in fp32, and it does not know the kernel."""
    seen = []
    monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda *given, **_: seen.append(given) or given[0])
    _, row, lengths_B = some_ids(MIXED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states_of(backbones["llama"], row, lengths_B)
    assert {states.dtype for given in seen for states in given[:3]} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_the_kernel_is_left_alone_where_it_cannot_do_it(family, make_trunk, monkeypatch):
    """It knows no dropout, which GPT-2 has in training, and does not cap scores, as Gemma 2 does."""
    backbone = Backbone(make_trunk(family)).train()
    _, row, lengths_B = some_ids(MIXED)
    monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", None)
    assert torch.isfinite(states_of(backbone, row, lengths_B)).all()


def test_there_is_no_kernel_on_the_cpu():
    assert not attention.has_kernel(torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16))


# ---- Layout


@given(lengths=LENGTHS, behind=st.integers(0, 7))
def test_a_row_becomes_a_rectangle_and_a_row_again(lengths, behind):
    lengths_B, total = torch.tensor(lengths), sum(lengths)
    row = torch.arange(1.0, total + behind + 1).reshape(1, 1, -1, 1)
    layout = Layout(lengths_B, (1, total + behind))
    rectangle = layout.as_rectangle(row)
    assert torch.equal(
        rectangle[:, 0, :, 0][layout.real] if layout.ragged else rectangle[0, 0, :total, 0], row.flatten()[:total]
    )
    if layout.ragged:
        assert torch.equal(layout.as_row(rectangle.transpose(1, 2)).flatten()[:total], row.flatten()[:total])


@pytest.mark.parametrize("masked", ["causal", "bool", "added", "nothing"])
@pytest.mark.parametrize("heads", [4, 2], ids=["own keys", "shared keys"])
def test_attention_written_out_is_that_of_sdpa_with_its_gradients(masked, heads):
    random = torch.Generator().manual_seed(3)
    query = torch.randn(3, 4, 7, 8, generator=random, requires_grad=True)
    key, value = (torch.randn(3, heads, 7, 8, generator=random, requires_grad=True) for _ in range(2))
    seen = torch.rand(3, 1, 7, 7, generator=random) < 0.7
    seen[..., 0] = True
    mask = {"bool": seen, "added": torch.randn(3, 1, 7, 7, generator=random)}.get(masked)
    causal = masked == "causal"
    found = _written_out(query, key, value, mask, causal=causal, dropout=0.0, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    learnt = torch.randn(found.shape, generator=random)
    ours, theirs = (torch.autograd.grad((each * learnt).sum(), (query, key, value)) for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_short_texts_are_written_out_where_they_learn_and_long_ones_are_not():
    short, long = (torch.zeros(1, 1, length, 8) for length in (SHORT, SHORT + 1))
    assert not _is_short(short)
    assert _is_short(short.requires_grad_())
    assert _is_short(short.detach().bfloat16())
    assert not _is_short(long.requires_grad_())


# ---- Without the causal mask

DECODERS = ["llama", "mistral", "gemma2", "gemma3_text", "gpt2"]


@pytest.fixture(scope="module")
def two_sided(make_trunk):
    made = {family: Backbone(make_trunk(family)) for family in DECODERS}
    for backbone in made.values():
        backbone.causal_mask = False
    return made


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_without_the_mask_a_token_sees_what_comes_after_it(family, backbones, two_sided):
    rectangle, _, lengths_B = some_ids(MIXED)
    changed = rectangle.clone()
    changed[:, 1] = 200
    for backbone, reads_on in ((backbones[family], False), (two_sided[family], True)):
        first, other = (states_of(backbone, ids, lengths_B)[0, 0] for ids in (rectangle, changed))
        assert torch.equal(first, other) is not reads_on


@pytest.mark.parametrize("family", DECODERS)
@settings(max_examples=10)
@given(lengths=LENGTHS, behind=st.integers(0, 7))
@torch.no_grad()
def test_without_the_mask_neighbours_and_padding_change_nothing(family, lengths, behind, two_sided):
    rectangle, row, lengths_B = some_ids(lengths, behind=behind)
    backbone = two_sided[family]
    together = states_of(backbone, rectangle, lengths_B)
    assert_same_texts(states_of(backbone, row, lengths_B), together, lengths_B)
    alone = states_of(backbone, rectangle[:1, : lengths[0]], lengths_B[:1])
    torch.testing.assert_close(together[0, : lengths[0]], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_without_the_mask_states_are_those_of_hugging_face_told_to_see_everything(family, make_trunk, two_sided):
    rectangle, row, lengths_B = some_ids([9])
    theirs = make_trunk(family)
    everything = torch.zeros(1, 1, 9, 9)
    expected = theirs(input_ids=rectangle, attention_mask=everything).last_hidden_state
    backbone = two_sided[family]
    assert_same_texts(backbone.final_norm(states_of(backbone, row, lengths_B)), expected, lengths_B)


@pytest.mark.parametrize("family", WITH_LAST_ROW)
@torch.no_grad()
def test_without_the_mask_the_last_row_still_equals_the_whole_block(family, make_trunk):
    backbone = Backbone(make_trunk(family))
    backbone.causal_mask = False
    _, row, lengths_B = some_ids(MIXED)
    hidden = backbone.embed(row, lengths_B)
    context = backbone.context(hidden, lengths_B)
    whole = pool(backbone.run(hidden, context, start=2, stop=3), lengths_B, how="last")
    torch.testing.assert_close(backbone.run_last_row(hidden, context, backbone.blocks[2]), whole, atol=1e-5, rtol=1e-5)
