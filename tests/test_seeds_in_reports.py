"""Several seeds, averages and the metric that chooses, from settings to report."""

import json

import numpy as np
import pytest

from tagsmith.console import Console
from tagsmith.data.table import Table
from tagsmith.pipeline import train


@pytest.fixture(scope="module")
def three(toy_csv, quick_config, tmp_path_factory):
    config = quick_config(tuning={"seeds": 3, "average": "best"})
    return train(toy_csv, out=tmp_path_factory.mktemp("three") / "bundle", config=config)


def test_the_first_seed_is_saved_and_all_are_reported(three):
    report = three.report
    assert [each["seed"] for each in report["seeds"]] == [123, 124, 125]
    first = report["seeds"][0]
    assert first["best_step"] == report["model"]["best_step"]
    assert first["test"] == pytest.approx({name: report["test"][name]["value"] for name in first["test"]}, abs=1e-6)
    assert {"seed", "best_step", "validation_loss", "validation_accuracy", "test"} == set(first)
    losses = [each["test"]["log_loss"] for each in report["seeds"]]
    assert len(set(losses)) == 3
    assert report["spread"]["log_loss"]["mean"] == pytest.approx(np.mean(losses))
    assert report["spread"]["log_loss"]["standard_deviation"] == pytest.approx(np.std(losses, ddof=1))


def test_further_seeds_change_no_weight_of_the_bundle(llama_bundle, toy_csv, quick_config, tmp_path):
    bundle = train(toy_csv, out=tmp_path / "b", config=quick_config(tuning={"seeds": 2}))
    for name in ("model.safetensors", "config.json", "probe.jsonl"):
        assert (bundle.folder / name).read_bytes() == (llama_bundle / name).read_bytes()
    alone = json.loads((llama_bundle / "report.json").read_text(encoding="utf-8"))
    assert {key: bundle.report[key] for key in ("test", "curves", "verdict", "before_tuning")} == {
        key: alone[key] for key in ("test", "curves", "verdict", "before_tuning")
    }
    assert (alone["seeds"], alone["spread"]) == ([], {})


def test_the_page_and_the_console_say_mean_and_spread(three, capsys):
    page = (three.folder / "report.html").read_text(encoding="utf-8")
    assert "How much is luck" in page
    assert "standard deviation" in page
    Console().scores(three.report)
    spread = three.report["spread"]["accuracy"]
    line = f"accuracy {100 * spread['mean']:.2f} % ± {100 * spread['standard_deviation']:.2f}"
    assert f"Over 3 seeds (mean ± standard deviation): {line}" in capsys.readouterr().err


def test_the_average_stands_in_the_report(three):
    average = three.report["model"]["average"]
    assert set(average) == {"of", "kept", "validation_loss", "validation_accuracy", "score"}
    assert average["of"].startswith("the mean of the steps")


def test_with_several_labels_a_row_each_seed_has_thresholds_of_its_own(toy_rows, quick_config, tmp_path):
    texts, labels = zip(*toy_rows, strict=True)
    table = Table.of(texts, [[label] for label in labels])
    bundle = train(table, out=tmp_path / "b", config=quick_config(tuning={"seeds": 2, "epochs": 1}))
    first, second = bundle.report["seeds"]
    assert set(first["test"]) == {"accuracy", "micro_f1", "macro_f1", "log_loss"}
    assert first["test"] == pytest.approx(
        {name: bundle.report["test"][name]["value"] for name in first["test"]}, abs=1e-6
    )
    assert first["test"]["log_loss"] != second["test"]["log_loss"]


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_metric_that_was_chosen_chooses_the_step(metric, toy_csv, quick_config, tmp_path):
    settings = {"tuning": {"epochs": 2, "patience": 9, "evaluations_per_epoch": 4}, "evaluation": {"metric": metric}}
    report = train(toy_csv, out=tmp_path / "b", config=quick_config(**settings)).report
    scores = [point["score"] for point in report["curves"]]
    assert report["model"]["best_step"] == report["curves"][int(np.argmax(scores))]["step"]
    assert all(0 <= score <= 1 for score in scores), "these are no log losses"
    if metric == "accuracy":
        assert scores == [point["validation_accuracy"] for point in report["curves"]]
