import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.config import ModelConfig
from tagsmith.data.encoding import Tokens
from tagsmith.events import listened, silent
from tagsmith.labels import Labels
from tagsmith.model import activations
from tagsmith.model.activations import FrozenBlocks, frozen_states
from tagsmith.model.beginnings import alike, computed_tokens, tree_of
from tagsmith.model.classifier import build
from tagsmith.model.layout import Layout

TEXTS = [
    "the waiter was rude",
    "the waiter was rude and the soup was cold",
    "the waiter was kind",
    "the waiter",
    "a",
    "the soup was lukewarm",
    "the waiter was rude and the soup was warm " * 2,
    "the waiter was rude and the soup was warm " * 2 + "!",
]
ROWS = st.lists(st.lists(st.integers(0, 2), max_size=8), min_size=1, max_size=30)


def tokens_of(texts):
    ids = np.array([i for text in texts for i in text], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return Tokens(ids, offsets, np.arange(len(texts)), np.zeros(len(texts), dtype=bool))


@given(ROWS)
def test_every_token_finds_itself_behind_the_same_ones(texts):
    tokens = tokens_of(texts)
    tree = tree_of(tokens.ids, tokens.lengths)
    if tree is None:
        return
    assert len(tree.kept) < len(tokens.ids)
    assert sorted(set(tree.nodes.tolist())) == list(range(len(tree.kept)))
    kept = tokens.ids[tree.kept]
    np.testing.assert_array_equal(kept[tree.nodes], tokens.ids)
    histories = {}
    for text, start in zip(texts, tokens.offsets[:-1], strict=True):
        for place in range(len(text)):
            node = int(tree.nodes[start + place])
            assert histories.setdefault(node, text[: place + 1]) == text[: place + 1]


def test_texts_without_a_common_beginning_are_no_tree():
    tokens = tokens_of([[1, 2, 3], [2, 2, 3], [3]])
    assert tree_of(tokens.ids, tokens.lengths) is None


def test_a_text_that_begins_another_costs_nothing():
    tokens = tokens_of([[1, 2], [1, 2, 3], [1, 2, 3, 4]])
    tree = tree_of(tokens.ids, tokens.lengths)
    assert tree.kept.tolist() == [0, 1, 4, 8]
    assert tree.nodes.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]


@given(ROWS, st.integers(1, 40))
def test_batches_hold_every_piece_once_within_the_budget(texts, budget):
    tokens = tokens_of(texts)
    batches = alike(tokens, np.arange(len(texts)), tokens_per_batch=budget, shares=True)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(texts)))
    for batch in batches:
        own = tokens.lengths[batch]
        assert len(batch) == 1 or computed_tokens(tokens, [batch], shares=True) <= budget
        assert len(batch) == 1 or own.max() * len(batch) <= 4 * budget


def test_like_beginnings_come_together_and_are_counted_once():
    texts = [[i, 0, 0, 0, 0, 0, 0, j] for j in range(8) for i in range(8)]
    tokens, pieces = tokens_of(texts), np.arange(64)
    shared = alike(tokens, pieces, tokens_per_batch=64, shares=True)
    apart = alike(tokens, pieces, tokens_per_batch=64, shares=False)
    assert computed_tokens(tokens, shared, shares=True) < 0.35 * computed_tokens(tokens, apart, shares=False)


def test_a_layout_says_where_shared_tokens_stand():
    nodes = torch.tensor([0, 1, 0, 1, 2, 0, 3])  # "ab", "abc", "ad" in a row of four tokens
    layout = Layout(torch.tensor([2, 3, 2]), (1, 4), nodes)
    assert layout.positions.tolist() == [[0, 1, 2, 1]]
    assert layout.lasts[1].tolist() == [1, 2, 3]
    assert layout.firsts[1].tolist() == [0, 0, 0]
    row = torch.tensor([10.0, 11.0, 12.0, 13.0]).view(1, 1, 4, 1)
    lines = layout.as_rectangle(row)
    assert lines[:, 0, :, 0].tolist() == [[10, 11, 11], [10, 11, 12], [10, 13, 13]]
    assert torch.equal(layout.as_row(lines.transpose(1, 2))[0, :, 0, 0], row.flatten())


@pytest.fixture(params=["llama", "mistral", "gpt2", "bert"])
def classifier(request, make_folder):
    config = ModelConfig(max_tokens=100)
    folder = make_folder(request.param)
    return build(folder, config, labels=Labels.of(["a", "b"]), layers=None, seed=0).eval().requires_grad_(False)


def test_states_are_those_of_texts_computed_apart(classifier, monkeypatch):
    tokens = classifier.encoder.encode(TEXTS)
    frozen = FrozenBlocks(classifier.backbone, stop=3, dtype=torch.float32)
    entered = []
    through = FrozenBlocks._through
    monkeypatch.setattr(
        FrozenBlocks, "_through", lambda self, ids, *rest: entered.append(ids.shape[1]) or through(self, ids, *rest)
    )
    shared = listened(frozen_states(frozen, tokens), silent)
    computed = sum(entered)
    entered.clear()
    monkeypatch.setattr(activations.Backbone, "shares_beginnings", False)
    apart = listened(frozen_states(frozen, tokens), silent)
    torch.testing.assert_close(shared.hidden_TD, apart.hidden_TD, atol=1e-5, rtol=1e-5)
    assert (computed < sum(entered)) == classifier.backbone.causal


def test_a_model_without_a_causal_mask_shares_nothing(make_folder):
    labels = Labels.of(["a", "b"])
    causal, free = (
        build(
            make_folder("llama"),
            ModelConfig(causal_mask=causal_mask, max_tokens=100),
            labels=labels,
            layers=None,
            seed=0,
        ).backbone
        for causal_mask in (True, False)
    )
    assert causal.shares_beginnings
    assert not free.shares_beginnings


@given(ROWS, st.integers(1, 40))
def test_as_many_tokens_are_counted_as_trees_have_nodes(texts, budget):
    tokens = tokens_of(texts)
    batches = alike(tokens, np.arange(len(texts)), tokens_per_batch=budget, shares=True)
    trees = [tree_of(tokens.ragged(batch)[0][0], tokens.lengths[batch]) for batch in batches]
    nodes = [
        tokens.lengths[batch].sum() if tree is None else len(tree.kept)
        for tree, batch in zip(trees, batches, strict=True)
    ]
    assert computed_tokens(tokens, batches, shares=True) == sum(nodes)
