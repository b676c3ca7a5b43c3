import errno
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from tagsmith.deployment.bundle import load
from tagsmith.deployment.manifest import MANIFEST, UNHASHED, refuse_existing, staging, unlisted, verify
from tagsmith.errors import BundleError, ResourceError, SettingError


@pytest.fixture
def small(tmp_path):
    """A bundle's manifest over small files, one of them in a folder."""
    with staging(tmp_path / "small", force=False) as aside:
        (aside / "model.safetensors").write_bytes(bytes(range(256)))
        (aside / "trunk").mkdir()
        (aside / "trunk" / "config.json").write_text('{"a": 1}')
        (aside / "README.md").write_text("a card")
        (aside / "report.html").write_text("a page")
    return tmp_path / "small"


def listed(folder):
    return sorted(json.loads((folder / MANIFEST).read_text())["files"])


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_the_folder_may_read_its_files(mask, tmp_path):
    before = os.umask(mask)
    try:
        with staging(tmp_path / "b", force=False) as aside:
            save_file({"weight": np.zeros(3)}, aside / "model.safetensors")
    finally:
        os.umask(before)
    for path in (tmp_path / "b").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path.name


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_file_truncated_anywhere_is_refused_and_named(kind, request, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(request.getfixturevalue(f"{kind}_bundle"), folder)
    for name in [*listed(folder), MANIFEST]:
        whole = (folder / name).read_bytes()
        for size in {0, 1, len(whole) // 2, len(whole) - 1}:
            (folder / name).write_bytes(whole[:size])
            with pytest.raises(BundleError, match=name.split("/")[-1]):
                verify(folder)
        (folder / name).write_bytes(whole)
    verify(folder)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_flipped_bit_is_refused_and_its_file_named(kind, request, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(request.getfixturevalue(f"{kind}_bundle"), folder)
    random = np.random.default_rng(0)
    names = [*listed(folder), MANIFEST]
    for i in range(240):
        name = names[i % len(names)]
        whole = (folder / name).read_bytes()
        place, bit = int(random.integers(len(whole))), int(random.integers(8))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        (folder / name).write_bytes(flipped)
        with pytest.raises(BundleError, match=name.split("/")[-1]):
            verify(folder)
        (folder / name).write_bytes(whole)
    verify(folder)


def test_every_single_byte_of_the_manifest_counts(small):
    whole = (small / MANIFEST).read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (small / MANIFEST).write_bytes(flipped)
        with pytest.raises(BundleError, match=MANIFEST):
            verify(small)


def test_an_altered_bundle_is_not_loaded(llama_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(llama_bundle, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(BundleError, match=r"'model\.safetensors' in the bundle .* is not the file that was saved"):
        load(folder)


def test_a_missing_file_is_named(small):
    (small / "trunk" / "config.json").unlink()
    with pytest.raises(BundleError, match=r"lacks 'trunk/config\.json'"):
        verify(small)


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_another_format_version_is_refused_in_words(version, small):
    plain = json.loads((small / MANIFEST).read_text())
    (small / MANIFEST).write_text(json.dumps(plain | {"format": version}, indent=1))
    with pytest.raises(BundleError, match=rf"has format {version} .*this release reads format 1\. Install the release"):
        verify(small)


@pytest.mark.parametrize("what", ["absent", "empty folder", "a file"])
def test_what_is_no_bundle_is_refused_in_words(what, tmp_path):
    folder = tmp_path / "x"
    if what == "empty folder":
        folder.mkdir()
    elif what == "a file":
        folder.write_text("hello")
    with pytest.raises(BundleError, match=r"is no Tagsmith bundle"):
        load(folder)


@pytest.mark.parametrize("name", ["README.md", "report.html", "run.json"])
def test_files_for_people_may_be_edited_or_left_behind(name, llama_bundle, tmp_path):
    for change in (lambda path: path.write_text("mine"), lambda path: path.unlink()):
        folder = tmp_path / "bundle"
        shutil.copytree(llama_bundle, folder)
        change(folder / name)
        assert load(folder).predict(["lovely"]) == load(llama_bundle).predict(["lovely"])
        shutil.rmtree(folder)


def test_files_for_people_stand_in_no_manifest(llama_bundle):
    assert not UNHASHED & set(listed(llama_bundle))
    assert (llama_bundle / "report.html").exists()


def test_all_other_files_stand_in_the_manifest(llama_bundle, bert_bundle):
    for folder in (llama_bundle, bert_bundle):
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert there - UNHASHED == set(listed(folder))


def test_a_file_that_nobody_listed_is_found_and_not_refused(small):
    (small / "notes.txt").write_text("mine")
    verify(small)
    assert list(unlisted(small)) == ["notes.txt"]


# ---- Saved whole or not at all


def test_what_fails_on_the_way_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), staging(tmp_path / "b", force=False) as aside:
        (aside / "half.txt").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "b", force=False) as aside:
        (aside / "half.txt").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_untouched(small):
    before = {path.name: path.read_bytes() for path in small.iterdir() if path.is_file()}
    with (
        pytest.raises(SettingError, match="exists. Choose another name with --out, or give --force"),
        staging(small, force=False),
    ):
        pytest.fail("the block must not be entered")
    assert {path.name: path.read_bytes() for path in small.iterdir() if path.is_file()} == before


def test_force_replaces_a_whole_folder(small):
    with staging(small, force=True) as aside:
        assert (small / "README.md").exists(), "the old one stays until the new one is whole"
        (aside / "new.txt").write_text("new")
    assert sorted(path.name for path in small.iterdir()) == [MANIFEST, "new.txt"]
    assert [path.name for path in small.parent.iterdir()] == ["small"]


def test_force_keeps_the_old_folder_when_the_new_one_fails(small):
    with pytest.raises(RuntimeError), staging(small, force=True):
        raise RuntimeError
    verify(small)
    assert [path.name for path in small.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_a_resource_error(reason, tmp_path):
    with (
        pytest.raises(ResourceError, match=r"Cannot write .* Free some space, or choose another place"),
        staging(tmp_path / "b", force=False) as aside,
    ):
        (aside / "half.txt").write_text("half")
        raise OSError(reason, "as the system says")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_weights_are_written_is_a_resource_error(tmp_path):
    """safetensors wraps the system's error in one of its own, which is no OSError."""
    import resource
    import signal

    import torch
    from safetensors.torch import save_file

    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(ResourceError, match="File too large"), staging(tmp_path / "b", force=False) as aside:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
            save_file({"a": torch.zeros(100_000)}, aside / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_the_system_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(IsADirectoryError), staging(tmp_path / "b", force=False):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    assert list(tmp_path.iterdir()) == []


def test_refusing_looks_at_nothing_else(tmp_path):
    refuse_existing(tmp_path / "new", force=False)
    refuse_existing(tmp_path, force=True)
    with pytest.raises(SettingError):
        refuse_existing(tmp_path, force=False)
