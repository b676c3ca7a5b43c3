"""What a run measures beside scores: rivals, costs, looks, damaged texts; and what stands apart, in run.json."""

import json

import numpy as np
import pytest

from tagsmith.errors import DataError, SettingError
from tagsmith.evaluation.comparison import with_cost
from tagsmith.pipeline import evaluate, train


def run_of(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_a_frozen_probe_is_measured_on_the_same_rows(llama_bundle):
    report = report_of(llama_bundle)
    probe = report["baselines"]["probe"]
    assert set(probe) == set(report["test"])
    assert probe["n"] == report["test"]["n"]
    assert probe["accuracy"]["value"] > report["baselines"]["majority"]["accuracy"]["value"]


def test_the_probe_of_a_bundle_answers_new_rows(llama_bundle, toy_csv):
    assert "probe" in evaluate(llama_bundle, toy_csv).baselines


def test_where_every_block_learns_the_probe_sees_the_untuned_model(tmp_path, toy_csv, quick_config):
    bundle = train(toy_csv, out=tmp_path / "full", config=quick_config(tuning={"method": "full", "epochs": 1}))
    assert bundle.report["baselines"]["probe"]["n"] == bundle.report["test"]["n"]
    assert "probe" not in evaluate(bundle, toy_csv).baselines  # its states are gone


def test_costs_stand_in_the_run_and_not_in_the_report(llama_bundle):
    cost = run_of(llama_bundle)["cost"]
    for system in ("model", "tfidf", "cascade"):
        assert cost[system]["seconds_per_thousand"] > 0
        assert cost[system]["seconds_per_text"] > 0
        assert cost[system]["bytes"] > 1000
    assert 0 < cost["probe"]["seconds_per_thousand"] <= cost["model"]["seconds_per_thousand"]
    share = report_of(llama_bundle)["cascade"]["chosen"]["llm_share"]
    expected = cost["tfidf"]["seconds_per_text"] + share * cost["model"]["seconds_per_text"]
    assert cost["cascade"]["seconds_per_text"] == pytest.approx(expected)
    assert "seconds_per" not in (llama_bundle / "report.json").read_text(encoding="utf-8")
    assert "cost" in run_of(llama_bundle)["verdict"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("better", "Better than TF-IDF by 2.1 points: 21 errors fewer in 1,000 texts, for 40 times its cost per text."),
        ("undecided", "Better than TF-IDF by 2.1 points; the LLM's answers cost 40 times as much."),
    ],
)
def test_the_verdict_names_the_price(value, told):
    verdict = {"value": value, "text": "Better than TF-IDF by 2.1 points.", "measure": "accuracy"}
    verdict["difference"] = {"value": 2.1}
    cost = {"model": {"seconds_per_thousand": 8.0}, "tfidf": {"seconds_per_thousand": 0.2}}
    assert with_cost(verdict, cost) == told


def test_each_look_at_the_same_test_rows_is_counted(llama_bundle, tmp_path, make_rows, save_csv, heard):
    rows = save_csv(tmp_path / "new.csv", make_rows(40, seed=77))
    evaluate(llama_bundle, rows, listen=heard.append)
    assert not any("Look" in str(event.values.get("text")) for event in heard)
    evaluate(llama_bundle, rows, listen=heard.append)
    notes = [event.values["text"] for event in heard if event.name == "note"]
    assert notes[-1] == "Look 2 at these test rows; interval not corrected for selection."
    assert run_of(llama_bundle)["looks"]["count"] >= 1


def test_damaged_texts_are_answered_after_the_scores(llama_bundle):
    report = report_of(llama_bundle)
    kinds = {entry["kind"] for entry in report["robustness"]}
    assert {"typos", "upper case", "look-alikes"} <= kinds
    for entry in report["robustness"]:
        assert {"accuracy", "drop", "tfidf", "n"} <= set(entry)


def test_no_rows_are_damaged_where_none_are_wanted(tmp_path, toy_csv, quick_config):
    config = quick_config(tuning={"method": "head"}, evaluation={"robustness_rows": 0})
    assert train(toy_csv, out=tmp_path / "bundle", config=config).report["robustness"] == []


def test_accuracy_is_sliced_by_the_columns_asked_for(tmp_path, make_rows, save_csv, quick_config):
    rows = [(text, label, "north" if i % 3 else "south") for i, (text, label) in enumerate(make_rows(600, seed=2))]
    source = save_csv(tmp_path / "rows.csv", rows, header=("text", "label", "shop"))
    config = quick_config(tuning={"method": "head"}, evaluation={"slices": ["shop"]})
    slices = train(source, out=tmp_path / "bundle", config=config).report["slices"]
    by = {(entry["by"], entry["value"]) for entry in slices}
    assert {("shop", "north"), ("shop", "south"), ("label", "praise"), ("label", "complaint")} <= by
    assert {each for each, _ in by} >= {"length"}
    with pytest.raises(DataError, match="No column 'shp'. Did you mean 'shop'"):
        train(source, out=tmp_path / "other", config=quick_config(evaluation={"slices": ["shp"]}))


def test_costs_of_answers_are_told(tmp_path, toy_csv, quick_config):
    costs = {"complaint": {"praise": 10.0}}
    config = quick_config(tuning={"method": "head"}, evaluation={"costs": costs})
    found = train(toy_csv, out=tmp_path / "bundle", config=config).report["expected_cost"]
    assert {"model", "tfidf", "majority", "probe", "cheapest_answers"} <= set(found)
    assert found["matrix"] == [[0, 10], [1, 0]]
    wrong = quick_config(tuning={"method": "head"}, evaluation={"costs": {"praise": {"anger": 1}}})
    with pytest.raises(SettingError, match=r"evaluation.costs names \['anger'\]"):
        train(toy_csv, out=tmp_path / "other", config=wrong)


def test_a_label_may_be_absent_from_the_rows_that_are_measured(llama_bundle, tmp_path, save_csv, make_rows):
    rows = save_csv(tmp_path / "praise.csv", [row for row in make_rows(120, seed=8) if row[1] == "praise"])
    report = evaluate(llama_bundle, rows)
    assert report.test["roc_auc"] is None
    assert report.test["per_label"][0]["support"] == 0
    assert 0 <= report.test["balanced_accuracy"]["value"] <= 1


def test_huge_texts_and_any_script_are_measured(llama_bundle, tmp_path, save_csv):
    texts = ["lovely food " * 90_000, "שירות נהדר ואוכל טעים", "😀😡 lovely 🍲", "الطعام لذيذ جدا", "a\u202eb\u200fc"]
    rows = save_csv(tmp_path / "odd.csv", [(text, "praise") for text in texts] + [("rude and stale", "complaint")])
    report = evaluate(llama_bundle, rows)
    assert report.test["n"] == 6
    json.loads(report.to_json())
    assert not any(text[:20] in report.to_json() for text in texts)


def test_rows_without_any_text_are_refused(llama_bundle, tmp_path):
    (tmp_path / "none.csv").write_text("text,label\n")
    with pytest.raises(DataError, match="no rows"):
        evaluate(llama_bundle, tmp_path / "none.csv")


def test_the_table_of_answers_is_that_of_the_confusion(llama_bundle):
    report = report_of(llama_bundle)
    table = report["score_table"]
    counts = np.zeros((2, 2), dtype=int)
    np.add.at(counts, (table["truth"], table["answer"]), 1)
    assert counts.tolist() == report["test"]["confusion"]["counts"]


def test_an_evaluation_may_measure_otherwise_and_decide_nothing(llama_bundle, tmp_path, make_rows, save_csv):
    rows = [(text, label, "north" if i % 2 else "south") for i, (text, label) in enumerate(make_rows(160, seed=4))]
    source = save_csv(tmp_path / "rows.csv", rows, header=("text", "label", "shop"))
    report = evaluate(llama_bundle, source, settings={"evaluation": {"slices": ["shop"], "robustness_rows": 30}})
    assert {entry["value"] for entry in report.slices if entry["by"] == "shop"} == {"north", "south"}
    assert report.robustness[0]["n"] <= 30
    chosen = report_of(llama_bundle)["cascade"]["chosen"]
    assert report.cascade["chosen"]["threshold"] == chosen["threshold"]
    with pytest.raises(SettingError, match="evaluation.max_error cannot be changed"):
        evaluate(llama_bundle, source, settings={"evaluation": {"max_error": 0.1}})


def test_the_summary_names_the_price(llama_bundle, capsys):
    from tagsmith.console import Console

    Console().summary(report_of(llama_bundle), llama_bundle)
    shown = capsys.readouterr().err
    assert run_of(llama_bundle)["verdict"] in shown
    assert "frozen probe" in shown
    assert "Cascade: " in shown
