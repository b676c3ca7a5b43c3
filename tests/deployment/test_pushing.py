import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from tagsmith.cli import app
from tagsmith.deployment.bundle import load
from tagsmith.deployment.manifest import verify
from tagsmith.deployment.pushing import pack, push
from tagsmith.errors import AssetError, BundleError, SettingError

# The client's plain way to upload is what its own HTTP library calls outdated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Hub(BaseHTTPRequestHandler):
    """The few routes of a hub that an upload asks, on this machine; files end up in `server.files`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.body()
        self.server.asked.append((self.path, self.headers.get("authorization")))
        if self.server.refuses:
            return self.answer({"error": "no"}, self.server.refuses)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.answer({"url": f"{self.server.url}/me/toy", "name": "me/toy"})
        if self.path.endswith("/preupload/main"):
            large = (".safetensors", ".json.gz")
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            upload = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/store/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": upload})
        if self.path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                self.take(json.loads(line))
            self.server.commits += 1
            return self.answer(
                {"commitUrl": f"{self.server.url}/me/toy/commit/abc", "commitOid": "abc", "success": True}
            )
        return self.answer({}, 200 if self.path == "/api/validate-yaml" else 404)

    def take(self, entry):
        value = entry["value"]
        if entry["key"] == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            self.server.files[value["path"]] = self.server.store[value["oid"]]

    def do_PUT(self):
        data = self.body()
        self.server.store[hashlib.sha256(data).hexdigest()] = data
        self.answer({})

    def body(self):
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.created, server.files, server.store = [], [], {}, {}
    server.commits, server.refuses = 0, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def plain_uploads(monkeypatch):
    """The hub's older way to take large files, which is plain HTTP."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


def api_of(url):
    from huggingface_hub import HfApi

    return HfApi(endpoint=url, token="hf_of_a_test")


def test_all_files_of_the_manifest_go_and_texts_stay(llama_bundle):
    shipment = pack(llama_bundle, "me/toy")
    listed = set(json.loads((llama_bundle / "MANIFEST.json").read_text())["files"])
    assert set(shipment.files) == listed | {"MANIFEST.json", "README.md", "run.json"}
    assert list(shipment.left) == ["report.html"]
    assert shipment.size == sum((llama_bundle / name).stat().st_size for name in shipment.files)


def test_texts_go_when_they_are_asked_for(llama_bundle):
    assert "report.html" in pack(llama_bundle, "me/toy", with_texts=True).files


def test_files_that_no_manifest_lists_stay(llama_bundle, tmp_path):
    shutil.copytree(llama_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "rows.csv").write_text("private")
    assert "rows.csv" in pack(tmp_path / "bundle", "me/toy").left


def test_an_altered_bundle_is_not_pushed(llama_bundle, tmp_path):
    shutil.copytree(llama_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "tagsmith.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tagsmith\.json"):
        pack(tmp_path / "bundle", "me/toy")


@pytest.mark.parametrize("repo", ["", "../x", "a/b/c", "me/", "a b", "me/%2e", "-x", "me/..", "x\n"])
def test_what_is_no_name_of_a_repository_is_refused(llama_bundle, repo):
    with pytest.raises(SettingError, match="no repository"):
        pack(llama_bundle, repo)


def test_what_was_pushed_is_the_bundle(llama_bundle, hub, tmp_path):
    address = push(pack(llama_bundle, "me/toy"), api=api_of(hub.url))
    assert address == f"{hub.url}/me/toy/commit/abc"
    assert hub.commits == 1
    assert hub.created[0]["visibility"] == "private"
    assert all(token == "Bearer hf_of_a_test" for _, token in hub.asked)
    for name, data in hub.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    verify(tmp_path)
    assert not (tmp_path / "report.html").exists()
    texts = ["a lovely room", "dreadful soup"]
    assert load(tmp_path).predict(texts) == load(llama_bundle).predict(texts)


def test_a_repository_is_public_only_when_asked(llama_bundle, hub):
    push(pack(llama_bundle, "me/toy"), public=True, api=api_of(hub.url))
    assert hub.created[0]["visibility"] == "public"


@pytest.mark.parametrize(("status", "told"), [(401, "token"), (403, "token that may write there"), (404, "namespace")])
def test_a_refusal_says_what_to_do(llama_bundle, hub, status, told):
    hub.refuses = status
    with pytest.raises(AssetError, match=told):
        push(pack(llama_bundle, "me/toy"), api=api_of(hub.url))


def test_a_hub_that_is_not_there_is_told(llama_bundle):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(AssetError, match="HF_ENDPOINT"):
        push(pack(llama_bundle, "me/toy"), api=api_of(f"http://127.0.0.1:{port}"))


def test_a_dry_run_lists_the_files_and_asks_nobody(llama_bundle, hub, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something was asked"))
    done = CliRunner().invoke(app, ["push", str(llama_bundle), "me/toy", "--dry-run"])
    assert done.exit_code == 0
    names = [line.split("\t")[1] for line in done.stdout.splitlines()]
    assert "model.safetensors" in names
    assert "report.html" not in names
    assert "Left behind: report.html" in done.stderr


def test_the_command_line_pushes_where_the_environment_says(llama_bundle, hub):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_a_test", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "tagsmith", "push", str(llama_bundle), "me/toy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/me/toy/commit/abc\n"), done.stderr
    assert "tagsmith.json" in hub.files
