import json
import random

import pytest

from tagsmith.pipeline import train


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def plain_rows(n, *, seed):
    """Texts of words that their label alone uses."""
    rng = random.Random(seed)
    words = {
        "praise": ["good", "fine", "kind", "warm", "clean", "quick", "bright", "calm", "fresh", "neat"],
        "complaint": ["bad", "cold", "rude", "dirty", "slow", "dark", "loud", "stale", "broken", "late"],
    }
    labels = [rng.choice(list(words)) for _ in range(n)]
    return [(" ".join(rng.choices(words[label], k=8)), label) for label in labels]


def test_labels_that_were_swapped_are_found_in_a_plain_run(quick_config, tmp_path, save_csv):
    other = {"praise": "complaint", "complaint": "praise"}
    rows = [(text, other[label] if i < 20 else label) for i, (text, label) in enumerate(plain_rows(300, seed=3))]
    source = save_csv(tmp_path / "in.csv", rows)
    report = train(source, out=tmp_path / "b", config=quick_config(tuning={"epochs": 1})).report
    found = report["label_audit"]
    assert found["rows"] == found["of"] == report["data"]["splits"]["train"]
    assert found["flagged"] == len(found["suspects"])
    swapped = [suspect for suspect in found["suspects"] if suspect["row"] < 20]
    assert len(swapped) >= 8
    assert len(swapped) >= 0.8 * found["flagged"]
    assert all(suspect["given"] != suspect["suggested"] for suspect in found["suspects"])
    page = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    assert "Labels that may be wrong" in page
    assert rows[swapped[0]["row"]][0] in page
    assert "How many more labels" in page


def test_mistakes_stand_in_the_report_without_their_texts(llama_bundle, toy_rows):
    report = report_of(llama_bundle)
    texts = {text for text, _ in toy_rows}
    assert set(report["learning_curve"]) == {"measure", "points", "forecast", "gain", "text", "note"}
    for mistake in report["mistakes"]:
        assert set(mistake) == {"row", "sha256", "truth", "answer", "probability", "nearest"}
        assert len(mistake["nearest"]) == 3
        assert not texts & set(map(str, mistake.values()))


def test_an_audit_that_is_not_wanted_is_not_made(toy_csv, quick_config, tmp_path):
    config = quick_config(tuning={"epochs": 1}, evaluation={"audit": False})
    report = train(toy_csv, out=tmp_path / "b", config=config).report
    assert report["label_audit"] is None
    assert report["learning_curve"] is None
    assert all(mistake["nearest"] == [] for mistake in report["mistakes"])


@pytest.mark.parametrize("method", ["full", "head"])
def test_states_are_there_whatever_was_tuned(method, toy_csv, quick_config, tmp_path):
    config = quick_config(tuning={"epochs": 1, "method": method})
    assert train(toy_csv, out=tmp_path / "b", config=config).report["label_audit"]["rows"] > 100


def test_few_rows_are_not_audited(make_rows, quick_config, tmp_path, save_csv):
    source = save_csv(tmp_path / "in.csv", make_rows(90, seed=3))
    report = train(source, out=tmp_path / "b", config=quick_config(tuning={"epochs": 1})).report
    assert report["label_audit"] is None
