"""The life of a server: deaths of its engine, signals, reloads, and other bundles beside the one that is served."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tagsmith.deployment.engine import open_engine
from tagsmith.deployment.engine_process import check_probes
from tagsmith.deployment.manifest import staging
from tagsmith.deployment.server import _accepted, _let_nobody_in
from tagsmith.errors import BundleError

FAST = ("--engine", "tfidf")
"""An engine that starts in a second; what is tested here knows no model."""


def version_of(folder):
    return json.loads((folder / "MANIFEST.json").read_text())["sha256"][:12]


@pytest.fixture(scope="module")
def other_bundle(llama_bundle, tmp_path_factory):
    """The same bundle with another calibration: another version, that answers almost alike."""
    return copied(llama_bundle, tmp_path_factory.mktemp("other") / "bundle", note="another")


def copied(bundle, target, *, note):
    """A valid copy of a bundle whose recipe says one thing more."""
    with staging(target, force=True) as aside:
        shutil.copytree(bundle, aside, dirs_exist_ok=True)
        (aside / "MANIFEST.json").unlink()
        settings = json.loads((aside / "tagsmith.json").read_text())
        (aside / "tagsmith.json").write_text(json.dumps(settings | {"note": note}))
    return target


class Load:
    """Clients that ask without a pause, one connection each, and remember every answer."""

    def __init__(self, server, *, clients=4):
        self.statuses, self.lost, self.asked = [], [], 0
        self._server, self._stop = server, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number):
        body = json.dumps({"inputs": f"room {number}"})
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        while not self._stop.is_set():
            try:
                fresh = connection.sock is None
                connection.request("POST", "/predict", body, {"content-type": "application/json"})
                reply = connection.getresponse()
                reply.read()
                self.statuses.append(reply.status)
            except (ConnectionRefusedError, http.client.RemoteDisconnected, ConnectionError) as error:
                connection.close()
                # A connection that was kept open may be closed between two requests, and a new one may be refused:
                # neither was accepted. One that is cut after its request was taken is lost.
                if fresh and not isinstance(error, ConnectionRefusedError):
                    self.lost.append(error)
                if isinstance(error, ConnectionRefusedError):
                    break
        connection.close()

    def wait_for(self, count):
        end = time.monotonic() + 60
        while len(self.statuses) < count:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_an_engine_that_is_killed_comes_back_and_the_front_never_dies(start, llama_bundle):
    server = start(llama_bundle, *FAST)
    with Load(server) as load:
        for count in range(1, 4):
            load.wait_for(len(load.statuses) + 20)
            os.kill(server.engine_pid, signal.SIGKILL)
            server.wait_for("engine_restarted", count=count)
            assert server.ask("/health").status == 200
            server.wait_until_ready()
        load.wait_for(len(load.statuses) + 20)
    assert set(load.statuses) <= {200, 503}
    assert not load.lost
    assert load.statuses[-1] == 200
    assert server.metric("tagsmith_engine_restarts_total") == 3
    assert server.events("engine_restarted")[-1]["seconds"] < 30


def test_a_request_in_an_engine_that_dies_is_told_to_come_again(start, llama_bundle):
    server = start(llama_bundle, *FAST)
    os.kill(server.engine_pid, signal.SIGSTOP)  # it takes the request and never answers
    found = []
    asking = threading.Thread(target=lambda: found.append(server.ask("/predict", {"inputs": "a room"})))
    asking.start()
    time.sleep(0.3)
    assert server.ask("/health").status == 200
    os.kill(server.engine_pid, signal.SIGKILL)
    asking.join()
    assert (found[0].status, int(found[0].headers["retry-after"])) == (503, 5)
    server.wait_until_ready()
    assert server.ask("/predict", {"inputs": "a room"}).status == 200


def test_a_request_that_takes_too_long_is_504(start, llama_bundle):
    server = start(llama_bundle, *FAST)
    os.kill(server.engine_pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        answer = server.ask("/predict", {"inputs": "a room"}, headers={"x-timeout-s": "0.3"})
        assert (answer.status, answer.json["error_type"]) == (504, "Timeout")
        assert time.monotonic() - begun < 5
    finally:
        os.kill(server.engine_pid, signal.SIGCONT)
    assert server.ask("/predict", {"inputs": "a room"}, headers={"x-timeout-s": "nan"}).status == 422


def test_a_full_queue_is_429_and_says_when_to_come_again(start, llama_bundle):
    server = start(llama_bundle, *FAST, "--set", "deployment.queue_texts=8")
    os.kill(server.engine_pid, signal.SIGSTOP)
    found = []

    def ask():
        found.append(server.ask("/predict", {"inputs": [["a room"]] * 4}, headers={"x-timeout-s": "3"}))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    os.kill(server.engine_pid, signal.SIGCONT)
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in found) == [200, 200, 429, 429, 429]
    refused = next(answer for answer in found if answer.status == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json["error_type"] == "Overloaded"
    assert server.metric('tagsmith_rejected_total{reason="queue_full"}') == 3
    assert server.metric("tagsmith_queue_texts") == 0


def test_a_client_that_leaves_frees_its_place(start, llama_bundle):
    server = start(llama_bundle, *FAST)
    os.kill(server.engine_pid, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        body = b'{"inputs": "a room"}'
        kind = "Content-Type: application/json"
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        time.sleep(0.3)
        assert server.metric("tagsmith_queue_texts") == 1
    end = time.monotonic() + 10
    while server.metric("tagsmith_queue_texts") > 0:
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(server.engine_pid, signal.SIGCONT)
    assert server.metric('tagsmith_rejected_total{reason="disconnect"}') == 1


@pytest.mark.alone
def test_sigterm_under_load_loses_no_accepted_request(start, llama_bundle):
    server = start(llama_bundle, *FAST)
    with Load(server) as load:
        load.wait_for(50)
        assert server.stop() == 0
    assert load.lost == []
    assert set(load.statuses) <= {200, 503}
    assert server.events("drained")[-1]["left"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot close a door before they close a socket")
def test_nobody_gets_in_between_the_last_accept_and_the_close():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        with socket.create_connection(address, timeout=5):
            _let_nobody_in(listening)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            listening.setblocking(False)
            assert [connection.close() for connection in _accepted(listening)] == [None]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def test_a_request_that_was_accepted_is_answered_before_the_end(start, llama_bundle):
    server = start(llama_bundle, *FAST)
    engine = server.engine_pid
    os.kill(engine, signal.SIGSTOP)
    found = []
    asking = threading.Thread(target=lambda: found.append(server.ask("/predict", {"inputs": "a room"})))
    asking.start()
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("draining")
    assert server.ask("/ready").status == 503
    refused = server.ask("/predict", {"inputs": "a room"})
    assert (refused.status, refused.headers["connection"]) == (503, "close")
    os.kill(engine, signal.SIGCONT)
    asking.join()
    assert found[0].status == 200
    assert server.process.wait(20) == 0


def test_no_engine_is_left_behind_when_the_server_is_killed(start, llama_bundle):
    server = start(llama_bundle, *FAST)
    engine = server.engine_pid
    server.process.kill()
    server.process.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{engine}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_answer_that_is_no_number_is_424_and_counted(start, llama_bundle, tmp_path):
    from safetensors.numpy import load_file, save_file

    with staging(tmp_path / "nan", force=False) as aside:
        shutil.copytree(llama_bundle, aside, dirs_exist_ok=True)
        (aside / "MANIFEST.json").unlink()
        arrays = load_file(aside / "baseline" / "weights.safetensors")
        save_file(arrays | {"weights": arrays["weights"] * float("nan")}, aside / "baseline" / "weights.safetensors")
    server = start(tmp_path / "nan", *FAST)
    answer = server.ask("/predict", {"inputs": "a lovely room"})
    assert (answer.status, answer.json["error_type"]) == (424, "Backend")
    assert server.metric("tagsmith_nonfinite_total") == 1
    assert server.ask("/ready").status == 200


def test_scores_are_rounded_and_requests_bounded_where_that_is_asked_for(start, llama_bundle):
    settings = ("--set", "deployment.decimals=2", "--set", "deployment.rate_per_minute=6")
    server = start(llama_bundle, *FAST, *settings)
    found = server.ask("/predict", {"inputs": "a lovely room"}).json
    assert [each["score"] for each in found] == [round(each["score"], 2) for each in found]
    answers = [server.ask("/predict", {"inputs": "a"}) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
    assert server.ask("/info").status == 200


# ---- Reloads


def test_sighup_takes_up_a_new_version_under_load_without_a_failed_request(start, llama_bundle, other_bundle, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(llama_bundle)
    server = start(link, *FAST)
    with Load(server) as load:
        for count, bundle in enumerate([other_bundle, llama_bundle], start=2):
            swap(link, bundle)
            server.process.send_signal(signal.SIGHUP)
            assert server.wait_for("model_open", count=count)["version"] == version_of(bundle)
            load.wait_for(len(load.statuses) + 20)
            assert server.ask("/predict", {"inputs": "a"}).headers["x-model-version"] == version_of(bundle)
    assert set(load.statuses) == {200}
    assert server.metric('tagsmith_reload_total{result="swapped"}') == 2


def swap(link, target):
    aside = link.with_name("aside")
    aside.symlink_to(target)
    aside.replace(link)


def test_a_new_version_that_is_broken_is_refused_while_the_old_one_answers(start, llama_bundle, tmp_path):
    bad = copied(llama_bundle, tmp_path / "bad", note="bad")
    with (bad / "tagsmith.json").open("a") as file:
        file.write(" ")
    link = tmp_path / "current"
    link.symlink_to(llama_bundle)
    server = start(link, *FAST)
    swap(link, bad)
    server.process.send_signal(signal.SIGHUP)
    assert "tagsmith.json" in server.wait_for("reload_refused")["reason"]
    assert server.ask("/predict", {"inputs": "a"}).headers["x-model-version"] == version_of(llama_bundle)
    assert server.metric('tagsmith_reload_total{result="refused"}') == 1


def test_a_bundle_that_answers_its_own_probes_otherwise_is_refused(llama_bundle, tmp_path):
    engine = open_engine(llama_bundle, "torch-fp32")
    shutil.copytree(llama_bundle, tmp_path / "copy")
    probes = tmp_path / "copy" / "probe.jsonl"
    check_probes(tmp_path / "copy", engine)
    lines = [json.loads(line) for line in probes.read_text().splitlines()]
    lines[0]["logits"] = [-logit for logit in lines[0]["logits"]]
    probes.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(BundleError, match="answers its own probes otherwise"):
        check_probes(tmp_path / "copy", engine)


def test_a_watched_folder_is_taken_up_when_a_bundle_appears_in_it(start, llama_bundle, tmp_path):
    folder = tmp_path / "versions"
    folder.mkdir()
    server = start(llama_bundle, *FAST, "--watch", folder)
    new = copied(llama_bundle, folder / "v2", note="new")
    assert server.wait_for("model_open", count=2)["version"] == version_of(new)
    (folder / "v3").mkdir()
    (folder / "v3" / "MANIFEST.json").write_text("{}")
    server.wait_for("reload_refused")
    assert server.ask("/predict", {"inputs": "a"}).headers["x-model-version"] == version_of(new)
    time.sleep(2.5)
    assert len(server.events("reload_refused")) == 1, "a refused version is not tried again until it changes"


def test_sighup_reads_the_keys_again(start, llama_bundle, tmp_path):
    old, new = "o" * 20, "n" * 20
    keys = tmp_path / "keys"
    keys.write_text(f"a:{old}")
    server = start(llama_bundle, *FAST, "--api-key-file", keys)

    def status(key):
        return server.ask("/info", headers={"authorization": f"Bearer {key}"}).status

    assert (status(old), status(new)) == (200, 401)
    keys.write_text(f"a:{new}")
    server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 10
    while status(new) != 200:
        assert time.monotonic() < end
    assert status(old) == 401
    keys.write_text("nonsense")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("keys_refused")
    assert status(new) == 200


# ---- Shadow and canary


@pytest.fixture(scope="module")
def contrary_bundle(llama_bundle, tmp_path_factory):
    """A bundle whose labels have changed places: it always says the other one."""
    target = tmp_path_factory.mktemp("contrary") / "bundle"
    with staging(target, force=False) as aside:
        shutil.copytree(llama_bundle, aside, dirs_exist_ok=True)
        (aside / "MANIFEST.json").unlink()
        settings = json.loads((aside / "tagsmith.json").read_text())
        settings["labels"] = settings["labels"][::-1]
        (aside / "tagsmith.json").write_text(json.dumps(settings))
    return target


def test_a_shadow_is_asked_the_same_and_its_disagreement_counted(start, llama_bundle, contrary_bundle):
    server = start(llama_bundle, *FAST, "--shadow", contrary_bundle)
    for i in range(20):
        answer = server.ask("/predict", {"inputs": f"lovely room {i}"})
        assert answer.headers["x-model-version"] == version_of(llama_bundle)
    end = time.monotonic() + 10
    while server.metric('tagsmith_shadow_compared_total{role="shadow"}') < 20:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert server.metric('tagsmith_shadow_disagreement_total{role="shadow"}') == 20
    assert server.ask("/info").json["others"]["shadow"]["version"] == version_of(contrary_bundle)


def test_a_canary_answers_its_share_and_the_same_text_always_or_never(start, llama_bundle, contrary_bundle):
    server = start(llama_bundle, *FAST, "--canary", f"{contrary_bundle}=0.3")
    versions = {}
    for _ in range(2):
        for i in range(200):
            found = server.ask("/predict", {"inputs": f"lovely room {i}"}).headers["x-model-version"]
            assert versions.setdefault(i, found) == found
    share = list(versions.values()).count(version_of(contrary_bundle)) / 200
    assert 0.15 < share < 0.45
    assert server.metric('tagsmith_shadow_disagreement_total{role="canary"}') > 0


def test_a_canary_that_fails_is_withdrawn_and_nobody_notices(start, llama_bundle, contrary_bundle, tmp_path):
    doomed = copied(contrary_bundle, tmp_path / "doomed", note="doomed")
    server = start(llama_bundle, *FAST, "--canary", f"{doomed}=0.9")
    shutil.rmtree(doomed)  # once dead it cannot come back
    os.kill(server.engine_pid, signal.SIGKILL)  # the youngest child
    for i in range(60):
        assert server.ask("/predict", {"inputs": f"lovely room {i}"}).status == 200
    server.wait_for("canary_withdrawn")
    assert server.ask("/info").json["others"] == {}


# ---- Starting


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--host", "0.0.0.0"), "--api-key-file"),
        (("--canary", "nothing"), "BUNDLE=SHARE"),
        (("--set", "model.layers=3"), "section deployment"),
        (("--engine", "abacus"), "abacus"),
        (("--set", "deployment.max_textss=3"), "max_texts"),
    ],
    ids=["open", "canary", "section", "engine", "setting"],
)
def test_what_cannot_be_is_one_paragraph_and_exit_code_3(options, told, llama_bundle):
    command = [sys.executable, "-m", "tagsmith", "serve", str(llama_bundle), "--port", "0", *options]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 3
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_port_that_is_taken_is_one_paragraph(llama_bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "tagsmith", "serve", str(llama_bundle), "--port", port]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "Cannot listen" in ended.stderr) == (3, True)


def test_an_ipv6_address_is_served(start, llama_bundle):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    command = [sys.executable, "-m", "tagsmith", "serve", str(llama_bundle), "--port", "0", "--host", "::1", *FAST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as server:
        try:
            assert "http://[::1]:" in server.stdout.readline()
        finally:
            server.terminate()
