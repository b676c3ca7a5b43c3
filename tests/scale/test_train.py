import json
import os
import signal

import psutil
import pytest

from tagsmith.config import Config
from tagsmith.errors import AssetError, ResourceError, SettingError
from tagsmith.scale.nodes import Node
from tagsmith.scale.train import Workers, divided, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture
def settings(tiny_folder):
    """Settings of a quick training of one of two blocks, its parts by hash."""

    def make(**tuning):
        quick = {"method": "last_layers", "blocks": 1, "epochs": 2, "precision": "fp32", "start": "probe"}
        return Config.of(
            {
                "data": {"split": "hash"},
                "model": {"backbone": str(tiny_folder), "layers": "all", "max_tokens": 48},
                "tuning": quick | tuning,
                "evaluation": {"resamples": 200, "audit": False, "calibrate": False, "robustness_rows": 0},
                "seed": 7,
            }
        )

    return make


# ---- Before any worker is started


@pytest.mark.parametrize(("asked", "read"), [(None, None), ("4", (4, 4)), ("1:4", (1, 4))])
def test_workers_are_read(asked, read):
    assert Workers.read(asked) == read


@pytest.mark.parametrize("asked", ["0", "4:1", "many", "1:2:3", "-1", ""])
def test_other_numbers_of_workers_are_refused(asked):
    with pytest.raises(SettingError, match="Expected a number, as 4, or the fewest and the most, as 1:4"):
        Workers.read(asked)


def node(cpus, gpus=0.0):
    return Node("id", "a", cpus, gpus, 1e9)


def test_a_machine_has_a_worker_or_one_for_each_of_its_gpus():
    assert Workers.of(None, [node(8), node(4)], device="auto") == Workers(1, 2, cpus=4)
    assert Workers.of(None, [node(8, 4), node(8, 4)], device="auto") == Workers(1, 8, cpus=2, gpus=1)
    assert Workers.of(None, [node(8, 4), node(8, 4)], device="cpu") == Workers(1, 2, cpus=8)
    assert Workers.of((2, 2), [node(3)], device="auto") == Workers(2, 2, cpus=1)


def test_more_workers_than_fit_are_refused_instead_of_waited_for():
    with pytest.raises(ResourceError, match="needs 4 workers with 1 CPU each, and the cluster has room for 3"):
        Workers.of((4, 8), [node(3)], device="auto")


def test_parts_by_chance_are_refused(toy_csv, settings, tmp_path):
    config = settings().with_settings({"data": {"split": "group"}})
    with pytest.raises(SettingError, match=r"data\.split is 'group'.*--set data\.split=hash"):
        train(toy_csv, config=config, out=tmp_path / "b")


def test_a_search_still_sees_which_settings_were_given():
    given = Config.of({"model": {"backbone": "minilm-l6"}, "tuning": {"method": "auto"}})
    config = divided(given, Workers(1, 2, cpus=1))
    assert config.model.model_fields_set == {"backbone"}
    assert config.tuning.model_fields_set == {"method", "shard_states", "elastic"}
    assert config.tuning.elastic
    assert not divided(given, Workers(2, 2, cpus=1)).tuning.elastic


def test_workers_that_are_lost_again_and_again_are_told_in_one_paragraph(tmp_path):
    from ray.exceptions import OutOfMemoryError
    from ray.train.v2.api.exceptions import WorkerGroupError

    from tagsmith.scale.train import _failed

    error = WorkerGroupError("pages of it", {1: OutOfMemoryError("Task was killed due to the node running low.\nMore")})
    told = _failed(error, tmp_path / "b")
    assert isinstance(told, ResourceError)
    assert "lost 4 times" in str(told)
    assert "worker 1: Task was killed due to the node running low." in str(told)
    assert "--resume" in str(told)
    assert "\n" not in str(told)


# ---- On a cluster


@pytest.mark.ray
def test_two_workers_train_the_classifier_that_one_process_does(cluster, toy_csv, settings, tmp_path, heard):
    from safetensors.torch import load_file

    from tagsmith.pipeline import train as train_here

    bundle = train(toy_csv, workers=(2, 2), config=settings(), out=tmp_path / "two", listen=heard.append)
    alone = train_here(toy_csv, config=settings(), out=tmp_path / "one")
    one, two = (load_file(each.folder / "model.safetensors") for each in (alone, bundle))
    assert max(float((one[name].float() - two[name].float()).abs().max()) for name in one) < 1e-4
    reports = [json.loads((each.folder / "report.json").read_text()) for each in (alone, bundle)]
    assert reports[0]["data"]["splits"] == reports[1]["data"]["splits"]
    assert reports[0]["test"]["accuracy"] == reports[1]["test"]["accuracy"]
    steps = [event.step for event in heard if event.name == "step"]
    assert steps == list(range(1, len(steps) + 1)), "each step is told once"
    assert [event.stage for event in heard if event.name == "read"] == ["data"], "rows are read once, before all"
    assert any("2 workers" in str(event.values.get("text")) for event in heard)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], "nothing is left beside them"


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_that_divide_the_weights_train_the_same_bundle(cluster, toy_csv, settings, tmp_path):
    from safetensors.torch import load_file

    from tagsmith.pipeline import train as train_here

    config = settings(method="full", start="random")
    divided = config.with_settings({"tuning": {"sharding": "fully"}})
    bundle = train(toy_csv, workers=(2, 2), config=divided, out=tmp_path / "two")
    alone = train_here(toy_csv, config=config, out=tmp_path / "one")
    one, two = (load_file(each.folder / "model.safetensors") for each in (alone, bundle))
    assert max(float((one[name].float() - two[name].float()).abs().max()) for name in one) < 1e-4
    files = [sorted(str(path.relative_to(each.folder)) for path in each.folder.rglob("*")) for each in (alone, bundle)]
    assert files[0] == files[1], "the same bundle, without a trace of pieces"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], "nothing is left beside them"


@pytest.mark.slow
@pytest.mark.ray
def test_further_seeds_are_tuned_side_by_side_to_the_same_report(cluster, toy_csv, settings, tmp_path, heard):
    from tagsmith.pipeline import train as train_here

    config = settings(seeds=4)
    bundle = train(toy_csv, workers=(2, 2), config=config, out=tmp_path / "two", listen=heard.append)
    alone = train_here(toy_csv, config=config, out=tmp_path / "one")
    one, two = (json.loads((each.folder / "report.json").read_text())["seeds"] for each in (alone, bundle))
    assert [run["seed"] for run in two] == [7, 8, 9, 10]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        assert numbers(ours) == pytest.approx(numbers(theirs), abs=1e-3)
    told = " ".join(str(event.values.get("text")) for event in heard if event.name == "note")
    assert "Seed 8, 2 of 4." in told, "by the first worker"
    assert "Worker 2 of 2: Seed 9, 3 of 4." in told


def numbers(run):
    """All numbers of a seed's report, flat."""
    if isinstance(run, dict):
        return [number for value in run.values() for number in numbers(value)]
    return [run] if isinstance(run, int | float) else []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("sharding", ["none", "fully"])
def test_a_killed_worker_costs_no_more_than_a_checkpoint_interval(sharding, cluster, toy_csv, settings, tmp_path):
    from safetensors.torch import load_file

    from tagsmith.pipeline import train as train_here

    steps, killed = [], []

    def listen(event):
        if event.name == "step":
            steps.append(event.step)
        if len(steps) > 40 and not killed:
            killed.append(kill_a_worker())

    long = settings(method="full", start="random", epochs=40, patience=99, checkpoint_s=0.05, sharding=sharding)
    whole = long.with_settings({"tuning": {"sharding": "none"}})
    bundle = train(toy_csv, workers=(1, 2), config=long, out=tmp_path / "b", listen=listen)
    assert killed
    alone = load_file(train_here(toy_csv, config=whole, out=tmp_path / "one").folder / "model.safetensors")
    many = load_file(bundle.folder / "model.safetensors")
    assert max(float((alone[name].float() - many[name].float()).abs().max()) for name in alone) < 1e-3, (
        "those that are left, and those that came anew, all went on from where they were"
    )
    assert bundle.answer(["I love it"])[0].label in bundle.labels
    # A letter with steps may lie unsent in a worker that dies, so that what is heard again is less than was made again.
    again = next((i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]), None)
    assert again is None or steps[again - 1] - steps[again] < 60


def kill_a_worker():
    """The number of a process that runs the training, killed without a word."""
    found = [each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(each.cmdline())]
    assert found, "no worker is seen"
    os.kill(found[-1].pid, signal.SIGKILL)
    return found[-1].pid


@pytest.mark.slow
@pytest.mark.ray
def test_what_a_user_can_mend_comes_back_as_one_paragraph(cluster, toy_csv, settings, tmp_path):
    config = settings().with_settings({"model": {"backbone": str(tmp_path / "nowhere")}})
    with pytest.raises(AssetError, match="nowhere"):
        train(toy_csv, workers=(1, 1), config=config, out=tmp_path / "b")
    assert list(tmp_path.glob("b*")) == []


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_is_stopped_can_be_resumed_elsewhere(cluster, toy_csv, settings, tmp_path, heard):
    from tagsmith.pipeline import train as train_here
    from tagsmith.tuning.loop import StoppedError

    stop = lambda: any(event.name == "step" and event.step > 5 for event in heard)  # noqa: E731
    long = settings(method="full", start="random", epochs=40, patience=99)
    with pytest.raises(StoppedError, match="A checkpoint is in"):
        train(toy_csv, workers=(1, 2), config=long, out=tmp_path / "b", stop=stop, listen=heard.append)
    heard.clear()
    own = long.with_settings({"tuning": {"elastic": True, "shard_states": True}})
    stop = lambda: any(event.name == "step" for event in heard)  # noqa: E731
    with pytest.raises(StoppedError):
        train_here(toy_csv, config=own, out=tmp_path / "b", resume=True, stop=stop, listen=heard.append)
    assert next(event.step for event in heard if event.name == "step") > 5
