import csv
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagsmith.deployment import scoring
from tagsmith.deployment.bundle import load
from tagsmith.deployment.journal import folder_of
from tagsmith.deployment.scoring import score
from tagsmith.deployment.written import Format
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


def test_a_jsonl_source_keeps_its_values(bundle, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"n": i, "text": row[1]}) + "\n" for i, row in enumerate(ROWS)))
    score(bundle, source, out=tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines] == [0, 1, 2, 3, 4]
    assert list(lines[0]) == ["n", "text", "predicted_label", "probability", "truncated", "remark"]


def test_rows_scored_part_by_part_are_the_same(bundle, source, tmp_path, monkeypatch, heard):
    score(bundle, source, out=tmp_path / "whole.csv")
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 2)
    score(bundle, source, out=tmp_path / "parts.csv", listen=heard.append)
    assert all(event.values["seconds_left"] >= 0 for event in heard)
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


def test_a_parquet_source_keeps_its_types(bundle, tmp_path):
    from datetime import date

    frame = pl.DataFrame({"text": ["lovely", "rude"], "day": [date(2026, 1, 2), None], "n": [1, 2], "x": [0.5, 1.0]})
    frame.write_parquet(tmp_path / "in.parquet")
    score(bundle, tmp_path / "in.parquet", out=tmp_path / "out.parquet")
    found = read_back(tmp_path / "out.parquet")
    assert found.select(frame.columns).equals(frame)
    assert found.schema["probability"] == pl.Float64


def test_files_of_a_pattern_are_labelled_as_one(bundle, tmp_path, save_csv, monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 3)
    for i in range(3):
        save_csv(tmp_path / f"in-{i}.csv", [(f"lovely {i} {n}",) for n in range(4)], header=("text",))
    assert score(bundle, str(tmp_path / "in-*.csv"), out=tmp_path / "out.csv") == 12
    texts = read_back(tmp_path / "out.csv")["text"].to_list()
    assert texts == [f"lovely {i} {n}" for i in range(3) for n in range(4)]


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "＝1", "a=1", "", "plain"]


def test_cells_that_a_spreadsheet_would_compute_begin_with_an_apostrophe_on_request(bundle, tmp_path, save_csv):
    source = save_csv(tmp_path / "in.csv", [("lovely", cell) for cell in FORMULAS], header=("text", "=note"))
    score(bundle, source, out=tmp_path / "exact.csv")
    score(bundle, source, out=tmp_path / "safe.csv", spreadsheet_safe=True)
    files = (io.StringIO((tmp_path / name).read_bytes().decode(), newline="") for name in ("exact.csv", "safe.csv"))
    exact, safe = map(list, map(csv.reader, files))
    assert [row[1] for row in exact] == ["=note", *FORMULAS]
    expected = ["=note", *FORMULAS]
    assert [row[1] for row in safe] == [
        f"'{cell}" if cell[:1] in set("=+-@\t\r＝") - {""} else cell for cell in expected
    ]
    with pytest.raises(SettingError, match="which no spreadsheet opens"):
        score(bundle, source, out=tmp_path / "safe.jsonl", spreadsheet_safe=True)


@given(rows=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_csv_gives_back_what_was_written(rows, tmp_path):
    kept = [tuple(re.sub("[\ud800-\udfff]", "?", cell) for cell in row) for row in rows]
    form = Format(".csv", ["a", "b"])
    form.write_part([dict(zip("ab", row, strict=True)) for row in kept], tmp_path / "part")
    form.join([tmp_path / "part"], tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("a", "b"), *kept]


# ---- interrupted


class Killed(BaseException):
    pass


@pytest.fixture
def stopped(monkeypatch, bundle, source, tmp_path):
    """A run over five rows in parts of two that ends after its second part."""
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 2)

    def die(event):
        if event.step == 4:
            raise Killed

    with pytest.raises(Killed):
        score(bundle, source, out=tmp_path / "out.csv", listen=die)
    return tmp_path / "out.csv"


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(stopped, bundle, source, tmp_path, monkeypatch):
    assert not stopped.exists()
    asked = []
    answer = bundle.engine.answer
    monkeypatch.setattr(bundle.engine, "answer", lambda texts: asked.append(len(texts)) or answer(texts))
    assert score(bundle, source, out=stopped, resume=True) == 5
    assert asked == [1], "two parts were done"
    monkeypatch.setattr(bundle.engine, "answer", answer)
    score(bundle, source, out=tmp_path / "whole.csv")
    assert stopped.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not folder_of(stopped).exists()


def test_an_interrupted_run_is_not_gone_on_with_unasked(stopped, bundle, source):
    with pytest.raises(SettingError, match=r"begun before and not finished \(2 parts are done\).*--resume"):
        score(bundle, source, out=stopped)
    assert score(bundle, source, out=stopped, force=True) == 5


def test_a_damaged_part_and_a_torn_line_are_made_again(stopped, bundle, source, tmp_path):
    (folder_of(stopped) / "part-000000").write_bytes(b"spoilt")
    with (folder_of(stopped) / "journal.jsonl").open("ab") as file:
        file.write(b'{"part": 2, "rows": 1, "sha')
    score(bundle, source, out=stopped, resume=True)
    assert read_back(stopped)["id"].to_list() == ["0", "1", "2", "3", "4"]


def test_rows_that_changed_meanwhile_are_refused(stopped, bundle, source, save_csv):
    save_csv(source, [("9", "other", "changed"), *ROWS[1:]], header=("id", "text", "note"))
    with pytest.raises(DataError, match="Part 0 of .* holds other texts"):
        score(bundle, source, out=stopped, resume=True)


def test_another_engine_or_format_is_refused(stopped, llama_bundle, source, bundle):
    with pytest.raises(SettingError, match="begun with another engine"):
        score(load(llama_bundle, engine="tfidf"), source, out=stopped, resume=True)
    with pytest.raises(SettingError, match="begun with another spreadsheet safe"):
        score(bundle, source, out=stopped, resume=True, spreadsheet_safe=True)


def test_two_processes_do_not_make_the_same_output(stopped, bundle, source):
    import fcntl

    with (folder_of(stopped) / "journal.jsonl").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SettingError, match="Another process is making"):
            score(bundle, source, out=stopped, resume=True)


def test_a_run_that_was_killed_after_the_last_rename_is_done(stopped, bundle, source, monkeypatch):
    monkeypatch.setattr("tagsmith.deployment.journal.shutil.rmtree", lambda *arguments, **options: None)
    score(bundle, source, out=stopped, resume=True)
    monkeypatch.undo()
    assert score(bundle, source, out=stopped, resume=True) == 5
    assert not folder_of(stopped).exists()


KILLED_TIMES = int(os.environ.get("TAGSMITH_KILLS", "4"))


def test_after_any_number_of_kills_each_row_stands_there_once(llama_bundle, tmp_path, save_csv):
    """`kill -9` at random instants until the run comes through; a part is one row, so that there is much to lose."""
    rows = [(str(i), f"lovely {i}") for i in range(60)]
    source, out = save_csv(tmp_path / "in.csv", rows, header=("id", "text")), tmp_path / "out.csv"
    code = (
        "import sys, time; from tagsmith.deployment import scoring; from tagsmith.deployment.bundle import load;"
        "scoring.ROWS_AT_ONCE = 1;"
        "print('ready', flush=True);"
        "scoring.score(load(sys.argv[1], engine='tfidf'), sys.argv[2], out=sys.argv[3], resume=True,"
        " listen=lambda event: time.sleep(0.01))"
    )
    command = [sys.executable, "-c", code, str(llama_bundle), str(source), str(out)]
    random, kills, runs = np.random.default_rng(7), 0, 0
    while kills < KILLED_TIMES:
        runs += 1
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(random.uniform(0.05, 0.5))
        process.kill()
        kills += process.wait() == -9
        process.stdout.close()
        if out.exists():
            require_once(out, rows)
            out.unlink()
            shutil.rmtree(folder_of(out), ignore_errors=True)
    subprocess.run(command, check=True, capture_output=True)
    require_once(out, rows)


def require_once(out, rows):
    found = read_back(out)
    assert found.select("id", "text").rows() == rows
    assert found["predicted_label"].null_count() == 0


def test_rows_that_cannot_be_computed_are_set_aside_and_counted(bundle, source, tmp_path, monkeypatch, heard):
    answer = bundle.engine.answer

    def fails(texts):
        if any("rude" in text for text in texts):
            raise RuntimeError("cannot")
        return answer(texts)

    monkeypatch.setattr(bundle.engine, "answer", fails)
    assert score(bundle, source, out=tmp_path / "out.csv", listen=heard.append) == 5
    found = read_back(tmp_path / "out.csv")
    assert found["remark"].to_list() == [None, "failed", "empty", None, None]
    assert found["predicted_label"][1] is None
    assert heard[-1].values["text"].startswith("1 of 5 rows could not be computed and have no label")
