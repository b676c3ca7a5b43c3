"""Rows without labels after a training: what the student learns from, what is asked about, and what is left alone."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tagsmith.cli import app
from tagsmith.data.table import Table
from tagsmith.deployment.bundle import load
from tagsmith.deployment.engine import open_engine
from tagsmith.distilling import distil, ranked
from tagsmith.errors import AssetError, SettingError
from tagsmith.model.calibration import Calibration
from tagsmith.model.classifier import Scorer
from tagsmith.model.lexical_fitting import fit_lexical
from tagsmith.pipeline import evaluate, train
from tagsmith.reading import prepare_sources
from tagsmith.run import Run
from tagsmith.teaching import Lesson, chosen_student, require_student, taught_lexical


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_csv, toy_rows, make_rows, save_csv, quick_config):
    """A bundle, its student and its list, from new rows and from all rows of the training once more."""
    folder, heard = tmp_path_factory.mktemp("distilled"), []
    new = [(f"{text} {i}", f"id-{i}") for i, (text, _) in enumerate(make_rows(150, seed=77))]
    old = [(text, "old") for text, _ in toy_rows]
    file = save_csv(folder / "unlabelled.csv", [*old, *new, ("  ", "blank")], header=("text", "ticket"))
    bundle = train(toy_csv, out=folder / "bundle", config=quick_config(), unlabelled=file, listen=heard.append)
    notes = [event.values["text"] for event in heard if event.name == "note"]
    return bundle, notes, {text for text, _ in new}


def test_rows_like_held_out_or_known_ones_are_neither_learnt_from_nor_asked_about(trained, toy_rows):
    bundle, notes, new = trained
    listed = pl.read_csv(f"{bundle.folder}-to-label.csv")
    assert set(listed["text"]) <= new
    assert not set(listed["text"]) & {text for text, _ in toy_rows}
    assert "old" not in listed["ticket"].to_list()
    (told,) = [note for note in notes if "ranked for labelling" in note]
    assert f"{len(listed)} rows" in told
    assert "like held-out rows" in told


def test_the_list_has_the_columns_of_the_file_and_what_the_winner_says(trained):
    bundle, _, _ = trained
    with Path(f"{bundle.folder}-to-label.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["suggested_label", "probability", "margin", "text", "ticket"]
    answers = bundle.answer([row["text"] for row in rows])
    assert [row["suggested_label"] for row in rows] == [answer.label for answer in answers]
    assert all(abs(float(r["probability"]) - a.probability) < 1e-3 for r, a in zip(rows, answers, strict=True))


def test_the_student_is_a_bundle_that_answers_by_itself_and_says_what_it_lost(trained):
    bundle, notes, new = trained
    student = load(f"{bundle.folder}-student")
    assert student.engine.name == "tfidf"
    assert open_engine(student.folder).answer(["the food was lovely"])[0].label in bundle.labels
    report = student.report
    assert report["test"]["n"] == bundle.report["test"]["n"]
    assert report["baselines"]["winner"]["accuracy"] == bundle.report["test"]["accuracy"]
    assert report["verdict"]["text"].startswith("The student: ")
    (told,) = [note for note in notes if note.startswith("The student")]
    assert "times as fast" in told
    known = set(student.engine.encode(sorted(new)[:20]).ids.tolist())
    assert len(known) > 1


def test_near_twins_do_not_all_stand_on_top():
    texts = [f"the parcel is late again {i % 3}" for i in range(30)] + [
        "my card was stolen abroad",
        "refund please now",
    ]
    probs = np.array([[0.51, 0.49]] * 30 + [[0.56, 0.44], [0.57, 0.43]])
    lexical = fit_lexical(texts, np.arange(32) % 2, np.arange(32), classes=2, seed=0)
    order = ranked(lexical, texts, probs)
    assert sorted(order) == list(range(32))
    assert {30, 31} <= set(order[:5].tolist())
    assert order[0] == 0


def test_sets_of_labels_are_refused_before_training(tmp_path, quick_config, toy_csv):
    table = Table.of(["a b", "c d", "e f"] * 20, [["x"], ["y"], ["x", "y"]] * 20)
    with pytest.raises(SettingError, match="where a text has one label"):
        train(table, out=tmp_path / "bundle", config=quick_config(), unlabelled=toy_csv)


def test_a_student_that_exists_is_not_replaced(tmp_path, toy_csv, quick_config):
    (tmp_path / "bundle-student").mkdir()
    with pytest.raises(SettingError, match="bundle-student"):
        train(toy_csv, out=tmp_path / "bundle", config=quick_config(), unlabelled=toy_csv)


def test_a_cluster_does_not_read_them(tmp_path, toy_csv):
    found = CliRunner().invoke(app, ["train", str(toy_csv), "--unlabelled", str(toy_csv), "--on", "ray"])
    assert isinstance(found.exception, SettingError)
    assert "--unlabelled is read by one machine" in str(found.exception)


# ---- An encoder as the student


@pytest.fixture(scope="module")
def with_encoder(tmp_path_factory, toy_csv, make_rows, save_csv, quick_config, bert_folder):
    """A bundle and its student, an encoder of two blocks."""
    folder, heard = tmp_path_factory.mktemp("encoder"), []
    new = [(f"{text} {i}", f"id-{i}") for i, (text, _) in enumerate(make_rows(150, seed=77))]
    file = save_csv(folder / "unlabelled.csv", new, header=("text", "ticket"))
    config = quick_config(tuning={"student": str(bert_folder), "student_layers": 2})
    bundle = train(toy_csv, out=folder / "bundle", config=config, unlabelled=file, listen=heard.append)
    notes = [event.values["text"] for event in heard if event.name == "note"]
    return bundle, load(f"{bundle.folder}-student"), notes


def test_an_encoder_becomes_a_bundle_that_answers_and_evaluates_as_it_was_measured(with_encoder, toy_csv, tmp_path):
    bundle, student, _ = with_encoder
    assert student.labels == bundle.labels
    assert student.engine.classifier.backbone.depth == 2
    assert open_engine(student.folder).answer(["the food was lovely"])[0].label in bundle.labels
    found = evaluate(student, toy_csv, out=tmp_path / "again").as_dict()
    assert found["test"]["n"] == 240
    assert found["baselines"].keys() == {"majority", "tfidf"}


def test_the_report_of_an_encoder_names_its_teacher_its_loss_and_its_speed(with_encoder):
    bundle, student, notes = with_encoder
    report = student.report
    assert report["baselines"]["winner"]["accuracy"] == bundle.report["test"]["accuracy"]
    loss = report["model"]["winner"]["loss"]
    both = [each["accuracy"]["value"] for each in (report["test"], report["baselines"]["winner"])]
    assert loss["difference"]["value"] == pytest.approx(100 * (both[0] - both[1]))
    assert loss["difference"]["low"] <= loss["difference"]["value"] <= loss["difference"]["high"]
    assert report["model"]["winner"]["backbone"] == bundle.report["model"]["backbone"]
    assert report["calibration"]["part"] in ("calibration", "validation")
    facts = json.loads((student.folder / "run.json").read_text(encoding="utf-8"))
    speed = facts["distilled"]
    ratio = speed["winner_seconds_per_thousand"] / speed["student_seconds_per_thousand"]
    assert speed["times_as_fast"] == pytest.approx(ratio)
    assert facts["looks"]["earlier"][-1]["what"] == "train"  # the winner's look is the one before
    assert (student.folder / "report.html").is_file()
    (told,) = [note for note in notes if note.startswith("The student")]
    assert f"of 2 blocks, taught by the winner: {loss['text']}" in told


@pytest.fixture(scope="module")
def lesson(toy_csv, make_rows, tmp_path_factory, quick_config):
    """What a winner says of new rows, and the settings of its training; test rows are not at hand."""
    run = Run(quick_config(), lambda _: None, command="")
    prepared = prepare_sources(toy_csv, None, None, run)
    bundle = train(toy_csv, out=tmp_path_factory.mktemp("learnt") / "bundle", config=run.config)
    texts = [f"{text} {i}" for i, (text, _) in enumerate(make_rows(150, seed=77))]
    hidden = replace(prepared.splits, test=prepared.splits.test.take(np.arange(0)))
    return Lesson(bundle, replace(prepared, splits=hidden), texts, bundle.predict_proba(texts)), run


def _asked_for(run, name, heard):
    return replace(run, config=run.config.with_settings({"tuning": {"student": name}}), listen=heard.append, notes=[])


def test_an_encoder_learns_how_sure_its_teacher_is(lesson, bert_folder, heard):
    given, run = lesson
    texts, learnt = ["a plain day"] * 300, {}
    for share in (0.51, 0.99):
        taught = replace(given, texts=texts, probs_NC=np.tile([share, 1 - share], (len(texts), 1)))
        asked = _asked_for(run, str(bert_folder), heard)
        student = chosen_student(taught, taught_lexical(given, seed=0), asked, stop=lambda: False)
        logits = Scorer(student.classifier).logits(student.classifier.encoder.encode(texts[:1]))
        learnt[share] = Calibration().probabilities(logits)[0, 0]
    assert learnt[0.51] == pytest.approx(0.51, abs=0.1)  # a few steps do not bring it far
    assert learnt[0.99] > learnt[0.51] + 0.05


def test_auto_takes_the_encoder_where_the_validation_rows_find_it_better(lesson, bert_folder, heard, monkeypatch):
    given, run = lesson
    monkeypatch.setattr("tagsmith.teaching.ENCODER", str(bert_folder))
    monkeypatch.setattr("tagsmith.teaching.MUCH_FASTER", 0.0)
    good = taught_lexical(given, seed=0)
    wrong = replace(good, weights=-good.weights, bias=-good.bias)
    found = {}
    for name, lexical in (("good", good), ("wrong", wrong)):
        asked = _asked_for(run, "auto", heard)
        found[name] = chosen_student(given, lexical, asked, stop=lambda: False).name
        assert f"validation rows {bert_folder}" in asked.notes[-1]
    assert found == {"good": "TF-IDF", "wrong": f"{bert_folder} of 3 blocks"}


def test_auto_teaches_no_encoder_that_is_hardly_faster(lesson, bert_folder, heard, monkeypatch):
    given, run = lesson
    monkeypatch.setattr("tagsmith.teaching.ENCODER", str(bert_folder))
    monkeypatch.setattr("tagsmith.teaching.MUCH_FASTER", 1e9)
    asked = _asked_for(run, "auto", heard)
    student = chosen_student(given, taught_lexical(given, seed=0), asked, stop=lambda: False)
    assert student.name == "TF-IDF"
    assert "times as fast as the winner" in asked.notes[-1]
    assert not [event for event in heard if event.name == "step"]


def test_auto_does_without_an_encoder_that_cannot_be_had(lesson, tmp_path, heard, monkeypatch):
    given, run = lesson
    monkeypatch.setattr("tagsmith.teaching.ENCODER", str(tmp_path / "absent"))
    asked = _asked_for(run, "auto", heard)
    assert chosen_student(given, taught_lexical(given, seed=0), asked, stop=lambda: False).name == "TF-IDF"
    assert "cannot be had here" in asked.notes[-1]


def test_a_student_that_is_stopped_is_none_and_leaves_nothing_behind(lesson, toy_csv, bert_folder, heard, monkeypatch):
    given, run = lesson
    asked = _asked_for(run, str(bert_folder), heard)
    prepared, folder = prepare_sources(toy_csv, None, None, run), given.winner.folder
    file = folder.with_name("unlabelled.csv")
    pl.DataFrame({"text": given.texts}).write_csv(file)
    distil(given.winner, prepared, file, asked, stop=lambda: True)
    assert "stopped before it was done" in heard[-1].values["text"]
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "bundle-to-label.csv", "unlabelled.csv"}


def test_a_student_that_cannot_be_had_is_refused_before_training(tmp_path, toy_csv, quick_config):
    config = quick_config(tuning={"student": str(tmp_path / "absent")})
    with pytest.raises(AssetError, match="absent"):
        train(toy_csv, out=tmp_path / "bundle", config=config, unlabelled=toy_csv)
    assert not (tmp_path / "bundle").exists()


def test_several_processes_teach_no_encoder(quick_config):
    config = quick_config(tuning={"student": "auto"})
    with pytest.raises(SettingError, match="one process"):
        require_student(config, Run(config, lambda _: None, command=""), processes=2)


def test_a_student_without_rows_to_learn_from_is_refused(toy_csv):
    found = CliRunner().invoke(app, ["train", str(toy_csv), "--student", "minilm-l6"])
    assert isinstance(found.exception, SettingError)
    assert "--unlabelled FILE" in str(found.exception)
