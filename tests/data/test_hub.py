import hashlib
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import polars as pl
import pytest

from tagsmith.data.readers import read
from tagsmith.errors import AssetError, DataError

SHA = "0123456789abcdef" * 2 + "01234567"


def parquet(**columns):
    stream = io.BytesIO()
    pl.DataFrame(columns).write_parquet(stream)
    return stream.getvalue()


ONE, TWO = parquet(text=["one"], label=["a"]), parquet(text=["two"], label=["b"])
REPOSITORIES = {
    "me/plain": {"README.md": b"hello", "rows.csv": b"text,label\none,a\ntwo,b\n", "dataset_info.json": b"{}"},
    "me/splits": {
        "data/train-00000-of-00002.parquet": ONE,
        "data/train-00001-of-00002.parquet": TWO,
        "data/test-00000-of-00001.parquet": TWO,
        "data/validation-00000-of-00001.parquet": ONE,
        "old/train.csv": b"text,label\nold,x\n",
        "rows.py": b"raise SystemExit('never run')",
    },
    "me/folders": {
        "small/train.jsonl": b'{"text": "s", "label": "a"}\n',
        "big/train.jsonl": b'{"text": "b", "label": "a"}\n',
    },
    "me/odd": {"first/test.csv": b"text,label\none,a\n", "first/dev.csv": b"text,label\none,a\n"},
    "me/code": {"rows.py": b"raise SystemExit('never run')"},
    "me/nothing": {"README.md": b"hello"},
}
CONVERTED = {"me/code": {"default/train/0000.parquet": ONE}}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.path.removeprefix("/api").partition("?")[0].removeprefix("/datasets/")
        name = "/".join(path.split("/")[:2])
        rest = path[len(name) + 1 :]
        converted = "convert" in rest
        files = (CONVERTED if converted else REPOSITORIES).get(name, CONVERTED.get(name) if rest else None)
        if files is None:
            return self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body=body)
        if not rest.startswith("resolve/"):
            listing = {"id": name, "sha": SHA, "siblings": [{"rfilename": file} for file in files]}
            return self.send(200, json.dumps(listing).encode(), {}, body=body)
        file = rest.split("/", 2)[2]
        data = {**REPOSITORIES.get(name, {}), **CONVERTED.get(name, {})}[file]
        etag = hashlib.sha256(data).hexdigest()
        return self.send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}, body=body)

    def send(self, status, data, headers, *, body):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(address, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TAGSMITH_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return address


def test_a_data_set_of_one_table_is_read(hub):
    table = read("hf:me/plain")
    assert table.labels == ["a", "b"]
    assert "hf:me/plain at revision 0123456789ab" in table.history[0].reason


def test_the_train_split_is_read_in_all_its_parts_and_parquet_comes_first(hub):
    assert read("hf:me/splits").texts == ["one", "two"]


@pytest.mark.parametrize(("split", "texts"), [("train", ["one", "two"]), ("test", ["two"]), ("dev", ["one"])])
def test_a_split_is_read_by_name(hub, split, texts):
    assert read(f"hf:me/splits:{split}").texts == texts


def test_a_folder_of_a_data_set_is_read_by_name(hub):
    assert read("hf:me/folders/big").texts == ["b"]


def test_a_data_set_made_by_code_is_read_from_the_hubs_own_copy(hub):
    assert read("hf:me/code").texts == ["one"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:me/splits:summer", "it has the splits 'test', 'train', 'validation'"),
        ("hf:me/odd", "it has the splits"),
        ("hf:me/folders", "it has the folders 'big', 'small'"),
        ("hf:me/nothing", "could not be read from the hub"),
        ("hf:me/absent", "could not be read from the hub"),
        ("hf:me/a b", "names no data set"),
    ],
)
def test_what_cannot_be_read_is_one_paragraph(hub, source, said):
    with pytest.raises(DataError) as caught:
        read(source)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_given_up_on(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AssetError, match="The hub cannot be reached"):
        read("hf:me/plain")


def test_offline_reads_what_the_hubs_cache_holds(hub, monkeypatch):
    read("hf:me/plain")
    monkeypatch.setenv("TAGSMITH_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert read("hf:me/plain").labels == ["a", "b"]
    with pytest.raises(DataError, match="offline is set"):
        read("hf:me/splits")
