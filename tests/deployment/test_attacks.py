"""Bad input, as a stranger sends it: bodies that are no JSON, texts that are no texts, bundles that were meddled with.

The counts are a fiftieth of those in benchmarks/serving_faults.py, whose attacks these are.
"""

import contextlib
import http.client
import json
import os
import random
import re
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagsmith.deployment.bundle import load

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
CANARY = "a-canary-sings-4711"


@pytest.fixture(scope="module")
def faults():
    """The attacks of the benchmark."""
    import serving_faults

    return serving_faults


# ---- S9: bodies


BODIES = {
    "nothing": b"",
    "NaN": b'{"inputs": NaN}',
    "infinity": b'{"inputs": "a", "parameters": {"top_k": Infinity}}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"inputs":' * 50_000,
    "deep and closed": b"[" * 50_000 + b"]" * 50_000,
    "a number of 5000 digits": b'{"inputs": ' + b"9" * 5000 + b"}",
    "a huge exponent": b'{"inputs": 1e99999}',
    "a field twice": b'{"inputs": "a", "inputs": "b"}',
    "UTF-16": '{"inputs": "a"}'.encode("utf-16"),
    "UTF-32": '{"inputs": "a"}'.encode("utf-32"),
    "a byte order mark": b'\xef\xbb\xbf{"inputs": "a"}',
    "broken UTF-8": b'{"inputs": "\xff\xfe"}',
    "overlong UTF-8": b'{"inputs": "\xc0\xaf"}',
    "encoded surrogates": b'{"inputs": "\xed\xa0\x80"}',
    "a bare control character": b'{"inputs": "a\x00b"}',
    "text behind": b'{"inputs": "a"} x',
    "single quotes": b"{'inputs': 'a'}",
    "a trailing comma": b'{"inputs": "a",}',
    "a comment": b'{"inputs": "a"} // x',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_strict_json_is_400(name, llama_server):
    answer = llama_server.ask("/predict", raw=BODIES[name])
    assert answer.status == (422 if name == "a huge exponent" else 400), answer.body
    assert set(answer.json) == {"error", "error_type", "request_id"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        7,
        {"inputs": None},
        {"inputs": 7},
        {"inputs": {"a": 1}},
        {"inputs": []},
        {"inputs": [[]]},
        {"inputs": [["a"], ["b", "c"]]},
        {"inputs": [["a", "b", "c"]]},
        {"inputs": [[["a"]]]},
        {"inputs": "a", "truncate": "yes"},
        {"inputs": "a", "raw_scores": 1},
    ],
    ids=json.dumps,
)
def test_json_that_says_something_else_is_422(body, llama_server):
    assert llama_server.ask("/predict", body).status == 422


@pytest.mark.parametrize(
    "parameters",
    [{"top_k": 0}, {"top_k": -1}, {"top_k": "5"}, {"top_k": 1.5}, {"function_to_apply": "exp"}, {"top_k": True}],
    ids=json.dumps,
)
def test_parameters_that_cannot_be_are_422(parameters, llama_server):
    answer = llama_server.ask("/", {"inputs": "a", "parameters": parameters})
    assert answer.status == 422
    assert next(iter(parameters)) in answer.json["error"]


def test_a_body_of_two_megabytes_and_one_byte_is_413(llama_server):
    body = b'{"inputs": "' + b"a" * (2_000_001 - 14) + b'"}'
    assert len(body) == 2_000_001
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", llama_server.port), timeout=10) as client:
        client.sendall(head.encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")  # it does not wait for the body
    assert llama_server.ask("/predict", raw=body[:-3] + b'"}').status == 422  # it fits, and its text does not


def test_a_body_without_end_is_cut_off(llama_server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    chunk, sent, answer = b"10000\r\n" + b"a" * 65536 + b"\r\n", 0, b""
    with socket.create_connection(("127.0.0.1", llama_server.port), timeout=10) as client:
        client.sendall(head)
        with contextlib.suppress(ConnectionError):
            while sent < 64 * 2**20:
                client.sendall(chunk)
                sent += 65536
        with contextlib.suppress(ConnectionError):  # reset: there was more to come than it wanted to read
            answer = client.recv(65536)
    assert sent < 32 * 2**20
    assert answer[:12] in (b"", b"HTTP/1.1 413")
    assert llama_server.metric('tagsmith_requests_total{code="413",route="/predict"}') >= 1


def test_many_texts_are_413(llama_server):
    answer = llama_server.ask("/predict", {"inputs": [["a"]] * 33})
    assert answer.status == 413
    assert "32" in answer.json["error"]


# ---- S10, S11, S12: texts


HOSTILE = {
    "lone surrogate": ("\ud800", 422),
    "low surrogate": ("a\udfffb", 422),
    "reversed pair": ("\udc00\ud800", 422),
    "nothing": ("", 422),
    "spaces": (" \t\n\u00a0\u3000", 422),
    "NUL": ("a\0b", 200),
    "right to left": ("\u202elovely\u202c", 200),
    "joiners": ("l\u200do\u200dv\u200de", 200),
    "tag characters": ("lovely" + "".join(chr(0xE0000 + ord(c)) for c in "awful"), 200),
    "combining marks": ("a" + "\u0301" * 11_000, 200),
    "non-characters": ("\uffff\ufffe\U0010ffff", 200),
    "emoji": ("😀" * 3000, 200),
    "one long run": ("a" * 11_999, 200),
    "no-break spaces": ("\u00a0" * 11_000 + "a", 200),
    "too many letters": ("a" * 12_001, 422),
    "script": ("</script><script>alert(1)</script>", 200),
    "formula": ("=HYPERLINK(1)", 200),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_answered_or_refused_within_a_second(name, llama_server):
    text, status = HOSTILE[name]
    spent = []
    for _ in range(3):  # the machine may be busy with something else
        begun = time.monotonic()
        answer = llama_server.ask("/predict", {"inputs": text})
        spent.append(time.monotonic() - begun)
        assert answer.status == status, answer.body
        if spent[-1] < 1:
            break
    assert min(spent) < 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=200))
def test_any_string_of_python_is_answered_or_refused(llama_server, text):
    answer = llama_server.ask("/predict", raw=json.dumps({"inputs": text}).encode())
    assert answer.status in (200, 422)
    if answer.status == 200:
        assert sum(each["score"] for each in answer.json) == pytest.approx(1)


def test_the_names_of_control_tokens_are_text_like_any_other(llama_server, llama_bundle):
    bundle = load(llama_bundle)
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = {bundle.engine.classifier.encoder.tokenizer.token_to_id(name) for name in controls}
    texts = [f"{name}lovely{name}" for name in controls] + ["<|im_end|>" * 3]
    assert not ids & set(bundle.engine.encode(texts).ids.tolist())
    found = llama_server.ask("/predict", {"inputs": [[text] for text in texts]}).json
    for labels, probs in zip(found, bundle.predict_proba(texts), strict=True):
        scores = {each["label"]: each["score"] for each in labels}
        np.testing.assert_allclose([scores[label] for label in bundle.labels], probs, atol=1e-5)


# ---- S15: nothing is told


def test_no_error_log_or_counter_repeats_a_text(start, llama_bundle):
    server = start(llama_bundle, "--engine", "tfidf")
    kind = {"content-type": "application/x-ndjson"}
    bodies = [
        b'{"inputs": "%s"}',
        b'{"inputs": ["%s", "%s", "%s"]}',
        b'{"inputs": {"%s": 1}}',
        b'{"%s": "%s", "%s": 1}',
        b'{"inputs": "%s", "parameters": {"%s": 1, "top_k": "%s"}}',
        b'{"input": ["%s"], "model": "%s"}',
        b'{"inputs": [{"name": "%s", "datatype": "%s", "shape": ["%s"], "data": ["%s"]}]}',
        b"%s",
        b'{"inputs": "%s\\ud800"}',
        b'{"inputs": "a", "truncation_direction": "%s", "id": "%s"}',
    ]
    spoken = b""
    for path in ("/", "/predict", "/classify", "/v1/moderations", "/v2/models/bundle/infer", "/batch", f"/{CANARY}"):
        for body in bodies:
            raw = body.replace(b"%s", CANARY.encode())
            answer = server.ask(path, raw=raw, headers=kind if path == "/batch" else None)
            spoken += answer.body + str(answer.headers).encode()
    server.ask("/predict", {"inputs": CANARY}, headers={"x-request-id": CANARY + " \u00e9", "x-timeout-s": CANARY})
    spoken += server.ask("/metrics").body
    assert server.stop() == 0
    told = spoken.decode().replace(f"/{CANARY}", "")
    # An id that a client gives a line of /batch is given back: that is what it is for.
    assert CANARY not in re.sub(r'"id": "[^"]*"', "", told)
    assert CANARY not in "".join(server.log)
    for path in ("/tmp/", "site-packages", "Traceback", str(llama_bundle)):
        assert path not in told


# ---- S1, S18, S19, S21: code from outside


FORBIDDEN = re.compile(
    r"\bpickle\b|\bjoblib\b|\bmarshal\b|\bshelve\b|\btorch\.load\(|(?<!\.)\beval\(|(?<![.\w])exec\(|trust_remote_code"
)


def test_the_server_reads_no_format_that_runs_code():
    sources = sorted((ROOT / "src" / "tagsmith" / "deployment").glob("*.py"))
    assert len(sources) > 20
    lines = [(path.name, line) for path in sources for line in path.read_text(encoding="utf-8").splitlines()]
    found = [(name, line) for name, line in lines if FORBIDDEN.search(line) and "no pickle" not in line.lower()]
    assert found == []


class Planted:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(llama_bundle, tmp_path):
    import pickle
    import shutil

    from tagsmith.deployment.manifest import staging

    planted = tmp_path / "planted"
    with staging(tmp_path / "bundle", force=False) as aside:
        shutil.copytree(llama_bundle, aside, dirs_exist_ok=True)
        (aside / "MANIFEST.json").unlink()
        for name in ("model.safetensors", "pytorch_model.bin"):
            (aside / name).write_bytes(pickle.dumps(Planted(planted)))
    with pytest.raises(Exception, match=r"(?i)header|safetensors"):
        load(tmp_path / "bundle")
    assert not planted.exists()


@pytest.mark.parametrize("path", ["/reload", "/admin/reload", "/v2/repository/index", "/v2/repository/models/x/load"])
def test_no_route_loads_anything(path, llama_server):
    assert llama_server.ask(path, {}).status == 404


@pytest.mark.skipif(not hasattr(os, "kill"), reason="needs signals")
def test_an_engine_process_that_hears_nonsense_ends(llama_bundle):
    import subprocess

    command = [sys.executable, "-m", "tagsmith.deployment.engine_process", str(llama_bundle), "--engine", "tfidf"]
    generator = random.Random(5)
    for size in (0, 1, 11, 12, 13, 500):
        ended = subprocess.run(command, input=generator.randbytes(size), capture_output=True, timeout=60, check=False)
        assert ended.returncode == 0
        assert b"Traceback" not in ended.stderr


# ---- A fiftieth of the long runs


def test_bundles_that_were_cut_short_or_changed_by_a_bit_are_all_refused(faults, llama_bundle, tmp_path):
    found = faults.corruptions(llama_bundle, tmp_path, flips=20, cuts=2, seed=1)
    assert found["tried"] >= 20 + 2 * found["files"]
    assert found["loaded"] == []


def test_fuzzed_bodies_get_no_fault_and_no_silence(faults, llama_server):
    found = faults.fuzz(llama_server.port, bodies=2000, seed=1)
    assert sum(found["statuses"].values()) == 2000
    assert found["undeclared"] == []
    assert found["statuses"].get(200, 0) > 100, "fuzzed bodies that are all refused at the door test nothing behind it"


def test_schemathesis_finds_no_fault(faults, llama_server):
    found = faults.schemas(llama_server.url, cases=200)
    assert found["cases"] >= 200
    assert found["undeclared"] == []


def test_answers_do_not_depend_on_who_is_answered_beside(faults, llama_server, llama_bundle):
    bundle = load(llama_bundle)
    found = faults.compositions(llama_server.port, bundle, compositions=200, seed=1)
    assert found["labels_changed"] == 0
    assert found["largest_difference"] <= 1e-5


def test_the_server_outlived_all_of_this(llama_server):
    connection = http.client.HTTPConnection("127.0.0.1", llama_server.port, timeout=10)
    connection.request("GET", "/ready")
    assert connection.getresponse().status == 200
    connection.close()
    assert llama_server.metric("tagsmith_engine_restarts_total") == 0
    assert llama_server.events("failed") == []
