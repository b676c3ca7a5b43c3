import json
import os
import time
from functools import partial

import polars as pl
import pytest

from tagsmith.deployment import scoring
from tagsmith.deployment.bundle import load
from tagsmith.deployment.journal import NAME, folder_of
from tagsmith.deployment.scoring import Portion, score
from tagsmith.errors import ResourceError, SettingError
from tagsmith.scale import nodes as scale_nodes
from tagsmith.scale import pool
from tagsmith.scale import score as scale_score
from tagsmith.scale.pool import Lost, Patience
from tagsmith.scale.score import Task, Worker, _after_loss, score_on

pytestmark = pytest.mark.ray


@pytest.fixture
def rows(make_rows):
    return [(str(i), text) for i, (text, _) in enumerate(make_rows(230))]


@pytest.fixture
def source(tmp_path, save_csv, rows):
    return save_csv(tmp_path / "in.csv", rows, header=("id", "text"))


@pytest.fixture
def parts_of_twenty(monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 20)


@pytest.fixture
def on_two(cluster, llama_bundle, source, parts_of_twenty):
    """`on_two(out, **options)`: score the source with two workers, by TF-IDF."""

    def run(out, **options):
        return score_on("ray", llama_bundle, source, out=out, engine="tfidf", workers=2, **options)

    return run


def test_a_cluster_writes_the_bytes_that_one_machine_writes(on_two, llama_bundle, source, tmp_path, heard):
    assert on_two(tmp_path / "ray.csv", listen=heard.append) == 230
    score(load(llama_bundle, engine="tfidf"), source, out=tmp_path / "local.csv")
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
    assert [event.step for event in heard][-1] == 230
    assert heard[0].values["text"] == "2 workers of one CPU, each with the engine tfidf."
    assert not folder_of(tmp_path / "ray.csv").exists()


class Killed(BaseException):
    pass


def die_half_way(event):
    if event.step is not None and event.step >= 100:
        raise Killed


def test_either_finishes_what_the_other_began(on_two, llama_bundle, source, tmp_path):
    local = load(llama_bundle, engine="tfidf")
    score(local, source, out=tmp_path / "whole.csv")
    with pytest.raises(Killed):
        on_two(tmp_path / "one.csv", listen=die_half_way)
    done = folder_of(tmp_path / "one.csv").glob("part-??????")
    kept = {path.name: path.stat().st_mtime_ns for path in done}
    assert len(kept) >= 5
    assert score(local, source, out=tmp_path / "one.csv", resume=True) == 230
    with pytest.raises(Killed):
        score(local, source, out=tmp_path / "two.csv", listen=die_half_way)
    asked = []
    assert on_two(tmp_path / "two.csv", resume=True, listen=asked.append) == 230
    assert sum(event.name == "progress" for event in asked) == 12
    for name in ("one.csv", "two.csv"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_row_that_kills_its_workers_is_set_aside_and_all_others_are_labelled(
    on_two, rows, source, save_csv, tmp_path, monkeypatch, heard
):
    poisoned = [(number, "kills its worker" if i == 33 else text) for i, (number, text) in enumerate(rows)]
    save_csv(source, poisoned, header=("id", "text"))

    class Fragile(Worker):
        def answers(self, texts):
            if "kills its worker" in texts:
                os._exit(1)
            return super().answers(texts)

    monkeypatch.setattr(scale_score, "Worker", Fragile)
    hand_out, suspected = pool.Pool._hand_out, []

    def watched(self, *arguments):
        hand_out(self, *arguments)
        in_hand = [[task.crashes for _, task in hand.tasks] for hand in self._hands]
        suspected.extend(crashes for crashes in in_hand if any(crashes))

    monkeypatch.setattr(pool.Pool, "_hand_out", watched)
    assert on_two(tmp_path / "out.csv", listen=heard.append) == 230
    assert suspected
    assert all(len(crashes) == 1 for crashes in suspected), "else the row beside the poisoned one may be blamed"
    found = pl.read_csv(tmp_path / "out.csv", infer_schema=False)
    assert found.select("id", "text").rows() == poisoned
    assert found.filter(pl.col("remark") == "failed")["id"].to_list() == ["33"]
    assert found.filter(pl.col("predicted_label").is_null())["id"].to_list() == ["33"]
    assert heard[-1].values["text"].startswith("1 of 230 rows could not be computed")


def test_a_row_at_which_a_worker_hangs_is_set_aside_and_counted(
    on_two, rows, source, save_csv, tmp_path, monkeypatch, heard
):
    hanging = [(number, "hangs its worker" if i == 33 else text) for i, (number, text) in enumerate(rows)]
    save_csv(source, hanging, header=("id", "text"))

    class Slow(Worker):
        def answers(self, texts):
            if "hangs its worker" in texts:
                time.sleep(3600)
            return super().answers(texts)

    monkeypatch.setattr(scale_score, "Worker", Slow)
    monkeypatch.setattr(pool, "Patience", partial(Patience, least_s=0.5, first_s=2.0))
    monkeypatch.setattr(pool, "_SECONDS_BETWEEN_LOOKS", 0.2)
    assert on_two(tmp_path / "out.csv", listen=heard.append) == 230
    found = pl.read_csv(tmp_path / "out.csv", infer_schema=False)
    assert found.select("id", "text").rows() == hanging
    assert found.filter(pl.col("remark") == "failed")["id"].to_list() == ["33"]
    told = [str(event.values["text"]) for event in heard if event.name == "note"]
    assert any(text.startswith("A worker gave no answer to rows 20 to 39 for ") for text in told)
    assert told[-1].startswith("1 of 230 rows could not be computed")


def test_patience_is_many_times_what_others_took():
    patience = Patience(least_s=60, first_s=900, times=20)
    assert patience.limit(1024) == 900
    patience.note(1024, 10.0)
    assert patience.limit(1024) == pytest.approx(60 + 200)
    assert patience.limit(1) == pytest.approx(60, abs=1)


def test_workers_that_die_while_they_load_are_given_up_in_one_paragraph(on_two, tmp_path, monkeypatch):
    class Large(Worker):
        def start(self):
            os._exit(1)

    monkeypatch.setattr(scale_score, "Worker", Large)
    with pytest.raises(
        ResourceError, match=r"3 workers died one after the other while they loaded the bundle"
    ) as error:
        on_two(tmp_path / "out.csv")
    assert "\n" not in str(error.value)
    assert "GB of memory for each" in str(error.value)


def test_a_cluster_without_room_is_refused_before_the_start(on_two, tmp_path, monkeypatch):
    monkeypatch.setattr(scale_score, "_BYTES_OF_A_PROCESS", 1e15)
    with pytest.raises(ResourceError, match=r"Scoring needs 1 worker with 1 CPU, 1000000\.\d GB of memory each"):
        on_two(tmp_path / "out.csv")
    assert not folder_of(tmp_path / "out.csv").exists()


def test_a_bundle_that_others_do_not_see_is_refused(on_two, tmp_path, monkeypatch):
    monkeypatch.setattr(scale_nodes, "_reading_probe", lambda path: lambda: None)
    with pytest.raises(SettingError, match="is not the same folder on 1 of 1 machines"):
        on_two(tmp_path / "out.csv")


def test_an_error_that_the_user_can_mend_comes_back_from_a_worker_as_it_was(cluster, llama_bundle, source, tmp_path):
    with pytest.raises(SettingError, match="onnxruntime-int8"):
        score_on("ray", llama_bundle, source, out=tmp_path / "out.csv", engine="onnxruntime-int8", workers=1)


def test_a_part_that_a_worker_wrote_stands_in_the_journal_with_its_hash(on_two, tmp_path):
    with pytest.raises(Killed):
        on_two(tmp_path / "out.csv", listen=die_half_way)
    lines = [json.loads(line) for line in (folder_of(tmp_path / "out.csv") / NAME).read_text().splitlines()]
    assert lines[0]["engine"] == "tfidf"
    assert all(set(line) == {"part", "rows", "sha256", "texts_sha256", "aside"} for line in lines[1:])


# ---- who is to blame


def lost(task, pieces=None, *, blamed=True):
    return _after_loss(task, Lost(blamed), {} if pieces is None else pieces, None)


def part(rows=8):
    portion = Portion(0, [{"text": str(i)} for i in range(rows)], [str(i) for i in range(rows)], "")
    return Task(portion, 0, rows)


def test_a_part_whose_machine_went_away_is_computed_again_and_not_blamed():
    task = part()
    for _ in range(5):
        assert lost(task, blamed=False) == [task]
    assert task.crashes == 0


def test_a_part_that_kills_twice_is_halved_until_one_row_is_left():
    assert [(each.start, each.end) for each in lost(lost(part())[0])] == [(0, 4), (4, 8)]
    pieces = {}
    half = lost(lost(part())[0], pieces)[1]
    assert [(each.start, each.end) for each in lost(half, pieces)] == [(4, 6), (6, 8)]
    row = lost(lost(half, pieces)[0], pieces)[0]
    assert (row.start, row.end) == (4, 5)
    assert lost(row, pieces) == [row], "one row alone has two tries"


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a text", "--on", "ray"], "--on goes with --file"),
        (["--file", "in.csv", "--out", "out.csv", "--workers", "2"], "--workers goes with --on"),
    ],
)
def test_options_of_a_cluster_alone_are_refused(arguments, says):
    from typer.testing import CliRunner

    from tagsmith.cli import app

    done = CliRunner().invoke(app, ["predict", "bundle", *arguments])
    assert done.exit_code == 2
    assert says in done.output
