import json
import shutil

import pytest

from tagsmith.assets import cache_folder, publish
from tagsmith.catalogue import ASSETS
from tagsmith.model.gguf import converted_folder
from tagsmith.model.tokenizer_files import tokenizer_at_hand

GGUF = "smollm2-135m-instruct-q4"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TAGSMITH_CACHE", str(tmp_path / "cache"))


def published(folder, source, tmp_path):
    aside = tmp_path / "aside"
    aside.mkdir()
    shutil.copyfile(source / "tokenizer.json", aside / "tokenizer.json")
    publish(aside, folder)
    return folder / "tokenizer.json"


@pytest.mark.parametrize("name", [GGUF, "minilm-l6", "gpt2", "org/name", "./nowhere", "no such thing"])
def test_an_empty_cache_has_no_tokenizer_and_nothing_is_fetched(name):
    assert tokenizer_at_hand(name) is None
    assert not cache_folder().exists()


def test_a_local_folder_has_its_own(tiny_folder):
    assert tokenizer_at_hand(str(tiny_folder)) == tiny_folder / "tokenizer.json"


def test_what_a_gguf_was_converted_to_has_one(tiny_folder, tmp_path):
    path = published(converted_folder(ASSETS[GGUF].weights_sha256), tiny_folder, tmp_path)
    assert tokenizer_at_hand(GGUF) == path


def test_one_from_the_hub_is_found_by_its_id(tiny_folder, tmp_path):
    path = published(cache_folder() / "hub" / "org--name", tiny_folder, tmp_path)
    assert tokenizer_at_hand("org/name") == path


def test_an_altered_file_of_the_cache_is_not_used(tiny_folder, tmp_path):
    path = published(cache_folder() / "hub" / "org--name", tiny_folder, tmp_path)
    path.write_text(json.dumps({}))
    assert tokenizer_at_hand("org/name") is None
