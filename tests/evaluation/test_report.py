import json

import numpy as np
import pytest

from tagsmith.config import Config
from tagsmith.errors import BundleError, DataError
from tagsmith.evaluation.report import Report, build_report
from tagsmith.labels import Labels


def built(n=60, classes=3, **options):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, n)
    probs, tfidf = (softmax(rng.normal(size=(n, classes)) + skill * np.eye(classes)[truth]) for skill in (3, 2))
    shares = np.tile(np.bincount(truth, minlength=classes) / n, (n, 1))
    given = {
        "data": {"rows": 500, "history": [{"step": "read", "rows": (1, np.int64(2))}], "splits": {"test": n}},
        "model": {"backbone": "tiny", "loss": float("nan")},
        "settings": Config().model_dump(),
        "baseline_probs": {"majority": shares, "tfidf": tfidf},
        "groups": np.arange(n),
        "labels": Labels(tuple(f"label {i}" for i in range(classes))),
        "margin": 1.0,
        "resamples": 200,
        "seed": 7,
    }
    return build_report(truth=truth, probs=probs, **(given | options))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_the_report_has_the_keys_that_others_read():
    plain = built(before_probs=np.full((60, 3), 1 / 3), leaked=np.arange(60) < 10).as_dict()
    keys = {
        "data", "test", "test_clean", "test_leaked", "before_tuning", "baselines", "verdict", "candidates", "curves",
        "seeds", "forecast", "reproduce", "calibration", "model", "settings", "tagsmith", "notes",
    }  # fmt: skip
    assert keys <= set(plain)
    assert set(plain["baselines"]) == {"majority", "tfidf"}
    assert set(plain["test"]) == set(plain["test_leaked"]) == set(plain["baselines"]["tfidf"])
    assert plain["test_clean"]["n"] + plain["test_leaked"]["n"] == plain["test"]["n"] == 60
    assert plain["data"]["labels"] == ["label 0", "label 1", "label 2"]


def test_what_was_not_measured_is_null():
    plain = built().as_dict()
    assert plain["before_tuning"] is plain["test_clean"] is plain["test_leaked"] is plain["forecast"] is None
    assert built(leaked=np.zeros(60, dtype=bool)).test_leaked is None


def test_numbers_that_are_not_finite_become_null():
    assert json.loads(built().to_json())["model"]["loss"] is None


def test_the_headline_has_the_main_scores_and_the_verdict():
    report = built(before_probs=np.full((60, 3), 1 / 3))
    told = report.headline()
    assert [told[f"log_loss{end}"] for end in ("", "_low", "_high")] == list(report.test["log_loss"].values())
    assert told["tfidf_accuracy"] == report.baselines["tfidf"]["accuracy"]["value"]
    assert told["before_tuning_log_loss"] == pytest.approx(np.log(3))
    assert (told["verdict"], told["text"]) == (report.verdict["value"], report.verdict["text"])
    assert not [name for name in built().headline() if name.startswith("before_tuning")]


def test_the_same_seed_gives_the_same_bytes():
    assert built().to_json() == built().to_json()


def test_a_report_comes_back_from_its_json():
    report = built(curves=[{"step": 1, "train_loss": np.float32(0.5)}])
    assert Report.from_dict(json.loads(report.to_json())).to_json() == report.to_json()


def test_keys_of_later_releases_are_left_out_and_missing_ones_are_named():
    plain = json.loads(built().to_json())
    assert Report.from_dict(plain | {"later": 1}).to_json() == built().to_json()
    del plain["verdict"]
    with pytest.raises(BundleError, match="verdict"):
        Report.from_dict(plain)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda probs: probs * 1.4, "sum is 1.4"),
        (lambda probs: np.log(probs), "give softmax outputs, not logits"),
        (lambda probs: np.where(np.arange(60)[:, None] == 7, np.nan, probs), "row 7 are none: nan.*1 of 60 rows"),
    ],
)
def test_probabilities_that_are_none_are_refused(broken, told):
    probs = softmax(np.random.default_rng(1).normal(size=(60, 3)))
    with pytest.raises(DataError, match=told):
        built_with(broken(probs))


def built_with(probs):
    shares = np.full((60, 3), 1 / 3)
    truth, labels = np.arange(60) % 3, Labels(("a", "b", "c"))
    return build_report(
        truth=truth, probs=probs, data={}, model={}, settings={}, baseline_probs={"majority": shares, "tfidf": shares},
        groups=np.arange(60), labels=labels, margin=1.0, resamples=200, seed=7,
    )  # fmt: skip


def test_a_mixture_and_the_llm_in_it_are_both_compared_and_corrected():
    alone = built().as_dict()
    assert [each["model"] for each in alone["comparisons"]] == ["served"]
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    llm = softmax(rng.normal(size=(60, 3)) + 1.0 * np.eye(3)[truth])
    both = built(llm_probs=llm).as_dict()
    served, by_itself = both["comparisons"]
    assert (served["model"], by_itself["model"]) == ("served", "llm")
    assert both["verdict"]["p_value"] == served["p_value"]
    single = alone["comparisons"][0]["p_value"]
    assert served["p_value"] in (pytest.approx(single), pytest.approx(min(1.0, 2 * single)))
    assert max(served["p_value"], by_itself["p_value"]) >= 2 * min(single, 0.5) or served["p_value"] == single


def test_parts_that_people_look_at_are_there():
    plain = built(n=400).as_dict()
    assert sum(each["count"] for each in plain["reliability"]) == 400
    assert plain["abstention"]["risk_coverage"][-1][0] == 1
    assert {each["by"] for each in plain["slices"]} == {"label"}
    assert len(plain["score_table"]["row"]) == 400
    assert plain["expected_cost"] is None
