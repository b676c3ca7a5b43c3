import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tagsmith.errors import ResourceError, SettingError
from tagsmith.scale import cluster as scale_cluster
from tagsmith.scale.cluster import Place, connected


@pytest.mark.parametrize(
    ("on", "address"),
    [
        ("ray", None),
        ("ray://10.0.0.5:6380", "10.0.0.5:6380"),
        ("ray://head.local", "head.local:6379"),
        ("ray://[fd00::1]:7000", "[fd00::1]:7000"),
    ],
)
def test_the_place_of_work_is_read(on, address):
    assert Place.of(on).address == address


@pytest.mark.parametrize(
    "on", ["Ray", "ray://", "ray:", "ray://host:port", "ray://host:0", "spark://host", "ray://a/b", ""]
)
def test_any_other_place_is_refused_with_what_is_expected(on):
    with pytest.raises(SettingError, match=r"Expected ray, for a cluster on this machine, or ray://HOST"):
        Place.of(on)


def test_the_port_of_ray_client_is_refused_with_the_right_one():
    with pytest.raises(SettingError, match=r"Ray Client.*ray://head:6379"):
        Place.of("ray://head:10001")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(scale_cluster, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r'pip install "tagsmith\[ray\]"'), connected("ray"):
        pass


# Connections are tried in processes of their own: what Ray reads of the environment it reads once.

ATTEMPT = """
import sys
from tagsmith.errors import TagsmithError
from tagsmith.scale.cluster import connected
try:
    with connected(sys.argv[1]):
        print("connected")
except TagsmithError as error:
    print(f"{type(error).__name__}: {error}")
"""


def attempt(on, **environment):
    changed = {name: value for name, value in (os.environ | environment).items() if value is not None}
    command = [sys.executable, "-W", "error", "-c", ATTEMPT, on]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=changed)
    return done.stdout.strip() or done.stderr


def test_an_address_where_nobody_answers_is_one_paragraph():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = attempt(f"ray://127.0.0.1:{port}")
    assert said.startswith(f"ResourceError: Nobody answers at 127.0.0.1:{port} (Connection refused).")
    assert "\n" not in said


def test_what_listens_and_is_no_cluster_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(scale_cluster, "_SECONDS_TO_REACH", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ResourceError, match="Something listens at .*, and it is no head of a Ray cluster"),
    ):
        scale_cluster._require_guarded(Place("127.0.0.1", server.getsockname()[1]))


@pytest.mark.ray
def test_a_cluster_of_ones_own_listens_on_loopback_alone(cluster):
    own = [psutil.Process(), *psutil.Process().children(recursive=True)]
    places = {each.laddr.ip for process in own for each in process.net_connections("tcp") if each.status == "LISTEN"}
    assert places
    assert places <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.ray
def test_a_cluster_of_ones_own_asks_for_a_token_that_others_lack(cluster):
    import ray

    address = ray.get_runtime_context().gcs_address
    said = attempt(f"ray://{address}", RAY_AUTH_TOKEN="0" * 64)
    assert said.startswith(f"SettingError: The cluster at {address} asks for a token, and this machine has another")
    assert os.environ["RAY_AUTH_TOKEN"] not in said


@pytest.mark.ray
def test_who_has_no_token_is_told_where_to_put_it(cluster, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    said = attempt(f"ray://{address}", RAY_AUTH_TOKEN=None, HOME=str(tmp_path))
    assert "this machine has none. Expected the cluster's in RAY_AUTH_TOKEN" in said


@pytest.mark.ray
def test_who_has_the_token_is_let_in(cluster):
    import ray

    assert attempt(f"ray://{ray.get_runtime_context().gcs_address}") == "connected"


@pytest.mark.ray
def test_a_process_that_is_connected_stays_connected(cluster):
    import ray

    with connected("ray"):
        pass
    assert ray.is_initialized()
    with pytest.raises(SettingError, match="one cluster a process"), connected("ray://127.0.0.1:1"):
        pass


def test_a_cluster_that_lets_anybody_in_is_refused_unless_it_is_here(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def answer(request, context):
        return b"\x12\x062.60.0"

    method = grpc.unary_unary_rpc_method_handler(answer)
    service = grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"CheckAlive": method})
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        scale_cluster._require_guarded(Place("127.0.0.1", port))
        monkeypatch.setattr(scale_cluster, "_is_loopback", lambda host: False)
        with pytest.raises(SettingError, match="RAY_AUTH_MODE=token"):
            scale_cluster._require_guarded(Place("127.0.0.1", port))
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("host", "is_here"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("10.0.0.1", False)]
)
def test_loopback_is_known(host, is_here):
    assert scale_cluster._is_loopback(host) is is_here


def test_a_folder_too_long_for_sockets_is_refused(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(SettingError, match="RAY_TMPDIR"):
        scale_cluster._own_folder()
    assert list(long.iterdir()) == []


def test_temporary_files_in_a_long_folder_go_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(scale_cluster.tempfile, "gettempdir", lambda: str(tmp_path / ("x" * 60)))
    (tmp_path / ("x" * 60)).mkdir()
    folder = scale_cluster._own_folder()
    folder.rmdir()
    assert folder.parent == Path("/tmp")
