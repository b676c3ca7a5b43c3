import numpy as np
import polars as pl
import pytest

from tagsmith.config import Config, DataConfig
from tagsmith.data.files import Layout
from tagsmith.data.hands import OWN
from tagsmith.data.near_twins import sketched
from tagsmith.data.sources import file_at
from tagsmith.errors import DataError, ResourceError, SettingError
from tagsmith.pipeline import prepare_rows
from tagsmith.scale import nodes as scale_nodes
from tagsmith.scale import prepare as scale_prepare
from tagsmith.scale.prepare import Cluster, require_hash_splits

HASH = Config.of({"data": {"split": "hash"}})


@pytest.mark.parametrize("split", ["group", "time", "kfold", "book"])
def test_splits_that_are_not_by_a_hash_are_refused_and_not_changed(split):
    with pytest.raises(SettingError, match=f"data.split is '{split}'.*--set data.split=hash"):
        require_hash_splits(DataConfig(split=split, **({"time": "day"} if split == "time" else {})))
    require_hash_splits(HASH.data)


@pytest.fixture
def hands(cluster, monkeypatch):
    """Hands on the cluster that take blocks of 100 texts and ranges of 150 keys."""
    monkeypatch.setattr(scale_prepare, "_TEXTS_IN_A_BLOCK", 100)
    monkeypatch.setattr(scale_prepare, "_KEYS_IN_A_RANGE", 150)
    return Cluster().hands()


@pytest.fixture
def rows(make_rows):
    """Rows with exact twins, near twins, dirt, texts without a shingle, and empty ones."""
    rows = make_rows(340, duplicates=20)
    rows += [(f"{text} indeed", label) for text, label in rows[:40]]
    rows += [(f"<p>{text}</p>  \u200b", label) for text, label in rows[60:90]]
    return [*rows, ("ok", "praise"), ("", "praise"), ("   ", "complaint")]


def frames_of(ready):
    return {name: part.frame for name, part in ready.prepared.splits.items()}


@pytest.mark.ray
def test_rows_are_the_same_as_those_of_one_process(hands, rows, tmp_path, heard):
    for i in range(4):
        pl.DataFrame(
            rows[i * 100 : (i + 1) * 100 if i < 3 else None], schema=["text", "label"], orient="row"
        ).write_parquet(tmp_path / f"{i}.parquet")
    source = str(tmp_path / "*.parquet")
    config = HASH.with_settings({"data": {"clean": ["html", "invisible", "spaces"]}})
    one, many = (prepare_rows(source, config=config, hands=each, listen=heard.append) for each in (OWN, hands))
    for name, frame in frames_of(one).items():
        assert frames_of(many)[name].equals(frame), name
    assert one.prepared.history == many.prepared.history
    assert one.prepared.duplicates == many.prepared.duplicates
    assert one.prepared.duplicates["near_rows"] > 60


@pytest.mark.ray
def test_groups_are_the_same_where_the_threshold_has_to_rise(hands):
    chain = [" ".join(f"w{i + j}" for j in range(12)) for i in range(130)]
    texts = pl.Series([*chain, *(f"something else {i} {i * i}" for i in range(220))])
    within = np.arange(len(texts)) // 170
    for near, numbers in ((0.6, None), (0.75, within)):
        found = []
        for sketches_of in (sketched, hands.sketched):
            with sketches_of(texts, near=near) as sketches:
                found.append(sketches.links(near=near, within=numbers))
        np.testing.assert_array_equal(*found)
        assert len(np.unique(found[0])) < len(texts)


@pytest.mark.ray
def test_what_a_text_sends_does_not_grow_with_the_rows(cluster, monkeypatch, make_rows):
    monkeypatch.setattr(scale_prepare, "_TEXTS_IN_A_BLOCK", 500)
    costs = []
    for count in (500, 2000):
        on = Cluster()
        texts = pl.Series([f"{text} {i * 7919}" for i, (text, _) in enumerate(make_rows(count))])
        with on.hands().sketched(texts, near=0.8) as sketches:
            sketches.links(near=0.8)
        costs.append(on.traffic.bytes_per_text)
    assert costs[1] == pytest.approx(costs[0], rel=0.05)


@pytest.mark.ray
def test_a_file_that_cannot_be_read_is_told_as_by_one_process(hands, tmp_path):
    pl.DataFrame({"text": ["a"], "label": ["b"]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing else")
    files = [file_at(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    told = []
    for each in (OWN, hands):
        with pytest.raises(DataError) as error:
            each.read_files(files, Layout(), tmp_path / "scratch")
        told.append(str(error.value))
    assert told[0] == told[1]


@pytest.mark.ray
def test_files_that_others_do_not_see_are_refused(hands, tmp_path, monkeypatch):
    files = []
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("text,label\na,b\n")
        files.append(file_at(tmp_path / name))
    monkeypatch.setattr(scale_nodes, "_size_probe", lambda paths: lambda: [-1, -1])
    with pytest.raises(SettingError, match="is not the same folder on 1 of 1 machines"):
        hands.read_files(files, Layout(), tmp_path / "scratch")


@pytest.mark.ray
def test_a_cluster_without_room_for_a_task_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(scale_prepare, "_BYTES_OF_A_TASK", 1e15)
    with pytest.raises(ResourceError, match="Preparing needs 1 worker"):
        Cluster().hands()


@pytest.mark.ray
def test_a_machine_that_dies_again_and_again_is_one_paragraph(cluster):
    import os

    with pytest.raises(ResourceError, match="was lost while rows were prepared") as error:
        scale_prepare._all_of(lambda code: os._exit(code), [(1,)])
    assert "\n" not in str(error.value)
