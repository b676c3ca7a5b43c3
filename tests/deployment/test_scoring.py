import json
import sqlite3

import polars as pl
import pytest

from tagsmith.deployment import scoring
from tagsmith.deployment.bundle import load
from tagsmith.deployment.scoring import score
from tagsmith.errors import DataError, ResourceError, SettingError, TagsmithError

ROWS = [
    (str(i), text, f"note {i}") for i, text in enumerate(["lovely, room", 'a "rude" waiter', "", "1 " * 90, "Größe"])
]


@pytest.fixture(scope="module")
def bundle(llama_bundle):
    return load(llama_bundle)


@pytest.fixture
def source(tmp_path, save_csv):
    return save_csv(tmp_path / "in.csv", ROWS, header=("id", "text", "note"))


def read_back(path):
    readers = {
        ".csv": lambda: pl.read_csv(path, infer_schema=False),
        ".tsv": lambda: pl.read_csv(path, separator="\t", infer_schema=False),
        ".jsonl": lambda: pl.read_ndjson(path),
        ".parquet": lambda: pl.read_parquet(path),
    }
    return readers[path.suffix]()


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_the_users_columns_and_rows_stay_as_they_are(ending, bundle, source, tmp_path):
    out = tmp_path / f"out{ending}"
    assert score(bundle, source, out=out) == len(ROWS)
    frame = read_back(out)
    assert frame.columns == ["id", "text", "note", "predicted_label", "probability", "truncated", "remark"]
    assert frame["id"].to_list() == [row[0] for row in ROWS]
    assert [text or "" for text in frame["text"].to_list()] == [row[1] for row in ROWS]
    assert frame["predicted_label"].to_list() == bundle.predict([row[1] for row in ROWS])
    assert [str(cut).lower() for cut in frame["truncated"]] == ["false", "false", "false", "true", "false"]
    assert frame["remark"].to_list() == [None, None, "empty", None, None]


def test_a_jsonl_source_keeps_its_columns(bundle, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"n": i, "text": row[1]}) + "\n" for i, row in enumerate(ROWS)))
    score(bundle, source, out=tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [str(line["n"]) for line in lines] == ["0", "1", "2", "3", "4"]
    assert list(lines[0]) == ["n", "text", "predicted_label", "probability", "truncated", "remark"]


def test_rows_scored_part_by_part_are_the_same(bundle, source, tmp_path, monkeypatch, heard):
    score(bundle, source, out=tmp_path / "whole.csv")
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 2)
    score(bundle, source, out=tmp_path / "parts.csv", listen=heard.append)
    whole, parts = (read_back(tmp_path / name) for name in ("whole.csv", "parts.csv"))
    assert whole.drop("probability").equals(parts.drop("probability"))
    assert [(event.step, event.total) for event in heard] == [(2, 5), (4, 5), (5, 5)]


def test_an_existing_file_is_refused_and_untouched(bundle, source, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(SettingError, match="exists"):
        score(bundle, source, out=out)
    assert out.read_text() == "mine"
    score(bundle, source, out=out, force=True)
    assert out.read_text() != "mine"


def test_an_unknown_ending_is_refused(bundle, source, tmp_path):
    with pytest.raises(SettingError, match=r"ends in '\.xlsx'; expected one of \.csv"):
        score(bundle, source, out=tmp_path / "out.xlsx")


@pytest.mark.parametrize("name", ["predicted_label", "probability", "truncated", "remark"])
def test_a_column_of_the_users_is_never_overwritten(name, bundle, tmp_path, save_csv):
    source = save_csv(tmp_path / "in.csv", [("lovely", "mine")], header=("text", name))
    with pytest.raises(DataError, match=name):
        score(bundle, source, out=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_wrong_column_is_refused(bundle, source, tmp_path):
    with pytest.raises(TagsmithError, match="nope"):
        score(bundle, source, out=tmp_path / "out.csv", text="nope")
    assert not (tmp_path / "out.csv").exists()


def test_a_disk_that_cannot_be_written_leaves_nothing_behind(bundle, source, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        score(bundle, source, out=tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_template_is_filled_and_a_databases_rows_are_labelled(bundle, tmp_path):
    with sqlite3.connect(tmp_path / "in.db") as connection:
        connection.execute("CREATE TABLE rows AS SELECT 'good' AS title, 'lovely room' AS body, 7 AS id")
    connection.close()
    address, out = f"sqlite:///{tmp_path}/in.db", tmp_path / "out.csv"
    assert score(bundle, address, out=out, text="{title}: {body}", query="SELECT * FROM rows") == 1
    frame = read_back(out)
    assert frame["predicted_label"].to_list() == bundle.predict(["good: lovely room"])
    assert frame["id"].to_list() == ["7"]


def test_lists_of_the_source_become_json_in_a_csv(bundle, tmp_path):
    pl.DataFrame({"text": ["lovely room"], "tags": [["a", "b"]]}).write_parquet(tmp_path / "in.parquet")
    score(bundle, tmp_path / "in.parquet", out=tmp_path / "out.csv")
    assert read_back(tmp_path / "out.csv")["tags"].to_list() == ['["a", "b"]']
