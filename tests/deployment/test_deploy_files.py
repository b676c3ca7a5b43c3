import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer
import yaml

from tagsmith.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
YAML = sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")])
BOARD = DEPLOY / "grafana" / "boards" / "tagsmith.json"
DOCKERFILE = DEPLOY / "Dockerfile"


def served(bundle, **options):
    """A server as those of conftest.py, which no test can import by its name."""
    spec = spec_from_file_location("conftest", Path(__file__).with_name("conftest.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Served(bundle, **options)


def documents(path):
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def kinds():
    found = [each for path in YAML for each in documents(path) if "kind" in each]
    return {each["kind"]: each for each in found}


def instructions():
    """Each instruction of the Dockerfile with its arguments, lines joined."""
    lines = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


def command_lines():
    """How each file starts `tagsmith serve`."""
    unit = re.search(r"^ExecStart=(.*)$", (DEPLOY / "systemd" / "tagsmith.service").read_text(), re.MULTILINE)[1]
    pod = kinds()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    runtime = kinds()["ServingRuntime"]["spec"]["containers"][0]["args"]
    image = json.loads(dict(instructions())["CMD"])
    return {"systemd": shlex.split(unit)[1:], "Kubernetes": pod, "KServe": runtime, "Docker": image}


def expressions():
    """Every expression of the board and of the alerts."""
    panels = [panel for panel in json.loads(BOARD.read_text())["panels"] if panel["type"] != "row"]
    alerts = documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [
        rule["expr"] for group in alerts for rule in group["rules"]
    ]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_each_file_is_yaml(path):
    assert documents(path)


@pytest.mark.parametrize("where", ["systemd", "Kubernetes", "KServe", "Docker"])
def test_every_option_that_is_given_exists(where):
    verb, _, *words = command_lines()[where]
    command = typer.main.get_command(app).commands[verb]
    known = {spelling for parameter in command.params for spelling in parameter.opts}
    given = {word for word in words if word.startswith("--")}
    assert given
    assert given <= known


@pytest.mark.parametrize("where", ["Kubernetes", "KServe", "Docker"])
def test_what_others_can_reach_asks_for_a_key(where):
    words = command_lines()[where]
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert "--api-key-file" in words


def test_every_metric_that_is_drawn_or_alarmed_exists(llama_server):
    told = llama_server.ask("/metrics").body.decode()
    known = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", told, re.MULTILINE):
        known |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    asked = {name for text in expressions() for name in re.findall(r"\b(?:tagsmith|process)_\w+", text)}
    assert len(asked) > 20
    assert sorted(asked - known) == []


def test_every_label_that_is_asked_for_exists(llama_server):
    llama_server.ask("/", {"inputs": "lovely"})
    told = llama_server.ask("/metrics").body.decode()
    known = set(re.findall(r'[{,](\w+)="', told)) | {"instance", "job", "role", "feature", "result", "reason"}
    asked = {name for text in expressions() for name in re.findall(r"(\w+)(?:=~|!~|=)\"", text)}
    by = {
        name.strip()
        for text in expressions()
        for group in re.findall(r"by \(([^)]*)\)", text)
        for name in group.split(",")
    }
    assert sorted((asked | by) - known - {"le"}) == []


def test_each_expression_closes_what_it_opens():
    for text in expressions():
        bare = re.sub(r'"[^"]*"', "", text)
        for left, right in ("()", "[]", "{}"):
            assert bare.count(left) == bare.count(right), text


def test_the_board_reads_the_source_that_is_provisioned():
    board = json.loads(BOARD.read_text())
    uid = documents(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")[0]["datasources"][0]["uid"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert {target["datasource"]["uid"] for panel in panels for target in panel["targets"]} == {uid}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)


def test_compose_mounts_files_that_are_there():
    services = documents(DEPLOY / "compose.yaml")[0]["services"]
    mounts = [
        mount.split(":")[0] for each in services.values() for mount in each.get("volumes", []) if mount.startswith(".")
    ]
    missing = [mount for mount in mounts if not (DEPLOY / mount).exists()]
    assert missing == ["./bundle"]  # which is the user's to put there
    assert services["tagsmith"]["read_only"]
    assert services["tagsmith"]["cap_drop"] == ["ALL"]


def test_the_image_is_no_roots_and_copies_what_is_there():
    last = {}
    for name, rest in instructions():
        last[name] = rest
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert last["USER"] == "10001:10001"
    assert last["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.slow
def test_the_steps_of_the_image_make_a_server_without_torch(tmp_path, llama_bundle, monkeypatch):
    """Each step of the first stage, in folders of the test's own; it asks the package index."""
    from tagsmith.deployment.exporters import export

    built, made = tmp_path / "build", tmp_path / "tagsmith"
    for name, rest in instructions():
        words = rest.replace("/build", str(built)).replace("/opt/tagsmith", str(made))
        if name == "COPY" and not rest.startswith("--from"):
            *sources, target = words.split()
            for source in sources:
                inside = Path(target) / source if target.endswith("/") else Path(target)
                inside.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
                copy(ROOT / source, inside)
        elif name == "RUN" and "useradd" not in rest:
            subprocess.run(shlex.split(words), check=True)
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < 350 * 2**20
    heavy = "torch transformers polars sklearn"
    code = f"import importlib.util as i; print([each for each in {heavy.split()} if i.find_spec(each)])"
    found = subprocess.run([made / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    bundle = export(llama_bundle, to="tfidf", out=tmp_path / "bundle").folder
    monkeypatch.setattr(sys, "executable", str(made / "bin" / "python"))
    server = served(bundle, environment={"PYTHONPATH": ""})
    try:
        assert server.ask("/ui/answer", {"texts": ["a lovely, superb room"]}).json["answers"][0]["labels"] == ["praise"]
        assert server.ask("/ui").status == 200
    finally:
        server.close()


def test_pods_are_no_roots_and_write_nothing():
    for kind in ("Deployment", "ServingRuntime"):
        spec = kinds()[kind]["spec"]
        container = spec.get("template", {}).get("spec", spec)["containers"][0]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
    for spec in (kinds()["Deployment"]["spec"]["template"]["spec"], kinds()["InferenceService"]["spec"]["predictor"]):
        assert spec["securityContext"]["runAsNonRoot"]


def test_probes_ask_routes_that_need_no_key(llama_server):
    container = kinds()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert llama_server.ask(container[probe]["httpGet"]["path"]).status == 200


def test_pods_live_longer_than_a_server_drains():
    from tagsmith.config import DeploymentConfig

    drain = DeploymentConfig().drain_s
    unit = (DEPLOY / "systemd" / "tagsmith.service").read_text()
    assert kinds()["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain + 5
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > drain


def test_kustomize_builds_what_selects_itself():
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, which builds the manifests without a cluster; it is not there")
    done = subprocess.run(["kubectl", "kustomize", DEPLOY / "kubernetes"], capture_output=True, text=True, check=True)
    built = [each for each in yaml.safe_load_all(done.stdout) if each]
    by_kind = {each["kind"]: each["spec"] for each in built}
    labels = {"app.kubernetes.io/name": "tagsmith"}
    assert by_kind["Deployment"]["template"]["metadata"]["labels"] == labels
    assert by_kind["Service"]["selector"] == labels
    assert by_kind["NetworkPolicy"]["podSelector"]["matchLabels"] == labels
    assert by_kind["PodDisruptionBudget"]["selector"]["matchLabels"] == labels


def test_systemd_takes_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze; it is not there")
    unit = (DEPLOY / "systemd" / "tagsmith.service").read_text()
    (tmp_path / "tagsmith.service").write_text(unit.replace("/opt/tagsmith/bin/tagsmith", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "tagsmith.service"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", tmp_path / "tagsmith.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:]
