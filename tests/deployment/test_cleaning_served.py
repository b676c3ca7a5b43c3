"""Cleaning end to end: the same in training, in every way of answering, and in measuring again."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from tagsmith.data.cleaning import clean_texts
from tagsmith.deployment.bundle import load
from tagsmith.deployment.scoring import score
from tagsmith.deployment.torch_engine import reload
from tagsmith.errors import DataError
from tagsmith.pipeline import evaluate, train

DIRTY = ["<p>lovely   room</p>", "rude&nbsp;waiter\u200b", "<br>"]
CLEAN = ["lovely room", "rude waiter", ""]
STEPS = ("html", "invisible", "spaces")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_rows, save_csv, quick_config):
    rows = [(f"<p>{text}</p> " if i % 3 else text, label) for i, (text, label) in enumerate(toy_rows)]
    rows.append(("<br>", "praise"))
    source = save_csv(tmp_path_factory.mktemp("dirty") / "reviews.csv", rows)
    config = quick_config(data={"clean": STEPS}, tuning={"epochs": 1})
    return train(source, out=tmp_path_factory.mktemp("cleaned") / "bundle", config=config).folder


@pytest.fixture(scope="module")
def bundle(folder):
    return load(folder)


def test_the_bundle_keeps_the_steps_and_the_report_their_counts(bundle):
    assert bundle.settings["cleaning"] == list(STEPS)
    told = {change["step"]: change for change in bundle.report["data"]["history"]}
    assert "in 161 rows" in told["clean: html"]["reason"]
    assert "1 rows" in told["drop"]["reason"]
    assert bundle.report["data"]["rows"] == 241


def test_the_card_says_what_a_user_of_another_library_must_do(bundle):
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert "clean_texts(texts, ['html', 'invisible', 'spaces'])" in card


def test_every_way_of_answering_sees_cleaned_text(bundle, tmp_path, save_csv):
    expected = bundle.engine.scorer.probabilities(CLEAN)[0]
    np.testing.assert_array_equal(bundle.predict_proba(DIRTY), expected)
    answers = bundle.answer(DIRTY)
    assert [answer.reason for answer in answers] == [None, None, "empty"]
    np.testing.assert_array_equal([answer.probabilities for answer in answers[:2]], expected[:2])
    dirty, clean = (bundle.engine.encode(texts[:2]) for texts in (DIRTY, CLEAN))
    np.testing.assert_array_equal(bundle.engine.logits_of(dirty), bundle.engine.logits_of(clean))
    for name, probs_NC in bundle.baseline_probabilities(DIRTY).items():
        np.testing.assert_array_equal(probs_NC, bundle.baseline_probabilities(CLEAN)[name])
    score(bundle, save_csv(tmp_path / "in.csv", [[text] for text in DIRTY], header=["text"]), out=tmp_path / "o.jsonl")
    scored = pl.read_ndjson(tmp_path / "o.jsonl")
    assert scored["text"].to_list() == DIRTY
    assert scored["predicted_label"].to_list() == bundle.predict(CLEAN)


def test_dirty_rows_measure_as_clean_ones(bundle, tmp_path, save_csv, make_rows):
    rows = make_rows(40, seed=5)
    clean = save_csv(tmp_path / "clean.csv", rows)
    dirty = save_csv(tmp_path / "dirty.csv", [(f"<div>{text}\u200b</div>", label) for text, label in rows])
    assert evaluate(bundle, clean).test == evaluate(bundle, dirty).test


def test_a_bundle_from_before_cleaning_cleans_nothing(folder, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    settings = json.loads((old / "tagsmith.json").read_text(encoding="utf-8"))
    del settings["cleaning"]
    (old / "tagsmith.json").write_text(json.dumps(settings), encoding="utf-8")
    loaded = reload(old)
    np.testing.assert_array_equal(loaded.predict_proba(DIRTY), loaded.engine.scorer.probabilities(DIRTY)[0])


def test_cleaning_is_off_by_default(llama_bundle):
    settings = json.loads((llama_bundle / "tagsmith.json").read_text(encoding="utf-8"))
    assert settings["cleaning"] == []
    assert "cleaned" not in (llama_bundle / "README.md").read_text(encoding="utf-8")


def test_a_table_of_which_cleaning_leaves_nothing_is_refused(tmp_path, save_csv, quick_config):
    source = save_csv(tmp_path / "tags.csv", [("<p>", "a"), ("<br>", "b")] * 9)
    with pytest.raises(DataError, match=r"Cleaning \(html\) leaves no text"):
        train(source, out=tmp_path / "out", config=quick_config(data={"clean": "html"}))
    assert clean_texts(["<p>"], ["html"]) == ["\n"]
