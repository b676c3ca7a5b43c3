import json

import pytest
from huggingface_hub import ModelCard

from tagsmith.deployment.card import card


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_hugging_face_reads_the_metrics_of_the_card(llama_bundle):
    report = report_of(llama_bundle)
    data = ModelCard((llama_bundle / "README.md").read_text(encoding="utf-8")).data
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found["Accuracy"] == pytest.approx(report["test"]["accuracy"]["value"], abs=1e-4)
    assert found["Macro F1"] == pytest.approx(report["test"]["macro_f1"]["value"], abs=1e-4)
    assert {result.task_type for result in data.eval_results} == {"text-classification"}
    assert data.library_name == "tagsmith"
    assert data.pipeline_tag == "text-classification"


def test_the_verdict_comes_first_and_rivals_stand_beside(llama_bundle):
    report = report_of(llama_bundle)
    text = card(report)
    assert text.index(report["verdict"]["text"]) < text.index("Labels:")
    assert "| TF-IDF |" in text
    assert "| majority guess |" in text


@pytest.mark.parametrize("label", ["a: b", "---", "- x", "\u202e", '"quoted"', "| x |", "مرحبا", "line\nbreak"])
def test_labels_cannot_break_the_front_matter(llama_bundle, label):
    report = report_of(llama_bundle)
    report["data"]["labels"] = [label, "b"]
    assert ModelCard(card(report)).data.eval_results


def test_a_measure_without_a_value_is_left_out(llama_bundle):
    report = report_of(llama_bundle)
    report["test"]["roc_auc"] = {"value": None, "low": None, "high": None}
    names = {result.metric_name for result in ModelCard(card(report)).data.eval_results}
    assert "ROC AUC" not in names
    assert "Accuracy" in names
