"""An environment that serves and has none of the libraries that training needs."""

import json
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest

from tagsmith.deployment.bundle import load
from tagsmith.deployment.exporters import export

ROOT = Path(__file__).parents[2]
REQUIREMENTS = {"onnx": "serve.txt", "openvino": "serve-openvino.txt"}
ABSENT = ("torch", "transformers", "sklearn", "scipy", "polars", "onnx")
MOST_MEGABYTES = 350
TEXTS = ["a lovely, superb room", "the waiter was rude and the soup stale", "Größe 12"]


def lines_of(name):
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_both_environments_differ_in_their_engine_alone_and_have_the_pins_of_all_others():
    onnx, openvino = (set(lines_of(name)) for name in REQUIREMENTS.values())
    assert [line.split("==")[0] for line in onnx - openvino] == ["onnxruntime"]
    assert [line.split("==")[0] for line in openvino - onnx] == ["openvino"]
    pins = set((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert (onnx | openvino) - pins == set()


def test_the_modules_that_answer_import_nothing_that_is_absent():
    modules = [
        *("server", "batcher", "engine", "engine_process", "scoring", "bundle", "onnx_engine", "openvino_engine"),
        "tfidf_engine",
    ]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); import tagsmith.cli, tagsmith.console; "
        + "".join(f"import tagsmith.deployment.{module}; " for module in modules)
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_those_modules_need_at_once_is_in_the_requirements():
    code = (
        "import sys, json, tagsmith.deployment.server, tagsmith.deployment.scoring, tagsmith.deployment.onnx_engine; "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    base = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    direct = {line.split(">")[0].replace("-", "_") for line in base} & loaded
    assert direct - {line.split("==")[0].replace("-", "_") for line in lines_of("serve.txt")} == set()


def test_there_is_no_fallback_in_those_requirements_to_a_heavy_library():
    named = {line.split("==")[0] for name in REQUIREMENTS.values() for line in lines_of(name)}
    assert not named & {"torch", "transformers", "scikit-learn", "scipy", "polars", "onnx"}


@pytest.fixture(scope="module")
def exported(llama_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {to: export(llama_bundle, to=to, out=folder / to).folder for to in REQUIREMENTS}


@pytest.fixture(scope="module", params=list(REQUIREMENTS))
def environment(request, tmp_path_factory):
    """A new environment with the requirements and Tagsmith, and which engine it has."""
    folder = tmp_path_factory.mktemp(f"env-{request.param}")
    # Without a pip of its own, which takes 25 MB and serves nothing.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    own = ["--python", folder / "bin" / "python", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", *own, "install", "--quiet"]
    fetched = subprocess.run(
        [*pip, "-r", ROOT / "requirements" / REQUIREMENTS[request.param]], capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        pytest.skip(f"needs a package index: {fetched.stderr[-300:]}")
    subprocess.run([*pip, "--no-deps", ROOT], check=True)
    return request.param, folder


@pytest.mark.slow
def test_it_has_none_of_what_training_needs_and_is_small(environment):
    _, folder = environment
    code = f"from importlib.util import find_spec; print([name for name in {ABSENT!r} if find_spec(name)])"
    assert subprocess.run(
        [folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout == ("[]\n")
    packages = next(folder.glob("lib/*/site-packages"))
    size = subprocess.run(["du", "-sm", packages], capture_output=True, text=True, check=True).stdout
    assert int(size.split()[0]) < MOST_MEGABYTES


@pytest.mark.slow
def test_it_predicts_the_same_labels(environment, exported, llama_bundle, tmp_path, save_csv):
    to, folder = environment
    tagsmith = folder / "bin" / "tagsmith"
    said = subprocess.run(
        [tagsmith, "predict", exported[to], *TEXTS], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    expected = load(llama_bundle).predict(TEXTS)
    assert [line.split("\t")[0] for line in said] == expected
    source, out = save_csv(tmp_path / "in.csv", [(text,) for text in TEXTS], header=("text",)), tmp_path / "out.csv"
    subprocess.run([tagsmith, "predict", exported[to], "--file", source, "--out", out], check=True, capture_output=True)
    assert [line.split(",")[-4] for line in out.read_text(encoding="utf-8").splitlines()[1:]] == expected


@pytest.mark.slow
def test_it_serves_the_same_labels(environment, exported, llama_bundle):
    to, folder = environment
    command = [folder / "bin" / "tagsmith", "serve", exported[to], "--port", "0", "--engine", "auto"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = address_of(process)
        for text, label in zip(TEXTS, load(llama_bundle).predict(TEXTS), strict=True):
            body = json.dumps({"inputs": text}).encode()
            request = urllib.request.Request(f"{address}/predict", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as response:
                assert json.load(response)[0]["label"] == label
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def address_of(process):
    """Where a server says that it listens."""
    import re

    until = time.monotonic() + 60
    while time.monotonic() < until:
        line = process.stdout.readline()
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
        assert line or process.poll() is None, "it ended"
    raise AssertionError("it never said where it listens")
