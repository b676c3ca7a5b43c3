"""Servers as users start them: another process, on a port of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class Served:
    """A running `tagsmith serve`."""

    def __init__(self, bundle, *options, environment=None):
        command = [sys.executable, "-m", "tagsmith", "serve", str(bundle), "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        )
        self.log = []
        threading.Thread(target=self._read_log, daemon=True).start()
        line = self.process.stdout.readline()
        found = re.search(r"on (http://127\.0\.0\.1:(\d+))", line)
        assert found, f"the server did not start: {line!r} {self.log}"
        self.url, self.port = found[1], int(found[2])

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line)

    def ask(self, path, body=None, *, headers=None, method=None, raw=None, timeout=30):
        """One request; `body` is sent as JSON, `raw` as it is."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        kind = {"content-type": "application/json"} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, kind | (headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return Answer(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def events(self, name):
        """The log's lines of one event."""
        return [event for line in list(self.log) if (event := json.loads(line))["event"] == name]

    def wait_for(self, name, *, count=1, timeout=60):
        """Wait until the log tells of an event; gives the last one."""
        end = time.monotonic() + timeout
        while len(self.events(name)) < count:
            assert time.monotonic() < end, f"no {name} in {self.log}"
            time.sleep(0.02)
        return self.events(name)[-1]

    def wait_until_ready(self, *, timeout=60):
        end = time.monotonic() + timeout
        while self.ask("/ready").status != 200:
            assert time.monotonic() < end, f"not ready: {self.log}"
            time.sleep(0.02)

    def metric(self, name):
        """The value of one series, 0 where it is not there."""
        for line in self.ask("/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    @property
    def engine_pid(self):
        """The number of the engine's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[-1])

    def stop(self):
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def start():
    """`start(bundle, *options)`: a server that ends with the test."""
    running = []

    def start(bundle, *options, environment=None):
        running.append(Served(bundle, *options, environment=environment))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def llama_server(llama_bundle):
    """A server of a tiny Llama, for many tests. Leave it as it is."""
    server = Served(llama_bundle, "--name", "toy")
    yield server
    server.close()


@pytest.fixture(scope="session")
def several_bundle(tmp_path_factory, make_folder):
    """The folder of a bundle whose texts may have several labels, with the three thresholds 0.2, 0.5 and 0.6."""
    import numpy as np
    import torch

    from tagsmith.config import ModelConfig
    from tagsmith.deployment.manifest import staging
    from tagsmith.deployment.weights import write_classifier
    from tagsmith.labels import Labels
    from tagsmith.model.calibration import Calibration
    from tagsmith.model.classifier import build

    labels = Labels.of(["hate", "spam", "threat"], multi_label=True)
    classifier = build(make_folder("llama"), ModelConfig(max_tokens=48), labels=labels, layers=None, seed=0)
    classifier = classifier.eval().requires_grad_(False)
    torch.nn.init.normal_(classifier.head.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    classifier.head.score.bias.copy_(torch.tensor([-2.0, 0.0, 1.0]))
    classifier.calibration = Calibration(1.7, None, multi_label=True)
    classifier.thresholds = np.array([0.2, 0.5, 0.6])
    folder = tmp_path_factory.mktemp("several") / "bundle"
    with staging(folder, force=False) as aside:
        write_classifier(aside, classifier, recipe={"config": {}})
    return folder


@pytest.fixture(scope="session")
def several_server(several_bundle):
    """A server of a classifier with several labels a text."""
    server = Served(several_bundle, "--name", "guard")
    yield server
    server.close()


@pytest.fixture(scope="session")
def pair_bundle(tmp_path_factory, make_folder):
    """The folder of a bundle that reads pairs of texts."""
    import torch

    from tagsmith.config import ModelConfig
    from tagsmith.data.encoding import Encoder
    from tagsmith.deployment.manifest import staging
    from tagsmith.deployment.weights import write_classifier
    from tagsmith.labels import Labels
    from tagsmith.model.backbone import load_backbone
    from tagsmith.model.classifier import assemble

    source = make_folder("bert")
    encoder = Encoder.from_folder(source, max_tokens=48, pairs=True)
    labels = Labels.of(["contradicts", "follows"])
    classifier = assemble(load_backbone(source), encoder, ModelConfig(max_tokens=48), labels=labels, seed=0)
    classifier = classifier.eval().requires_grad_(False)
    torch.nn.init.normal_(classifier.head.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    folder = tmp_path_factory.mktemp("pairs") / "bundle"
    with staging(folder, force=False) as aside:
        write_classifier(aside, classifier, recipe={"config": {}})
    return folder


@pytest.fixture(scope="session")
def pair_server(pair_bundle):
    """A server of a classifier of pairs."""
    server = Served(pair_bundle, "--name", "pairs")
    yield server
    server.close()
