import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagsmith.data.readers import read
from tagsmith.errors import TagsmithError

FILE = Path(__file__).with_name("nasty.py")
spec = importlib.util.spec_from_file_location("nasty", FILE)
sys.modules["nasty"] = nasty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nasty)

LIGHT = [name for name, entry in nasty.CORPUS.items() if not entry.heavy]
HEAVY = [name for name, entry in nasty.CORPUS.items() if entry.heavy]


def outcome(name, folder):
    """The number of rows that were read, or the paragraph that says why not."""
    entry = nasty.CORPUS[name]
    source = entry.make(folder)
    try:
        return len(read(source, **dict(entry.options)))
    except TagsmithError as error:
        return str(error)


def is_expected(found, gives):
    if isinstance(gives, int) or isinstance(found, int):
        return found == gives
    return gives in found and "\n" not in found and found.endswith((".", ".'")) and len(found) < 2000


def test_the_corpus_is_large():
    assert len(nasty.CORPUS) >= 60


@pytest.mark.parametrize("name", LIGHT)
def test_a_nasty_file_gives_a_table_or_one_paragraph(tmp_path, name):
    found = outcome(name, tmp_path)
    assert is_expected(found, nasty.CORPUS[name].gives), found


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """What the heavy files gave in a process that may have 4 GiB of addresses: found, seconds."""
    done = subprocess.run(
        [sys.executable, str(FILE), str(tmp_path_factory.mktemp("heavy")), *HEAVY],
        env=os.environ | {"POLARS_MAX_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.alone
@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_file_is_refused_in_little_memory_and_time(heavy, name):
    found, seconds = heavy[name]
    assert is_expected(found, nasty.CORPUS[name].gives), found
    assert seconds < 2


def test_heavy_files_stay_far_below_4_gib(heavy):
    assert heavy["peak_mib"] < 2048


def test_a_password_is_in_no_refusal(tmp_path):
    for address in (
        "mysql://me:s3cr3t@host/rows",
        "postgresql://me:s3cr3t@127.0.0.1:1/rows",
        "postgres://me:s3%cr3t@h",
    ):
        with pytest.raises(TagsmithError) as caught:
            read(address)
        assert "cr3t" not in str(caught.value)
        assert "me:***@" in str(caught.value)
