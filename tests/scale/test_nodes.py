import pytest

from tagsmith.errors import ResourceError, SettingError
from tagsmith.scale import nodes as scale_nodes
from tagsmith.scale.nodes import Need, Node, living, on_each, require_same_versions, require_shared, workers_that_fit

SMALL = Node("1", "one (10.0.0.1)", cpus=2, gpus=0, memory=4e9)
LARGE = Node("2", "two (10.0.0.2)", cpus=8, gpus=1, memory=64e9)


@pytest.mark.parametrize(
    ("need", "expected"),
    [
        (Need("Scoring", workers=4), 4),
        (Need("Scoring", workers=99), 10),
        (Need("Scoring", workers=99, cpus=2), 5),
        (Need("Scoring", workers=99, memory=3e9), 9),
        (Need("Scoring", workers=99, gpus=1), 1),
        (Need("Scoring", workers=99, cpus=0.1), 100 - 1),
    ],
)
def test_as_many_workers_fit_as_each_machine_can_hold(need, expected):
    assert workers_that_fit(need, [SMALL, LARGE]) == expected


def test_a_plan_that_would_wait_for_ever_is_refused_with_what_is_missing():
    need = Need("Training", workers=8, fewest=3, cpus=4, memory=2e9)
    with pytest.raises(ResourceError) as refused:
        workers_that_fit(need, [SMALL, LARGE])
    said = str(refused.value)
    assert "Training needs 3 workers with 4 CPUs, 2.0 GB of memory each, and the cluster has room for 2" in said
    assert "one (10.0.0.1): 2 CPUs, 4.0 GB of memory; two (10.0.0.2): 8 CPUs, 1 GPU, 64.0 GB of memory" in said


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (("3.12.1", "0.1.0"), "runs Python 3.12.1 and Tagsmith 0.1.0; here it is Python 3.11.7 and Tagsmith 0.1.0"),
        (("3.11.7", "0.2.0"), "runs Python 3.11.7 and Tagsmith 0.2.0"),
        (("3.11.7", None), 'pip install "tagsmith\\[ray\\]==0.1.0" there'),
    ],
)
def test_other_versions_are_refused_by_the_name_of_the_machine(there, says, monkeypatch):
    monkeypatch.setattr(scale_nodes, "_versions_probe", lambda: lambda: ("3.11.7", "0.1.0"))
    monkeypatch.setattr(scale_nodes, "on_each", lambda nodes, ask: [("3.11.7", "0.1.0"), there])
    with pytest.raises(SettingError, match=f"two \\(10.0.0.2\\).*{says}"):
        require_same_versions([SMALL, LARGE])


def test_storage_that_a_machine_does_not_see_is_refused_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(scale_nodes, "on_each", lambda nodes, ask: [ask(), None])
    with pytest.raises(SettingError, match=r"not the same folder on 1 of 2 machines: two \(10.0.0.2\)"):
        require_shared(tmp_path, [SMALL, LARGE])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_machines_of_a_sound_cluster_pass_all_checks(cluster, tmp_path):
    nodes = living()
    assert [node.cpus for node in nodes] == [3]
    require_same_versions(nodes)
    require_shared(tmp_path, nodes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_machine_that_does_not_answer_is_named(cluster, monkeypatch):
    monkeypatch.setattr(scale_nodes, "_SECONDS_TO_ANSWER", 0.2)
    import time

    with pytest.raises(ResourceError, match="1 of 1 machines did not answer"):
        on_each(living(), lambda: time.sleep(2))
