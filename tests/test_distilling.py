"""Rows without labels after a training: what the student learns from, what is asked about, and what is left alone."""

import csv
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tagsmith.cli import app
from tagsmith.data.table import Table
from tagsmith.deployment.bundle import load
from tagsmith.deployment.engine import open_engine
from tagsmith.distilling import ranked
from tagsmith.errors import SettingError
from tagsmith.model.lexical_fitting import fit_lexical
from tagsmith.pipeline import train


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
