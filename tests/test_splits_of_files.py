"""From a file with columns that say how to split it, to a bundle, and on to the next training from that bundle."""

import csv
import json
import sys

import pytest

from tagsmith import cli
from tagsmith.data.earlier import SPLITS, Earlier
from tagsmith.data.readers import read
from tagsmith.errors import BundleError, DataError
from tagsmith.pipeline import evaluate, train


def write(path, rows, **columns):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", *columns])
        for i, (text, label) in enumerate(rows):
            writer.writerow([text, label, *(values[i] for values in columns.values())])
    return path


def history_of(bundle):
    return " ".join(change["reason"] for change in bundle.report["data"]["history"])


def test_a_column_of_parts_is_honoured_and_other_files_do_without_it(toy_rows, tiny_folder, quick_config, tmp_path):
    parts = ["test" if i % 5 == 0 else "dev" if i % 5 == 1 else "train" for i in range(len(toy_rows))]
    source = write(tmp_path / "rows.csv", toy_rows, where=parts)
    config = quick_config(tiny_folder).with_settings({"data": {"split_column": "where"}})
    bundle = train(source, out=tmp_path / "bundle", config=config)
    counts = bundle.report["data"]["splits"]
    assert counts["test"] == parts.count("test")
    assert counts["validation"] + counts["calibration"] == parts.count("dev")
    assert "data.split_column=where" in bundle.report["reproduce"]
    plain = write(tmp_path / "plain.csv", toy_rows[:40])
    assert evaluate(bundle, plain).test["n"] == 40


def test_the_newest_rows_of_a_file_are_tested(toy_rows, tiny_folder, quick_config, tmp_path):
    days = [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(len(toy_rows))]
    source = write(tmp_path / "rows.csv", toy_rows, when=days)
    config = quick_config(tiny_folder).with_settings({"data": {"split": "time", "time": "when"}})
    bundle = train(source, out=tmp_path / "bundle", config=config)
    assert "in order of time, groups whole" in history_of(bundle)
    assert "train from 2024-01-01" in history_of(bundle)
    broken = write(tmp_path / "broken.csv", toy_rows, when=[*days[:-1], "yesterday"])
    with pytest.raises(DataError, match=f"Row {len(toy_rows) - 1} has the time 'yesterday'"):
        train(broken, out=tmp_path / "other", config=config)


def test_training_from_an_earlier_bundle_keeps_its_test_rows(
    llama_bundle, toy_rows, tiny_folder, tmp_path, monkeypatch, capsys
):
    remembered = Earlier.read(llama_bundle)
    assert SPLITS in json.loads((llama_bundle / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    new = [(f"{text} and number {i} more words of its own", label) for i, (text, label) in enumerate(toy_rows[:60])]
    source = write(tmp_path / "more.csv", [*toy_rows, *new])
    out = tmp_path / "bundle"
    settings = {"model.backbone": tiny_folder, "model.layers": "all", "model.max_tokens": 48, "tuning.epochs": 1}
    words = ["train", source, "--from", llama_bundle, "--out", out]
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    monkeypatch.setattr(sys, "argv", ["tagsmith", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0, capsys.readouterr().err
    table = read(source)
    before, after = remembered.parts_of(table), Earlier.read(out).parts_of(table)
    assert ((before == after) | (before < 0)).all()
    assert (before == 3).sum() > 0
    reproduced = json.loads((out / "report.json").read_text(encoding="utf-8"))["reproduce"]
    assert f"data.earlier={llama_bundle}" in reproduced


def test_an_altered_earlier_bundle_is_refused(llama_bundle, toy_csv, tiny_folder, quick_config, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(llama_bundle, copy)
    (copy / SPLITS).write_bytes(b"altered")
    config = quick_config(tiny_folder).with_settings({"data": {"earlier": str(copy)}})
    with pytest.raises(BundleError, match=SPLITS):
        train(toy_csv, out=tmp_path / "bundle", config=config)
