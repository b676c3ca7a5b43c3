"""Several labels a text, from a table to answers: each stage does its part without any setting."""

import json

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from tagsmith.cli import app
from tagsmith.data.table import Table
from tagsmith.deployment.bundle import load
from tagsmith.deployment.scoring import score
from tagsmith.errors import DataError, SettingError
from tagsmith.estimator import TextClassifier
from tagsmith.evaluation.thresholds import fit_thresholds
from tagsmith.pipeline import evaluate, train
from tagsmith.tuning.loop import StoppedError

TOPICS = {"price": ["bill", "costs", "cheap"], "staff": ["waiter", "rude"], "food": ["soup", "bread", "tasty"]}
ORDINARY = ["the", "room", "garden", "window", "morning", "train", "evening", "street", "lamp", "river"]
TUNING = {"method": "full", "epochs": 4, "learning_rate": 3e-3, "head_learning_rate": 1e-2}


def sentences(count, *, seed=0):
    """Texts and the topics that they speak of: none, one or more."""
    rng = np.random.default_rng(seed)
    texts, sets = [], []
    for _ in range(count):
        found = [topic for topic, share in zip(TOPICS, (0.45, 0.3, 0.15), strict=True) if rng.random() < share]
        words = [*rng.choice(ORDINARY, 3), *(word for topic in found for word in rng.choice(TOPICS[topic], 2))]
        rng.shuffle(words)
        texts.append(" ".join(map(str, words)))
        sets.append(found)
    return texts, sets


TABLE = Table.of(*sentences(300))


@pytest.fixture(scope="module")
def config(quick_config, bert_folder):
    def make(**sections):
        return quick_config(bert_folder, **({"tuning": TUNING} | sections))

    return make


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, config):
    return train(TABLE, out=tmp_path_factory.mktemp("sets") / "bundle", config=config())


@pytest.fixture
def folder(bundle):
    return str(bundle.folder)


# ---- The report


def test_the_report_keeps_its_shape_and_has_what_sets_need(bundle):
    report = json.loads((bundle.folder / "report.json").read_text(encoding="utf-8"))
    scores = [report["test"], report["before_tuning"], *(report["baselines"][name] for name in ("majority", "tfidf"))]
    for each in scores:
        assert each["kind"] == "multi_label"
        for name in ("accuracy", "micro_f1", "macro_f1", "samples_f1", "hamming_loss", "log_loss", "ece"):
            assert {"value", "low", "high"} <= set(each[name])
        assert [line["label"] for line in each["per_label"]] == report["data"]["labels"] == ["food", "price", "staff"]
        assert np.array(each["confusion"]["counts"]).shape == (3, 2, 2)
        assert np.array(each["confusion"]["counts"]).sum(axis=(1, 2)).tolist() == [each["n"]] * 3
    assert report["verdict"]["measure"] == "micro_f1"
    assert "micro F1" in report["verdict"]["text"]
    assert report["calibration"]["thresholds"]["rows"] == report["data"]["splits"]["validation"]
    assert report["baselines"]["majority"]["micro_f1"]["value"] == 0


def test_tuning_beats_the_untuned_model(bundle):
    assert bundle.report["test"]["log_loss"]["value"] < 0.8 * bundle.report["before_tuning"]["log_loss"]["value"]


def test_the_page_and_the_card_speak_of_label_sets(bundle):
    page = (bundle.folder / "report.html").read_text(encoding="utf-8")
    for said in ("micro F1", "exact sets", "threshold", "missed", "Label by label"):
        assert said in page
    assert "What it confuses" not in page
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert "Micro F1 on" in card
    assert "thresholds" in card


def test_the_metric_decides_by_what_models_are_compared(config, tmp_path):
    settings = config(evaluation={"metric": "accuracy", "resamples": 200}, tuning={"method": "head", "epochs": 1})
    bundle = train(TABLE, out=tmp_path / "b", config=settings)
    assert bundle.report["verdict"]["measure"] == "accuracy"
    assert set(bundle.settings["thresholds"]) == {0.5}


# ---- The bundle


def test_a_loaded_bundle_answers_with_all_labels_from_their_thresholds_on(bundle):
    texts, _ = sentences(40, seed=5)
    loaded = load(bundle.folder)
    probs, thresholds = loaded.predict_proba(texts), loaded.thresholds["model"]
    assert ((probs > 0) & (probs < 1)).all()
    for answer, probs_C, found in zip(loaded.answer(texts), probs, loaded.predict(texts), strict=True):
        expected = tuple(name for name, p, t in zip(loaded.labels, probs_C, thresholds, strict=True) if p >= t)
        assert answer.labels == found == expected
        assert answer.label is None
        assert answer.reason is None
    assert {len(answer.labels) for answer in loaded.answer(texts)} >= {0, 1, 2}


def test_an_empty_text_has_no_answer_and_a_text_without_labels_has_one(bundle):
    assert bundle.predict([" "]) == [None]
    assert bundle.answer([" "])[0].reason == "empty"


def test_an_answer_does_not_depend_on_its_neighbours(bundle):
    texts, _ = sentences(30, seed=6)
    alone = np.concatenate([bundle.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(bundle.predict_proba(texts), alone, atol=1e-5)


def test_the_scores_of_the_report_are_those_of_the_loaded_bundle(bundle, config):
    from tagsmith.data.preparing import prepare

    test = prepare(TABLE, config().data, seed=config().seed).splits.test
    loaded = load(bundle.folder)
    truth = loaded.engine.labels.encode_sets(test.label_sets)
    answers = [set(found) for found in loaded.predict(test.texts)]
    exact = np.mean([found == set(truth) for found, truth in zip(answers, test.label_sets, strict=True)])
    assert exact == pytest.approx(bundle.report["test"]["accuracy"]["value"])
    guess = loaded.predict_proba(test.texts) >= loaded.thresholds["model"]
    assert f1_score(truth, guess, average="macro") == pytest.approx(bundle.report["test"]["macro_f1"]["value"])


def test_thresholds_come_from_validation_rows_alone(bundle, config):
    from tagsmith.data.preparing import prepare

    held = prepare(TABLE, config().data, seed=config().seed).splits.validation
    truth = bundle.engine.labels.encode_sets(held.label_sets)
    for name, probs in bundle.baseline_probabilities(held.texts).items():
        if name == "tfidf":
            expected = fit_thresholds(probs, truth, metric="log_loss").values
            np.testing.assert_allclose(bundle.thresholds[name], expected, atol=1e-9)
    expected = fit_thresholds(bundle.predict_proba(held.texts), truth, metric="log_loss").values
    np.testing.assert_allclose(bundle.thresholds["model"], expected, atol=1e-4)


def test_hugging_face_refuses_what_it_cannot_express(bundle):
    from transformers import pipeline

    assert not (bundle.folder / "config.json").exists()
    with pytest.raises((OSError, ValueError)):
        pipeline("text-classification", model=str(bundle.folder))


def test_weighted_training_undoes_its_weights_when_it_answers(config, tmp_path):
    settings = config(data={"balance": "weights"}, tuning=TUNING | {"epochs": 1})
    bundle = train(TABLE, out=tmp_path / "b", config=settings)
    offset = bundle.settings["calibration"]["offset"]
    assert all(each != 0 for each in offset)
    shares = np.array(list(bundle.settings["data"]["priors"].values()))
    mean = bundle.predict_proba(TABLE.texts).mean(axis=0)
    np.testing.assert_allclose(mean, shares, atol=0.12)


# ---- Resume, and the same bytes


def test_resuming_a_stopped_run_gives_the_bundle_of_an_unstopped_one(bundle, config, tmp_path):
    steps = iter(range(1, 1000))
    with pytest.raises(StoppedError, match="after step 7 of"):
        train(TABLE, out=tmp_path / "b", config=config(), stop=lambda: next(steps) == 7)
    train(TABLE, out=tmp_path / "b", config=config(), resume=True)
    for name in ("report.json", "head.safetensors", "tagsmith.json", "probe.jsonl", "baseline/weights.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (bundle.folder / name).read_bytes(), name


# ---- Measuring on other rows


def test_a_bundle_is_measured_on_new_rows(bundle):
    texts, sets = sentences(60, seed=8)
    report = evaluate(bundle.folder, Table.of(texts, sets)).as_dict()
    truth = bundle.engine.labels.encode_sets(sets)
    guess = bundle.predict_proba(texts) >= bundle.thresholds["model"]
    assert report["test"]["micro_f1"]["value"] == pytest.approx(f1_score(truth, guess, average="micro"))
    assert report["verdict"]["measure"] == "micro_f1"


def test_labels_that_training_did_not_see_are_refused_when_measuring(bundle):
    with pytest.raises(DataError, match=r"Labels not seen in training: \['noise'\]"):
        evaluate(bundle, Table.of(["a lamp", "a bill"], [["noise"], ["price"]]))


def test_rows_with_one_label_can_be_measured_and_sets_cannot_be_where_one_is_answered(bundle, llama_bundle):
    assert evaluate(bundle, Table.of(["a bill", "soup"], ["price", "food"])).test["n"] == 2
    with pytest.raises(DataError, match="lists of labels"):
        evaluate(llama_bundle, Table.of(["a bill", "soup"], [["praise"], []]))


# ---- The command line and files


def test_predict_prints_the_labels_their_probabilities_and_the_text(folder, bundle):
    texts = ["a cheap soup bill tasty bread costs", "the lamp river street", ""]
    lines = CliRunner().invoke(app, ["predict", folder, "--", *texts]).stdout.splitlines()
    for line, text, found in zip(lines, texts, bundle.predict(texts), strict=True):
        cells = line.split("\t")
        assert cells[2] == text
        assert cells[0] == (", ".join(found) if found else "-")
        assert len(cells[1].split(", ")) == max(1, len(found or ()))
    assert lines[2].endswith("(empty)")


def test_predict_as_json_has_labels_probabilities_and_thresholds(folder, bundle):
    said = json.loads(CliRunner().invoke(app, ["predict", folder, "a cheap bill costs", "--json"]).stdout)
    assert said["labels"] == list(bundle.predict(["a cheap bill costs"])[0])
    assert set(said["probabilities"]) == set(said["thresholds"]) == set(bundle.labels)
    assert "label" not in said


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_labelled_table_has_a_list_and_a_column_for_each_label(ending, bundle, tmp_path, save_csv):
    texts = ["a cheap soup bill tasty bread costs", "the lamp river street"]
    source = save_csv(tmp_path / "in.csv", [(text, "x") for text in texts], header=("text", "note"))
    out = tmp_path / f"out{ending}"
    assert score(bundle, source, out=out) == 2
    readers = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}
    frame = readers[ending](out)
    added = ["predicted_labels", "probability_food", "probability_price", "probability_staff", "truncated", "remark"]
    assert frame.columns == ["text", "note", *added]
    found = [list(labels) for labels in bundle.predict(texts)]
    shown = frame["predicted_labels"].to_list()
    assert [(cell or "").split(";") if cell else [] for cell in shown] == found if ending == ".csv" else shown == found
    np.testing.assert_allclose(frame.select("^probability_.*$").to_numpy(), bundle.predict_proba(texts), atol=1e-6)


def test_a_label_with_the_separator_is_refused_in_a_csv(bundle, tmp_path, save_csv, monkeypatch):
    monkeypatch.setattr("tagsmith.deployment.scoring.BETWEEN", "oo")
    source = save_csv(tmp_path / "in.csv", [("a lamp", "x")], header=("text", "note"))
    with pytest.raises(SettingError, match=r"\.jsonl or \.parquet"):
        score(bundle, source, out=tmp_path / "out.csv")


# ---- scikit-learn


@pytest.fixture(scope="module")
def estimator(bert_folder):
    settings = {
        "model": {"layers": "all", "max_tokens": 48},
        "tuning": TUNING | {"epochs": 1, "precision": "fp32"},
        "evaluation": {"resamples": 200},
    }
    return TextClassifier(backbone=str(bert_folder), settings=settings)


@pytest.mark.parametrize("kind", ["lists", "matrix"])
def test_the_estimator_answers_with_a_matrix(kind, estimator):
    texts, sets = sentences(120)
    matrix = np.array([[topic in found for topic in sorted(TOPICS)] for found in sets]).astype(int)
    y = sets if kind == "lists" else matrix
    fitted = estimator.fit(texts, y)
    assert fitted.classes_.tolist() == (sorted(TOPICS) if kind == "lists" else [0, 1, 2])
    guess = fitted.predict(texts)
    assert guess.shape == matrix.shape
    assert fitted.score(texts, y) == pytest.approx((guess == matrix).all(axis=1).mean())
    names = fitted.bundle_.predict(texts)
    assert [[str(fitted.classes_[j]) for j in np.flatnonzero(row)] for row in guess] == [list(found) for found in names]


def test_the_estimator_refuses_what_is_neither_labels_nor_sets(estimator):
    with pytest.raises(DataError, match="mixes labels and lists"):
        estimator.fit(["a", "b"], ["x", ["y"]])
    with pytest.raises(DataError, match="Column 1 of y has no 1"):
        estimator.fit(["a", "b"], np.array([[1, 0], [0, 0]]))


# ---- Real rows


def test_a_little_of_goemotions_trains_and_finds_more_than_nothing(shared_data, config, tmp_path):
    source = tmp_path / "emotions.parquet"
    pl.read_parquet(shared_data / "goemotions" / "train.parquet").sample(2000, seed=1).write_parquet(source)
    # By micro F1 all labels share one threshold: a random backbone is too unsure of any for thresholds of their own,
    # and on a few dozen validation rows of the shared one too, which then stays near 0.5 and answers nothing.
    settings = config(data={"rare_labels": "drop"}, tuning=TUNING | {"epochs": 1}, evaluation={"metric": "micro_f1"})
    report = train(source, out=tmp_path / "b", config=settings).report
    assert len(report["data"]["labels"]) > 20
    assert report["test"]["micro_f1"]["value"] > report["baselines"]["majority"]["micro_f1"]["value"]
    assert report["baselines"]["tfidf"]["micro_f1"]["value"] > 0.25
