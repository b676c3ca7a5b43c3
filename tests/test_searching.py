import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from tagsmith import searching
from tagsmith.building import build
from tagsmith.config import Config
from tagsmith.deployment.bundle import load
from tagsmith.deployment.planned import planned_settings
from tagsmith.errors import SettingError
from tagsmith.events import silent
from tagsmith.learning import encode
from tagsmith.pipeline import prepare_rows, train
from tagsmith.run import Run
from tagsmith.searching import _take_measure
from tagsmith.tuning import mixing
from tagsmith.tuning import search as search_module
from tagsmith.tuning.loop import StoppedError
from tagsmith.tuning.trials import Judged


def settings(folders, **tuning):
    given = {
        "method": "auto",
        "budget": "60s",
        "precision": "fp32",
        "learning_rate": 5e-3,
        "epochs": 1,
        "batch_size": 64,
    } | tuning
    few = {"max_tokens": 48, "layers": 2}  # one depth has few recipes
    return {"model": {"backbone": ",".join(map(str, folders)), **few}, "tuning": given}


@pytest.fixture(scope="module", autouse=True)
def cut_once():
    """Rows are cut into folds once: nothing here asks for more, and it takes a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "MOST_REPEATS", 1)
        yield


@pytest.fixture(scope="module")
def found(make_folder, toy_rows, save_csv, tmp_path_factory):
    """A bundle of a search between two tiny backbones."""
    folder = tmp_path_factory.mktemp("searched")
    source = save_csv(folder / "rows.csv", toy_rows)
    config = Config.of(settings([make_folder("llama"), make_folder("bert")]))
    train(source, out=folder / "b", config=config)
    return folder / "b", source


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_the_report_has_all_candidates_and_the_settings_of_the_winner(found):
    folder, _ = found
    report = report_of(folder)
    candidates = report["candidates"]
    assert {each["kind"] for each in candidates} >= {"tfidf", "head", "last_layers"}
    winner = next(each for each in candidates if each["chosen"])
    assert report["settings"]["tuning"]["method"] == winner["kind"]
    assert report["settings"]["model"]["backbone"] == winner["backbone"]
    assert report["model"]["layers"] == winner["settings"]["model"]["layers"]
    assert any(winner["name"] in note for note in report["notes"])
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run["budget"] == 60
    assert {each["name"] for each in run["candidates"]} == {each["name"] for each in candidates}


@pytest.mark.parametrize(
    ("rare", "given", "metric"),
    [(4, {}, "log_loss"), (20, {}, "macro_f1"), (20, {"evaluation": {"metric": "accuracy"}}, "accuracy")],
)
def test_macro_f1_decides_by_itself_where_labels_are_uneven(rare, given, metric, make_rows, save_csv, tmp_path):
    rows = [(text, label) for i, (text, label) in enumerate(make_rows(400)) if label == "praise" or i % rare == 0]
    run = Run(Config.of({"tuning": {"method": "auto"}, **given}), silent, command="")
    prepared = prepare_rows(save_csv(tmp_path / "rows.csv", rows), config=run.config).prepared
    told = _take_measure(prepared, run)
    assert run.config.evaluation.metric == metric
    assert [note.split(":")[0] for note in told] == (["Labels are uneven"] if metric == "macro_f1" else [])
    assert run.config.tuning.model_fields_set == {"method"}, "what was left open is the search's still"
    assert not run.config.model.model_fields_set


@pytest.mark.parametrize(("spent", "budget", "names"), [(0.0, "60s", 2), (21.0, "60s", 1), (21.0, None, 2)])
def test_no_further_backbone_enters_when_a_third_of_a_budget_is_over(
    spent, budget, names, make_folder, toy_csv, monkeypatch
):
    folders = [make_folder("bert"), make_folder("llama")]
    run = Run(Config.of(settings(folders, budget=budget)), silent, command="")
    prepared = prepare_rows(toy_csv, config=run.config).prepared
    monkeypatch.setattr(searching.time, "perf_counter", lambda: spent)
    found = searching._entrants(prepared, run, build=build, encode=encode, started=0.0)
    assert [each.name for each in found] == [str(folder) for folder in folders][:names]
    assert ["a third of the 60 s" in note for note in run.notes] == [True] * (2 - names)


def test_nothing_of_a_search_is_left_beside_the_bundle(found):
    folder, source = found
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, source.name}


def test_a_plan_repeats_a_training_without_a_search(found, tmp_path):
    folder, source = found
    again = train(source, out=tmp_path / "again", config=Config.of(planned_settings(folder)))
    first = load(folder)
    texts = ["a lovely room", "the soup was cold"]
    np.testing.assert_array_equal(again.predict_proba(texts), first.predict_proba(texts))
    assert (again.folder / "model.safetensors").exists() == (folder / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["head", "last_layers"])
def test_another_candidate_is_taken_by_its_number(found, tmp_path, kind):
    folder, source = found
    candidates = report_of(folder)["candidates"]
    other = next(each for each in candidates if each["kind"] == kind and not each["chosen"])
    bundle = train(source, out=tmp_path / "b", config=Config.of(planned_settings(folder, take=other["number"])))
    assert bundle.report["settings"]["tuning"]["method"] == other["kind"]
    assert bundle.report["model"]["layers"] == other["settings"]["model"]["layers"]


def test_a_candidate_that_is_not_there_or_no_llm_is_refused(found):
    folder, _ = found
    candidates = report_of(folder)["candidates"]
    with pytest.raises(SettingError, match=f"no candidate 99. Its candidates are 1 to {len(candidates)}"):
        planned_settings(folder, take=99)
    lexical = next(each for each in candidates if each["kind"] == "tfidf")
    with pytest.raises(SettingError, match="which is no LLM"):
        planned_settings(folder, take=lexical["number"])


def won_by(monkeypatch, **tuning):
    """Let a search end in a tuning with these settings."""
    search = search_module.search

    def ending(*arguments, **options):
        found = search(*arguments, **options)
        return replace(found, recipe=found.recipe.with_tuning(hybrid="none", **tuning))

    monkeypatch.setattr(search_module, "search", ending)
    monkeypatch.setattr(mixing, "FEWEST_ROWS", 15)


LEARNS_NOTHING = {
    "method": "last_layers",
    "blocks": 1,
    "start": "random",
    "average": "none",
    "head_learning_rate": 1e-9,
}


def test_what_reads_worse_than_tfidf_when_it_has_learnt_answers_with_it(
    make_folder, toy_rows, save_csv, tmp_path, monkeypatch
):
    source = save_csv(tmp_path / "rows.csv", toy_rows)
    won_by(monkeypatch, **LEARNS_NOTHING, learning_rate=1e-9)
    bundle = train(source, out=tmp_path / "b", config=Config.of(settings([make_folder("llama")], budget="1s")))
    assert bundle.report["settings"]["tuning"]["hybrid"] == "average"
    told = [note for note in bundle.report["notes"] if "worse than TF-IDF" in note]
    assert len(told) == 1
    assert bundle.report["test"]["accuracy"]["value"] >= bundle.report["baselines"]["tfidf"]["accuracy"]["value"]
    again = train(source, out=tmp_path / "again", config=Config.of(planned_settings(bundle.folder)))
    texts = [text for text, _ in toy_rows[:9]]
    np.testing.assert_array_equal(again.predict_proba(texts), bundle.predict_proba(texts))


def test_what_reads_no_worse_than_tfidf_and_what_the_user_wants_alone_answers_alone(
    make_folder, toy_rows, save_csv, tmp_path, monkeypatch
):
    source = save_csv(tmp_path / "rows.csv", toy_rows)
    won_by(monkeypatch, **LEARNS_NOTHING, learning_rate=1e-9)
    alone = Config.of(settings([make_folder("llama")], hybrid="none", budget="1s"))
    bundle = train(source, out=tmp_path / "alone", config=alone)
    assert bundle.report["settings"]["tuning"]["hybrid"] == "none"
    monkeypatch.setattr(Judged, "is_better", lambda self, other: False)
    bundle = train(source, out=tmp_path / "b", config=Config.of(settings([make_folder("llama")], budget="1s")))
    assert bundle.report["settings"]["tuning"]["hybrid"] == "none"
    assert bundle.baseline_probabilities(["a lovely room"])["tfidf"].shape == (1, 2), "TF-IDF is kept to compare with"


def test_a_plan_repeats_a_trial_without_optuna(make_folder, toy_rows, save_csv, tmp_path, monkeypatch):
    source = save_csv(tmp_path / "rows.csv", toy_rows)
    config = Config.of(settings([make_folder("llama")], trials=2, hybrid="none", budget="10m"))

    def a_trial(candidates, **_):
        return next(i for i, each in enumerate(candidates) if each.recipe and each.recipe.trial and each.learnt == 1)

    with monkeypatch.context() as patch:
        patch.setattr("tagsmith.tuning.search.chosen_of", a_trial)
        first = train(source, out=tmp_path / "b", config=config)
    trials = [each for each in report_of(first.folder)["candidates"] if "(trial " in each["name"]]
    assert len(trials) == 2
    monkeypatch.setitem(sys.modules, "optuna", None)
    again = train(source, out=tmp_path / "again", config=Config.of(planned_settings(first.folder)))
    texts = ["a lovely room", "the soup was cold"]
    np.testing.assert_array_equal(again.predict_proba(texts), first.predict_proba(texts))
    (other,) = (each for each in trials if not each["chosen"])
    taken = Config.of(planned_settings(first.folder, take=other["number"]))
    assert taken.tuning.trials == 0
    assert taken.tuning.method == other["kind"]
    for key, value in other["settings"]["tuning"].items():
        assert getattr(taken.tuning, key) == value, key
    with pytest.raises(SettingError, match=r"pip install \"tagsmith\[optuna\]\""):
        train(source, out=tmp_path / "c", config=config)


def test_a_stopped_run_goes_on_with_the_plan_it_had(make_folder, toy_rows, save_csv, tmp_path, monkeypatch):
    def a_tuning(candidates, **_):
        return next(i for i, each in enumerate(candidates) if each.kind == "last_layers")

    monkeypatch.setattr("tagsmith.tuning.search.chosen_of", a_tuning)  # a head alone has no steps to stop after
    source = save_csv(tmp_path / "rows.csv", toy_rows)
    config = Config.of(settings([make_folder("bert")], epochs=2))
    with pytest.raises(StoppedError):
        train(source, out=tmp_path / "b", config=config, stop=lambda: True)
    plan = json.loads((tmp_path / "b.plan.json").read_text(encoding="utf-8"))
    heard = []
    bundle = train(source, out=tmp_path / "b", config=config, resume=True, listen=heard.append)
    assert not [event for event in heard if event.name == "candidate"]
    assert bundle.report["settings"] == plan["settings"]
    assert bundle.report["candidates"] == plan["candidates"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"backbone": "a,b"}}, "takes? tuning.method = 'auto'|lets several compete"),
        ({"tuning": {"budget": "10m"}}, "does not search"),
        ({"tuning": {"trials": 5}}, "tuning.trials is 5.*trials go on from a search"),
    ],
)
def test_what_only_a_search_can_use_is_refused_without_one(changes, message, toy_rows, save_csv, tmp_path):
    source = save_csv(tmp_path / "rows.csv", toy_rows)
    with pytest.raises(SettingError, match=message):
        train(source, out=tmp_path / "b", config=Config.of(changes))


def test_the_llm_learns_from_fewer_rows_and_tfidf_from_all(make_folder, toy_rows, save_csv, tmp_path):
    source = save_csv(tmp_path / "rows.csv", toy_rows)
    tuning = {"method": "head", "precision": "fp32", "most_rows": 60}
    config = Config.of({"model": {"backbone": str(make_folder("bert")), "max_tokens": 48}, "tuning": tuning})
    bundle = train(source, out=tmp_path / "b", config=config)
    assert bundle.report["data"]["splits"]["train"] == 60
    assert any("60 of" in note and "TF-IDF from all" in note for note in bundle.report["notes"])
