"""A second machine that is not like the first: another Tagsmith, another Python, a disk of its own.

It is a raylet of this computer with an environment and mounts of its own, and joins as any other does.
"""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tagsmith.deployment.journal import folder_of
from tagsmith.errors import SettingError
from tagsmith.scale.nodes import living
from tagsmith.scale.score import score_on
from tagsmith.scale.train import train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


JOIN = """
import signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams
about = {"num_cpus": 1, "object_store_memory": 10**8, "min_worker_port": 0, "max_worker_port": 0}
about |= {"node_manager_port": 0, "include_log_monitor": False, "node_ip_address": "127.0.0.1"}
params = RayParams(gcs_address=sys.argv[1], **about)
params.dashboard_agent_listen_port = None
node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
sys.stdin.read()
node.kill_all_processes(check_alive=False, allow_graceful=True)
"""
"""What `ray start` does, which keeps machines apart that listen on loopback alone."""


@contextmanager
def second_machine(*, hiding=None, **environment):
    """A machine with an environment of its own, from which the folder `hiding` cannot be seen."""
    import ray

    words = [sys.executable, "-c", JOIN, ray.get_runtime_context().gcs_address]
    if hiding is not None:
        words = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none '{hiding}' && exec \"$@\"", "sh", *words]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, env=os.environ | environment, **streams)
    try:
        wait_for(2, process)
        yield
    finally:
        process.communicate(timeout=60)
        wait_for(1, None)


def wait_for(count, process):
    for _ in range(150):
        if len(living()) == count:
            return
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    raise AssertionError(f"{len(living())} machines, not {count}")


@pytest.fixture
def labelled(cluster, llama_bundle, toy_csv, tmp_path):
    """Label rows by the cluster as it is, into a folder of this test."""
    (tmp_path / "out").mkdir()
    return lambda: score_on("ray", llama_bundle, toy_csv, out=tmp_path / "out" / "out.csv", engine="tfidf")


def told(refused):
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_another_tagsmith_on_a_machine_is_refused_in_one_paragraph(labelled, tmp_path):
    package = tmp_path / "other" / "tagsmith"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "9.9.9"\n')
    with second_machine(PYTHONPATH=str(package.parent)), pytest.raises(SettingError) as refused:
        labelled()
    assert "and Tagsmith 9.9.9; here it is" in told(refused)


def test_another_python_on_a_machine_is_refused_in_one_paragraph(labelled, tmp_path):
    (tmp_path / "other").mkdir()
    # Ray itself lets no process of another Python join; one that got past it says so here.
    ours = "import os, platform\nif 'default_worker' in str(getattr(__import__('sys'), 'orig_argv', '')):\n"
    (tmp_path / "other" / "sitecustomize.py").write_text(ours + "    platform.python_version = lambda: '3.99.0'\n")
    path = os.pathsep.join([str(tmp_path / "other"), os.environ.get("PYTHONPATH", "")])
    with second_machine(PYTHONPATH=path), pytest.raises(SettingError) as refused:
        labelled()
    assert "runs Python 3.99.0 and Tagsmith" in told(refused)


def needs_mounts():
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return pytest.mark.skipif(tried.returncode != 0, reason="this account may not make mounts of its own")


@needs_mounts()
def test_a_folder_that_a_machine_does_not_share_is_refused_in_one_paragraph(labelled, tmp_path):
    with second_machine(hiding=tmp_path / "out"), pytest.raises(SettingError) as refused:
        labelled()
    assert f"'{tmp_path / 'out'}' is not the same folder on 1 of 2 machines" in told(refused)
    assert not folder_of(tmp_path / "out" / "out.csv").exists()


@needs_mounts()
def test_a_bundle_that_a_machine_does_not_share_is_refused_in_one_paragraph(labelled, llama_bundle):
    with second_machine(hiding=llama_bundle), pytest.raises(SettingError) as refused:
        labelled()
    assert f"'{llama_bundle}' is not the same folder on 1 of 2 machines" in told(refused)


@needs_mounts()
def test_a_training_into_a_folder_that_is_not_shared_is_refused(cluster, toy_csv, quick_config, tmp_path):
    (tmp_path / "out").mkdir()
    config = quick_config(data={"split": "hash"})
    with second_machine(hiding=tmp_path / "out"), pytest.raises(SettingError) as refused:
        train(toy_csv, config=config, out=tmp_path / "out" / "b")
    assert "is not the same folder on 1 of 2 machines" in told(refused)
    assert list((tmp_path / "out").iterdir()) == []
