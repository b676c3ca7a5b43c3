"""What stands in deploy/ray and deploy/spark, as far as it can be tried here."""

import importlib.util
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml

from tagsmith.cli import app

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def spark():
    spec = importlib.util.spec_from_file_location("label", DEPLOY / "spark" / "label.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sparks_column_function_answers_as_the_bundle_does(spark, llama_bundle):
    from tagsmith.deployment.bundle import load

    texts = pd.Series(["the room was lovely and great", None, float("nan"), "an awful rude waiter"])
    bundle = load(llama_bundle)
    found = spark.labelled(texts, bundle=bundle)
    answers = bundle.answer(["the room was lovely and great", "", "", "an awful rude waiter"])
    assert list(found["label"][[0, 3]]) == [answers[0].label, answers[3].label]
    assert found["label"][1:3].isna().all()
    assert found["probability"][0] == pytest.approx(max(answers[0].probabilities), abs=1e-6)
    assert list(found["reason"][1:3]) == ["empty", "empty"]
    columns = [each.split()[0] for each in spark.SCHEMA.split(", ")]
    assert list(found.columns) == columns


def kuberay():
    return yaml.safe_load((DEPLOY / "ray" / "kuberay.yaml").read_text())


def pods():
    spec = kuberay()["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"]["template"]["spec"], *(g["template"]["spec"] for g in spec["workerGroupSpecs"])]


def sky():
    return yaml.safe_load((DEPLOY / "ray" / "sky.yaml").read_text())


def commands():
    script = sky()["run"].replace("\\\n", " ")
    line = next(line for line in script.splitlines() if " train " in line)
    return {"KubeRay": kuberay()["spec"]["entrypoint"], "SkyPilot": line[line.index("tagsmith train") :]}


@pytest.mark.parametrize("where", ["KubeRay", "SkyPilot"])
def test_every_option_that_is_given_exists_and_the_cluster_is_named(where):
    words = shlex.split(commands()[where])
    command = typer.main.get_command(app).commands[words[1]]
    known = {spelling for parameter in command.params for spelling in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert words[words.index("--on") + 1].startswith("ray://")
    assert "data.split=hash" in words


def test_each_pod_asks_for_the_token_runs_as_no_root_and_shares_its_storage():
    assert len(pods()) == 2
    assert kuberay()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "tagsmith-ray"}
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        environment = {each["name"]: each for each in container["env"]}
        assert environment["RAY_USAGE_STATS_ENABLED"]["value"] == "0"
        mounts = {each["name"] for each in container["volumeMounts"]}
        assert mounts == {each["name"] for each in pod["volumes"]}
        assert any("persistentVolumeClaim" in volume for volume in pod["volumes"])


def test_the_manifest_is_of_the_version_of_ray_that_is_pinned():
    pins = (DEPLOY.parent / "constraints.txt").read_text()
    assert f"ray=={kuberay()['spec']['rayClusterSpec']['rayVersion']}\n" in pins


def test_skypilots_machines_ask_for_the_token_and_keep_the_dashboard_to_themselves():
    assert sky()["envs"]["RAY_AUTH_MODE"] == "token"
    assert sky()["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert "--dashboard-host=127.0.0.1" in sky()["run"]
    assert re.search(r"--out (/data/\S+) --resume", sky()["run"].replace("\\\n", " "))
