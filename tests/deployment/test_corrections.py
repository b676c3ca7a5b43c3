import hashlib
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from tagsmith.deployment.corrections import Corrections, HashLog, Journal
from tagsmith.errors import ResourceError
from tagsmith.pipeline import train


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def keep(corrections, text, *labels, pair=None, multi_label=False):
    return corrections.keep(text, labels, pair=pair, multi_label=multi_label, version="v1")


def test_what_is_kept_is_told_and_counted(tmp_path):
    corrections = Corrections(tmp_path / "c.jsonl")
    assert keep(corrections, "one\ntwo", "spam") == 1
    assert keep(corrections, "three", "ham", pair="four") == 2
    assert keep(corrections, "five", "a", "b", multi_label=True) == 3
    first, second, third = lines(tmp_path / "c.jsonl")
    assert (first["text"], first["label"], first["model"]) == ("one\ntwo", "spam", "v1")
    assert (second["text_pair"], third["labels"]) == ("four", ["a", "b"])


def test_an_existing_file_is_gone_on_with(tmp_path):
    keep(Corrections(tmp_path / "c.jsonl"), "one", "spam")
    assert keep(Corrections(tmp_path / "c.jsonl"), "two", "spam") == 2


def test_the_file_is_its_owners_alone(tmp_path):
    Corrections(tmp_path / "c.jsonl")
    assert stat.S_IMODE((tmp_path / "c.jsonl").stat().st_mode) == 0o600


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "cut sh')
    keep(Corrections(tmp_path / "c.jsonl"), "one", "spam")
    assert (tmp_path / "c.jsonl").read_text().split("\n")[1].startswith('{"text": "one"')


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    corrections = Corrections(tmp_path / "c.jsonl")
    keep(corrections, "one", "spam")
    before = (tmp_path / "c.jsonl").read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:5]))
    with pytest.raises(ResourceError, match="No space left"):
        keep(corrections, "two", "spam")
    assert (tmp_path / "c.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path):
    with pytest.raises(ResourceError, match="nowhere"):
        Corrections(tmp_path / "nowhere" / "c.jsonl")


def test_several_processes_keep_whole_lines(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tagsmith.deployment.corrections import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for i in range(50): journal.append([{'who': sys.argv[2], 'text': 'x' * 3000}])\n"
    )
    path = tmp_path / "c.jsonl"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [each.wait(timeout=60) for each in running] == [0, 0, 0]
    assert sorted(each["who"] for each in lines(path)) == sorted("abc" * 50)
    assert Journal(path).lines == 150


def test_the_log_of_hashes_holds_no_text(tmp_path):
    log = HashLog(tmp_path / "h.jsonl")
    log.note(["secret words"], np.array([[0.2, 0.8]]), labels=("ham", "spam"), version="v1")
    (line,) = lines(tmp_path / "h.jsonl")
    assert line["sha256"] == hashlib.sha256(b"secret words").hexdigest()
    assert (line["label"], line["probability"]) == ("spam", 0.8)
    assert "secret" not in (tmp_path / "h.jsonl").read_text()


def test_the_next_training_learns_from_what_was_kept(tmp_path, toy_csv, quick_config, llama_bundle):
    corrections = Corrections(tmp_path / "c.jsonl")
    for i in range(3):
        keep(corrections, f"the lamp of number {i} hums quietly and nobody minds", "praise")
    settings = quick_config(data={"earlier": str(llama_bundle), "corrections": str(tmp_path / "c.jsonl")})
    bundle = train(toy_csv, out=tmp_path / "bundle", config=settings)
    before = json.loads((llama_bundle / "report.json").read_text())["data"]["splits"]
    after = bundle.report["data"]["splits"]
    assert after == before | {"train": before["train"] + 3}
    assert any("3 corrections joined the training rows" in note for note in bundle.report["notes"])
