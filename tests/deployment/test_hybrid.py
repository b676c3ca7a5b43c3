"""LLM and TF-IDF in one bundle: whatever the route, both answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tagsmith.config import Config
from tagsmith.data.encoding import Tokens
from tagsmith.data.table import Table
from tagsmith.deployment.bundle import load
from tagsmith.deployment.choosing import why_not
from tagsmith.deployment.explaining import explain
from tagsmith.deployment.exporters import export
from tagsmith.deployment.hybrid import Mixer
from tagsmith.deployment.planned import planned_settings
from tagsmith.deployment.torch_engine import TorchEngine
from tagsmith.errors import SettingError
from tagsmith.model.hybrid import Mixing, lexical_logits
from tagsmith.pipeline import evaluate, train

TEXTS = ["the room was lovely and great", "an awful rude waiter", "", "our parcel came in the morning", " "]
SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_csv, quick_config):
    """A bundle in which both sides count for half."""
    tuning = {"epochs": 1, "hybrid": "average", "hybrid_share": 0.5}
    config = quick_config(tuning=tuning, data={"validation_share": 0.2})
    return train(toy_csv, out=tmp_path_factory.mktemp("hybrid") / "bundle", config=config).folder


@pytest.fixture(scope="module")
def bundle(folder):
    return load(folder)


@pytest.fixture(scope="module")
def sides(bundle):
    """The logits of the LLM alone and of TF-IDF, of texts that are answered."""
    engine, texts = bundle.engine, [text for text in TEXTS if text.strip()]
    return engine.scorer.logits(engine.tokens_alone(texts)), lexical_logits(engine.mixer.lexical, texts), texts


def cascade(folder, *, sure):
    """The same classifier as a cascade."""
    engine = load(folder).engine
    mixing = Mixing("cascade", engine.mixer.mixing.llm, engine.mixer.mixing.tfidf, sure=sure, alone=0.8)
    return TorchEngine(engine.classifier, mixer=Mixer(engine.mixer.lexical, mixing))


# ---- What is computed


def test_both_sides_have_a_say(bundle, sides):
    llm, tfidf, texts = sides
    mixing = bundle.engine.mixer.mixing
    assert mixing.llm > 0
    assert mixing.tfidf > 0
    logits = bundle.engine.logits_of(bundle.engine.encode(texts))
    np.testing.assert_allclose(logits, mixing.llm * llm + mixing.tfidf * tfidf, atol=1e-5)


def test_neighbours_and_empty_texts_change_nothing(bundle):
    together = bundle.predict_proba(TEXTS)
    alone = np.concatenate([bundle.predict_proba([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.isnan(together).any(axis=1).tolist() == [False, False, True, False, True]


def test_a_text_is_the_same_text_after_it_was_cut_out_of_a_batch(bundle):
    tokens = bundle.engine.encode(TEXTS)
    order = np.array([3, 0, 2, 1])
    parts = Tokens.joined([tokens.of_texts(np.array([row])) for row in order])
    np.testing.assert_allclose(
        bundle.engine.logits_of(parts), bundle.engine.logits_of(tokens)[order], atol=1e-5, equal_nan=True
    )


def test_the_scores_of_tfidf_travel_to_the_bit(bundle):
    engine = bundle.engine
    texts = [text for text in TEXTS if text.strip()]
    neural, scores = engine.mixer.apart(engine.encode(texts))
    np.testing.assert_array_equal(scores, lexical_logits(engine.mixer.lexical, texts))
    np.testing.assert_array_equal(neural.ids, engine.tokens_alone(texts).ids)


def test_long_texts_in_windows_keep_their_pieces_before_the_scores(bundle):
    classifier = bundle.engine.classifier
    encoder = classifier.encoder
    classifier.encoder = encoder.reading("windows")
    try:
        texts = ["lovely room " * 60, "rude"]
        tokens = bundle.engine.encode(texts)
        neural, _ = bundle.engine.mixer.apart(tokens)
        assert len(neural.rows) == len(tokens.rows) - 2 > 2
        np.testing.assert_array_equal(neural.ids, bundle.engine.tokens_alone(texts).ids)
    finally:
        classifier.encoder = encoder


def test_a_cascade_does_not_ask_the_llm_where_tfidf_is_sure(folder, monkeypatch):
    texts = [text for text in TEXTS if text.strip()]
    engine = load(folder).engine
    scores = lexical_logits(engine.mixer.lexical, texts)
    sure = float(np.sort(np.abs(scores[:, 0] - scores[:, 1]))[1])  # all but one
    engine = cascade(folder, sure=sure)
    asked = []
    compute = engine.scorer.logits
    monkeypatch.setattr(engine.scorer, "logits", lambda tokens: asked.append(len(tokens)) or compute(tokens))
    tokens = engine.encode(TEXTS)
    found = engine.logits_of(tokens)
    assert asked == [1]
    is_sure = engine.mixer.mixing.is_sure(scores)
    assert is_sure.sum() == 2
    np.testing.assert_allclose(found[[0, 1, 3]][is_sure], 0.8 * scores[is_sure], rtol=1e-6)
    assert np.isnan(found[[2, 4]]).all()
    assert tokens.sizes[0] < load(folder).engine.encode(TEXTS).sizes[0]  # and the batcher knows


# ---- The bundle


def test_what_is_measured_is_what_the_saved_bundle_says(bundle, folder, toy_csv):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["model"]["hybrid"]["kind"] == "average"
    assert [each["model"] for each in report["comparisons"]] == ["served", "llm"]
    assert any("answer together" in note for note in report["notes"])
    again = evaluate(folder, toy_csv)
    assert again.test["accuracy"]["value"] > 0.8


def test_a_copy_answers_its_probes(folder):
    from tagsmith.deployment.engine_process import check_probes

    check_probes(folder, load(folder).engine)


def test_settings_of_a_hybrid_repeat_it(folder, toy_csv, tmp_path, bundle):
    again = train(toy_csv, out=tmp_path / "again", config=Config.of(planned_settings(folder)))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), bundle.predict_proba(TEXTS))


def test_few_validation_rows_make_no_stack(toy_csv, tmp_path, quick_config):
    config = quick_config(tuning={"method": "head", "hybrid": "stacking"})
    made = train(toy_csv, out=tmp_path / "b", config=config)
    assert made.settings["hybrid"]["kind"] == "average"
    assert any("needs 200 validation rows" in note for note in made.report["notes"])


@pytest.mark.parametrize("kind", ["average", "stacking", "cascade"])
def test_several_labels_are_answered_together_too(kind, tmp_path, quick_config):
    random = np.random.default_rng(0)
    words = {"price": "cheap", "staff": "rude", "food": "soup"}
    sets = [[label for label in words if random.random() < 0.4] for _ in range(900)]
    texts = [" ".join(["the", *random.choice(["room", "lamp"], 2), *(words[each] for each in own)]) for own in sets]
    config = quick_config(tuning={"method": "head", "hybrid": kind}, data={"validation_share": 0.3})
    made = train(Table.of(texts, sets), out=tmp_path / "b", config=config)
    assert made.settings["hybrid"]["multi_label"]
    assert made.predict(["the cheap soup"]) == [("food", "price")]
    assert [each["model"] for each in made.report["comparisons"]] == ["served", "llm"]


# ---- Routes


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_export_answers_as_the_bundle_and_without_torch(to, folder, bundle, tmp_path):
    found = export(folder, to=to, out=tmp_path / "e").folder
    name = {"onnx": "onnxruntime", "openvino": "openvino"}[to]
    np.testing.assert_allclose(load(found, engine=name).predict_proba(TEXTS), bundle.predict_proba(TEXTS), atol=1e-4)
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'sklearn', 'scipy', 'polars'): sys.modules[name] = None\n"
        "from tagsmith.deployment.engine import open_engine\n"
        f"print([answer.label for answer in open_engine({str(found)!r}, {name!r}).answer({TEXTS!r})])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    assert done.stdout.strip() == str(bundle.predict(TEXTS)), done.stderr


def test_a_server_answers_as_the_bundle(folder, bundle, start):
    texts = [text for text in TEXTS if text.strip()]
    server = start(folder, "--engine", "reference")
    server.wait_until_ready()
    found = server.ask("/predict", {"inputs": [[text] for text in texts]}).json
    best = bundle.predict_proba(texts).max(axis=1)
    np.testing.assert_allclose([max(label["score"] for label in each) for each in found], best, atol=1e-5)


def test_the_baseline_goes_alone_as_of_any_bundle(folder, bundle, tmp_path):
    found = load(export(folder, to="tfidf", out=tmp_path / "t").folder)
    assert "hybrid" not in found.settings
    wanted = bundle.baseline_probabilities(["a rude waiter"])["tfidf"]
    np.testing.assert_allclose(found.predict_proba(["a rude waiter"]), wanted, atol=1e-9)


def test_hugging_face_cannot_express_both_and_says_so(folder, tmp_path):
    with pytest.raises(SettingError, match="an LLM and TF-IDF together"):
        export(folder, to="hf", out=tmp_path / "hf")
    assert not (folder / "model.safetensors").exists()  # its pipeline refuses rather than guesses


def test_words_are_explained_by_leaving_them_out_and_not_by_gradients(bundle):
    (found,) = explain(bundle, ["the room was lovely"])
    most = max(found.spans, key=lambda span: abs(span.weight))
    assert found.text[most.start : most.end].strip() == "lovely"
    with pytest.raises(SettingError, match="by leaving out words"):
        list(explain(bundle, ["the room was lovely"], gradients=True))


def test_an_engine_of_another_package_may_not_answer_with_half_of_it(folder):
    assert "know the LLM alone" in why_not("somebody:s", folder, load(folder).settings)


def test_the_verdict_and_the_card_name_what_answers(folder):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["text"].startswith("The average of TF-IDF and the LLM: ")
    alone = next(each for each in report["comparisons"] if each["model"] == "llm")
    assert "average" not in alone["text"]
    assert "What answers is the average of TF-IDF and the LLM." in (folder / "README.md").read_text(encoding="utf-8")
