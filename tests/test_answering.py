"""What turns logits into answers, from the settings to the answers of a saved bundle."""

import json

import numpy as np
import pytest

from tagsmith.deployment.bundle import load
from tagsmith.deployment.engine import Answer
from tagsmith.errors import SettingError
from tagsmith.pipeline import evaluate, train

QUICK = {"tuning": {"method": "head"}, "data": {"validation_share": 0.3}}


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory, make_rows, save_csv):
    """1,500 rows, so that there are calibration rows; one in eight has the wrong label."""
    random = np.random.default_rng(0)
    rows = [(f"{text} {i}", label) for i, (text, label) in enumerate(make_rows(1500, seed=3))]
    other = {"praise": "complaint", "complaint": "praise"}
    rows = [(text, other[label] if random.random() < 0.12 else label) for text, label in rows]
    return save_csv(tmp_path_factory.mktemp("many") / "rows.csv", rows)


@pytest.fixture(scope="module")
def abstaining(tmp_path_factory, many_rows, quick_config):
    """A bundle that answers half of its texts."""
    config = quick_config(**QUICK | {"evaluation": {"coverage": 0.5, "resamples": 200}})
    return train(many_rows, out=tmp_path_factory.mktemp("half") / "bundle", config=config)


def test_a_bundle_says_nothing_where_it_is_not_sure(abstaining, make_rows):
    texts = [text for text, _ in make_rows(200, seed=9)]
    answers = load(abstaining.folder).answer(texts)
    kept = np.array([not answer.abstained for answer in answers])
    assert 0.2 < kept.mean() < 0.8
    for answer, is_kept in zip(answers, kept, strict=True):
        assert (answer.label is not None) == is_kept
        assert len(answer.probabilities) == 2
    surety = [abs(np.log(a.probabilities[0] / a.probabilities[1])) for a in answers]
    assert min(np.array(surety)[kept]) >= max(np.array(surety)[~kept])
    assert isinstance(answers[0], Answer)


def test_the_report_says_what_was_asked_and_what_holds(abstaining):
    found = abstaining.report["abstention"]
    assert found["requested"] == {"coverage": 0.5}
    assert "With a confidence of 95 %" in found["guarantee"]
    assert found["calibration"]["coverage"] == pytest.approx(0.5, abs=0.01)
    assert found["test"]["coverage"]["value"] == pytest.approx(0.5, abs=0.12)
    assert found["test"]["error"]["value"] <= found["risk_coverage"][-1][1]
    settings = json.loads((abstaining.folder / "tagsmith.json").read_text())
    assert settings["abstention"]["engine"] == "torch-fp32"
    assert len(settings["abstention"]["sureties"]) == 2


def test_an_evaluation_abstains_as_the_bundle_does(abstaining, toy_csv):
    found = evaluate(abstaining, toy_csv).abstention
    assert found["requested"] == {"coverage": 0.5}
    assert 0.2 < found["test"]["coverage"]["value"] < 0.8


def test_a_bound_that_too_few_rows_could_prove_is_refused_before_training(tmp_path, toy_csv, quick_config, heard):
    config = quick_config(evaluation={"max_error": 0.01})
    with pytest.raises(SettingError, match=r"needs 299 answered rows without an error to be proven, and 2\d held-out"):
        train(toy_csv, out=tmp_path / "bundle", config=config, listen=heard.append)
    assert "built" not in {event.name for event in heard}


def test_a_bound_that_the_errors_break_is_refused(tmp_path, many_rows, quick_config):
    config = quick_config(**QUICK | {"evaluation": {"max_error": 0.02, "resamples": 200}})
    with pytest.raises(SettingError, match=r"of the surest \d+ of \d+ \d+ are wrong"):
        train(many_rows, out=tmp_path / "bundle", config=config)
    assert not (tmp_path / "bundle").exists()


def test_a_bound_on_a_few_rows_is_called_approximate(tmp_path, toy_csv, quick_config):
    bundle = train(toy_csv, out=tmp_path / "bundle", config=quick_config(evaluation={"coverage": 0.5}))
    assert "Approximate, no finite-sample guarantee" in bundle.report["abstention"]["guarantee"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_error": 0.3, "coverage": 0.5}, "each decide what is answered"),
        ({"threshold_goal": "f1>=0.9"}, "precision>=X or recall>=X"),
        ({"prior": {"praise": 0.9}}, "a share for each label"),
        ({"prior": "em"}, "evaluation.unlabelled"),
    ],
)
def test_settings_at_odds_are_refused(tmp_path, toy_csv, quick_config, settings, complaint):
    config = quick_config(tuning={"method": "head"}, evaluation=settings)
    with pytest.raises(SettingError, match=complaint):
        train(toy_csv, out=tmp_path / "bundle", config=config)


def test_given_shares_multiply_the_odds(tmp_path, toy_csv, quick_config, make_rows):
    shares = {"complaint": 0.2, "praise": 0.8}
    plain, moved = (
        train(toy_csv, out=tmp_path / name, config=quick_config(tuning={"method": "head"}, evaluation=evaluation))
        for name, evaluation in (("plain", {}), ("moved", {"prior": shares}))
    )
    texts = [text for text, _ in make_rows(20, seed=5)]
    before, after = plain.predict_proba(texts), load(moved.folder).predict_proba(texts)
    priors = plain.settings["data"]["priors"]
    odds = shares["praise"] / shares["complaint"] * priors["complaint"] / priors["praise"]
    np.testing.assert_allclose(after[:, 1] / after[:, 0], before[:, 1] / before[:, 0] * odds, rtol=1e-3)
    assert moved.report["calibration"]["prior"] == {"source": "given", "shares": shares}
    assert any("evaluation.prior" in note for note in moved.report["notes"])


def test_shares_are_estimated_from_texts_without_labels(tmp_path, many_rows, quick_config, make_rows):
    texts = [text for text, label in make_rows(2000, seed=11) if label == "praise"]
    texts += [text for text, label in make_rows(200, seed=12) if label == "complaint"]
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(texts) + "\n")
    evaluation = {"prior": "em", "unlabelled": str(tmp_path / "texts.csv"), "resamples": 200}
    bundle = train(many_rows, out=tmp_path / "bundle", config=quick_config(**QUICK | {"evaluation": evaluation}))
    found = bundle.report["calibration"]["prior"]
    assert found["source"] == "em"
    assert found["texts"] == len(texts)
    if found["accepted"]:
        assert found["shares"]["praise"] > 0.6
    else:
        assert any("was declined" in note for note in bundle.report["notes"])


def test_a_served_bundle_abstains_too(abstaining, make_rows):
    from tagsmith.deployment.classifying import About, result_of
    from tagsmith.deployment.engine_process import _describe

    texts = [text for text, _ in make_rows(40, seed=9)]
    engine = load(abstaining.folder).engine
    about = About.of("half", json.loads(json.dumps(_describe(abstaining.folder, engine))))
    logits = engine.logits_of(engine.encode(texts))
    found = [
        result_of(about, probs_C, logits_C, tokens=1, truncated=False)
        for probs_C, logits_C in zip(engine.probabilities_of(logits), logits, strict=True)
    ]
    assert [each.abstained for each in found] == [each.abstained for each in engine.answer(texts)]
    assert any(each.abstained and each.label is None for each in found)
