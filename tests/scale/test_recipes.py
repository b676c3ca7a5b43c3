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


JOB = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "clusterSelector": dict,
    "deletionStrategy": dict,
    "entrypoint": str,
    "entrypointNumCpus": float,
    "entrypointNumGpus": float,
    "entrypointResources": str,
    "jobId": str,
    "managedBy": str,
    "metadata": dict,
    "preRunningDeadlineSeconds": int,
    "rayClusterSpec": dict,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "submissionMode": str,
    "submitterConfig": dict,
    "submitterPodTemplate": dict,
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
CLUSTER = {
    "authOptions": dict,
    "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": dict,
    "headGroupSpec": dict,
    "headServiceAnnotations": dict,
    "managedBy": str,
    "rayVersion": str,
    "suspend": bool,
    "workerGroupSpecs": list,
}
OF_BOTH = {"labels": dict, "rayStartParams": dict, "resources": dict, "template": dict}
HEAD = OF_BOTH | {"enableIngress": bool, "headService": dict, "serviceType": str}
WORKERS = OF_BOTH | {
    "groupName": str,
    "idleTimeoutSeconds": int,
    "maxReplicas": int,
    "minReplicas": int,
    "numOfHosts": int,
    "replicas": int,
    "scaleStrategy": dict,
    "suspend": bool,
}
AUTHENTICATION = {"enableK8sTokenAuth": bool, "mode": str, "secretName": str}
"""The fields that KubeRay 1.6 documents of its kinds, with their types; its operator drops others in silence."""


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (JOB, lambda job: [job]),
        (CLUSTER, lambda job: [job["rayClusterSpec"]]),
        (AUTHENTICATION, lambda job: [job["rayClusterSpec"]["authOptions"]]),
        (HEAD, lambda job: [job["rayClusterSpec"]["headGroupSpec"]]),
        (WORKERS, lambda job: job["rayClusterSpec"]["workerGroupSpecs"]),
    ],
    ids=["job", "cluster", "authentication", "head", "workers"],
)
def test_the_manifest_has_the_fields_that_kuberay_documents(kind, where):
    assert {name: kuberay()[name] for name in ("apiVersion", "kind")} == {"apiVersion": "ray.io/v1", "kind": "RayJob"}
    for part in where(kuberay()["spec"]):
        assert part.keys() <= kind.keys()
        assert [name for name, value in part.items() if not isinstance(value, kind[name])] == []


def test_the_numbers_of_workers_that_kuberay_may_start_hold_those_that_are_asked_for():
    (workers,) = kuberay()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert 0 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    words = shlex.split(commands()["KubeRay"])
    asked = [int(number) for number in words[words.index("--workers") + 1].split(":")]
    assert asked == [workers["minReplicas"], workers["maxReplicas"]]
    for group in (workers, kuberay()["spec"]["rayClusterSpec"]["headGroupSpec"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "numbers are refused"


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
