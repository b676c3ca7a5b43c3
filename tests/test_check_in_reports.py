"""What `tagsmith check` finds is in the report of a training too."""

import json

from tagsmith import check
from tagsmith.config import Config
from tagsmith.pipeline import train


def test_a_report_holds_the_check_and_the_lengths_in_tokens(llama_bundle, toy_csv, quick_config):
    data = json.loads((llama_bundle / "report.json").read_text(encoding="utf-8"))["data"]
    found = check(toy_csv, config=quick_config())
    assert set(data["check"]) == {
        *("looked_at", "lengths", "giveaways", "scripts", "languages", "cleaning", "conflicts", "findings")
    }
    assert data["check"]["lengths"] == found.facts["lengths"]
    assert data["check"]["languages"] == found.facts["languages"]
    assert data["tokens"] == found.facts["tokens"]
    assert data["tokens"]["cut"] == data["truncated"]["share"]


def test_the_page_of_a_report_shows_the_check(llama_bundle):
    page = (llama_bundle / "report.html").read_text(encoding="utf-8")
    for title in ("What was found in the data", "Lengths", "Scripts and languages"):
        assert f"<h2>{title}</h2>" in page


def test_what_could_mislead_is_said_while_a_training_runs(tmp_path, make_rows, save_csv, quick_config, heard):
    rows = [(f"{label}: {text}", label) for text, label in make_rows(240)]
    source = save_csv(tmp_path / "led.csv", rows)
    config = quick_config(tuning={"epochs": 1}, data={"near_duplicates": 1.0})
    bundle = train(source, out=tmp_path / "out", config=config, listen=heard.append)
    notes = [event.values["text"] for event in heard if event.name == "note"]
    assert any("begin with the name of the label" in note for note in notes)
    assert "label_in_front" in {finding["code"] for finding in bundle.report["data"]["check"]["findings"]}
    (tokens,) = [event for event in heard if (event.stage, event.name) == ("data", "tokens")]
    assert tokens.values["rows"] == 240


def test_a_check_counts_tokens_only_where_the_tokenizer_is_at_hand(toy_csv, monkeypatch, tmp_path):
    monkeypatch.setenv("TAGSMITH_CACHE", str(tmp_path))
    found = check(toy_csv, config=Config())
    assert found.facts["tokens"] is None
    assert "not in the cache" in found.facts["notes"][0]
    assert list(tmp_path.iterdir()) == []
