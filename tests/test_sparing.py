"""How many further answers a report may ask for, and of whom."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tagsmith.deployment.bundle import load
from tagsmith.deployment.engine import probabilities
from tagsmith.sparing import DAMAGED, SHORTENED, Spare, quick_engine, trained_tokens


@pytest.fixture
def bundle(llama_bundle):
    return load(llama_bundle)


def _plan(*, above: int, frozen: int = 10_000, steps: int = 40_000):
    counts = {"tokens": {"frozen": frozen, "steps": steps}}
    return SimpleNamespace(depth=4, blocks_above=above, as_dict=lambda: counts)


def test_a_training_counts_frozen_blocks_once_and_tuned_ones_in_each_epoch():
    assert trained_tokens(_plan(above=1)) == 10_000 * 3 / 4 + 3 * 40_000 / 4
    assert trained_tokens(_plan(above=4, frozen=0)) == 3 * 40_000


def test_what_may_be_asked_is_a_small_share_of_what_was_trained(bundle):
    spare = Spare.of(bundle, _plan(above=1))
    assert spare.damaged == round(DAMAGED * 37_500)
    assert spare.shortened == round(SHORTENED * 37_500)


def test_fewer_questions_are_asked_before_texts_go_unexplained(bundle):
    texts = ["one two three four five six"] * 10
    spare = replace(Spare.of(bundle, None), damaged=0)
    size = int(spare.sizes(texts[:1])[0])
    assert replace(spare, shortened=10 * size * 25).questions(texts, most=24) == (10, 24)
    assert replace(spare, shortened=10 * size * 13).questions(texts, most=24) == (10, 12)
    assert replace(spare, shortened=4 * size * 9).questions(texts, most=24) == (4, 8)
    assert replace(spare, shortened=0).questions(texts, most=24) == (1, 8)


@pytest.mark.parametrize(("tokens", "rows"), [(0, 8), (10**9, 400)])
def test_damaged_rows_stay_within_bounds(bundle, tokens, rows):
    assert replace(Spare.of(bundle, None), damaged=tokens).rows(["a text"] * 3, kinds=4) == rows


def test_bf16_answers_where_its_gate_was_passed_and_the_processor_is_faster_in_it(bundle, monkeypatch):
    texts = ["call me later", "you won a prize"]
    gated = replace(bundle, settings={**bundle.settings, "engines": {"torch-bf16": {"passed": True}}})
    refused = replace(bundle, settings={**bundle.settings, "engines": {"torch-bf16": {"passed": False}}})
    monkeypatch.setattr("tagsmith.model.device.bf16_is_faster", lambda: True)
    assert quick_engine(refused) is refused.engine
    quick = quick_engine(gated)
    assert quick.name == "torch-bf16"
    np.testing.assert_allclose(probabilities(quick, texts), gated.predict_proba(texts), atol=0.05)
    monkeypatch.setattr("tagsmith.model.device.bf16_is_faster", lambda: False)
    assert quick_engine(gated) is gated.engine
