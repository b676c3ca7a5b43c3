"""Which label is answered, from the settings to every way of asking a saved bundle."""

import json

import numpy as np
import pytest

from tagsmith.deployment.bundle import load
from tagsmith.deployment.classifying import About, ranked, result_of
from tagsmith.deployment.engine import open_engine
from tagsmith.deployment.engine_process import _describe
from tagsmith.deployment.exporters import export
from tagsmith.errors import SettingError
from tagsmith.evaluation.report_schema import ReportKeys
from tagsmith.model.decision import Decision
from tagsmith.pipeline import evaluate, train

QUICK = {"tuning": {"method": "head", "epochs": 3}, "data": {"validation_share": 0.3, "near_duplicates": 1.0}}
COSTS = {"praise": {"complaint": 1.0}, "complaint": {"praise": 8.0}}


def mixed(count, *, seed):
    """Texts of six words; one in six is a complaint, and has more of the sour ones, but not only those."""
    random, rows = np.random.default_rng(seed), []
    for number in range(count):
        label = "complaint" if random.random() < 1 / 6 else "praise"
        is_sour = random.random(6) < (0.6 if label == "complaint" else 0.4)
        rows.append((" ".join(["awful" if each else "lovely" for each in is_sour]) + f" {number}", label))
    return rows


@pytest.fixture(scope="module")
def uneven_csv(tmp_path_factory, save_csv):
    """700 rows, few of them complaints."""
    return save_csv(tmp_path_factory.mktemp("uneven") / "rows.csv", mixed(700, seed=0))


@pytest.fixture(scope="module")
def balanced(tmp_path_factory, uneven_csv, quick_config, bert_folder):
    """A bundle for balanced accuracy."""
    config = quick_config(bert_folder, **QUICK | {"evaluation": {"metric": "balanced_accuracy", "resamples": 200}})
    return train(uneven_csv, out=tmp_path_factory.mktemp("balanced") / "bundle", config=config)


@pytest.fixture(scope="module")
def cheap(tmp_path_factory, uneven_csv, quick_config, bert_folder):
    """A bundle that answers what costs least."""
    config = quick_config(bert_folder, **QUICK | {"evaluation": {"costs": COSTS, "resamples": 200}})
    return train(uneven_csv, out=tmp_path_factory.mktemp("cheap") / "bundle", config=config)


def unlike(bundle, texts):
    """How many texts are answered otherwise than by the likeliest label."""
    probs = bundle.predict_proba(texts)
    likeliest = [bundle.labels[i] for i in probs.argmax(axis=1)]
    return sum(a != b for a, b in zip(bundle.predict(texts), likeliest, strict=True))


@pytest.mark.parametrize("kind", ["balanced", "cheap"])
def test_every_way_of_asking_gives_the_same_label(request, kind, tmp_path):
    bundle = request.getfixturevalue(kind)
    texts = [text for text, _ in mixed(120, seed=9)]
    loaded = load(bundle.folder)
    expected = loaded.predict(texts)
    assert unlike(loaded, texts) > 0
    engine = open_engine(bundle.folder, "reference")
    about = About.of("m", json.loads(json.dumps(_describe(bundle.folder, engine))))
    logits = engine.logits_of(engine.encode(texts))
    probs = engine.probabilities_of(logits)
    served = [result_of(about, *each, tokens=1, truncated=False) for each in zip(probs, logits, strict=True)]
    assert [each.label for each in served] == expected
    assert [ranked(each, about)[0]["label"] for each in served] == expected
    exported = open_engine(export(bundle.folder, to="onnx", out=tmp_path / "onnx").folder, "onnxruntime")
    answers = exported.answer(texts)
    apart = [i for i, each in enumerate(answers) if each.label != expected[i]]
    assert all(engine.thresholds.margins(probs[[i]])[0] <= 2e-4 for i in apart)
    # what is shown stays calibrated: the probability of the label that is answered
    assert answers[0].probability == pytest.approx(probs[0][bundle.labels.index(answers[0].label)], abs=1e-4)


def test_the_report_measures_what_is_answered_and_says_so(balanced, uneven_csv):
    report = balanced.report
    ReportKeys.model_validate(json.loads((balanced.folder / "report.json").read_text()), strict=False)
    about = report["calibration"]["decision"]
    assert about["kind"] == "prior"
    assert about["out_of_fold"]["after"] > about["out_of_fold"]["before"]
    assert about["text"] in report["notes"]
    assert report["verdict"]["measure"] == "balanced_accuracy"
    table = report["score_table"]
    probs = np.array(table["probabilities"])
    assert (np.array(table["answer"]) != probs.argmax(axis=1)).any()
    assert report["test"]["accuracy"]["value"] == pytest.approx(np.mean(np.equal(table["answer"], table["truth"])))
    again = evaluate(balanced, uneven_csv)
    assert again.test["confusion"]["counts"] != report["test"]["confusion"]["counts"]
    assert "prior" in (balanced.folder / "tagsmith.json").read_text()


def test_costs_are_lower_than_those_of_the_likeliest_label(cheap):
    found = cheap.report["expected_cost"]
    assert found["model"] == found["cheapest_answers"]
    assert cheap.report["calibration"]["decision"]["kind"] == "costs"
    assert cheap.report["verdict"]["measure"] == "accuracy"


def test_hugging_face_is_refused_what_it_cannot_say(cheap, tmp_path):
    with pytest.raises(SettingError, match="it does not answer the likeliest label"):
        export(cheap.folder, to="hf", out=tmp_path / "hf")


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_the_likeliest_label_is_answered_by_default(metric, tmp_path, uneven_csv, quick_config):
    config = quick_config(**QUICK | {"evaluation": {"metric": metric, "resamples": 200}})
    bundle = train(uneven_csv, out=tmp_path / "bundle", config=config)
    assert bundle.engine.thresholds is None
    assert unlike(bundle, [text for text, _ in mixed(50, seed=2)]) == 0
    assert bundle.report["calibration"].get("decision") is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"rule": "costs"}, "evaluation.costs is empty"),
        ({"rule": "prior"}, "fitted for macro_f1 or balanced_accuracy"),
        ({"rule": "prior", "metric": "macro_f1", "coverage": 0.5}, "bounds are proven of the likeliest label"),
    ],
)
def test_a_rule_that_cannot_be_had_is_refused_before_training(asked, told, tmp_path, uneven_csv, quick_config):
    with pytest.raises(SettingError, match=told):
        train(uneven_csv, out=tmp_path / "bundle", config=quick_config(evaluation=asked))


def test_a_decision_needs_the_shares(balanced):
    assert isinstance(balanced.engine.thresholds, Decision)
    assert len(balanced.engine.thresholds.gains) == 2
