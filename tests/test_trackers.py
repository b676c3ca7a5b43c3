import json

import pytest

from tagsmith.config import Config
from tagsmith.errors import SettingError
from tagsmith.events import Event
from tagsmith.trackers import MLflow, TensorBoard, Trackers, numbers_of

RUN = [
    Event("data", "settings", values=Config().flat()),
    Event("data", "read", values={"source": "x.csv", "rows": 240}),
    Event("tuning", "step", 1, 2, {"loss": 0.75, "accuracy": 0.5, "learning_rate": 1e-4, "seconds_left": 9.0}),
    Event("tuning", "step", 2, 2, {"loss": 0.25, "accuracy": 1.0, "learning_rate": 2e-4, "seconds_left": 0.0}),
    Event("tuning", "evaluated", 2, 2, {"epoch": 1.0, "step": 2, "validation_loss": 0.5}),
    Event(
        "evaluation", "scores", values={"accuracy": 0.9, "accuracy_low": 0.8, "verdict": "better", "text": "Better."}
    ),
]


class Moody:
    """A tracker that fails when it hears an event of one name; `begin` and `end` are such names too."""

    place = "a bad mood"

    def __init__(self, bad):
        self.bad, self.heard = bad, []

    def __enter__(self):
        self.meet("begin")
        return lambda event: self.meet(event.name)

    def __exit__(self, kind, error, trace):
        self.meet("end")

    def meet(self, name):
        self.heard.append(name)
        if name == self.bad:
            raise OSError("the server\nis away")


def notes(heard):
    return [event.values["text"] for event in heard if event.name == "note"]


def curve(folder, name):
    return [(event.step, pytest.approx(event.value)) for event in accumulated(folder).Scalars(name)]


def accumulated(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


# ---- All of them together


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("begin", ["begin"]),
        ("read", ["begin", "settings", "read", "end"]),
        ("end", ["begin", "settings", "read", "step", "step", "evaluated", "scores", "end", "end"]),
    ],
)
def test_one_that_fails_is_told_of_once_and_left_out(bad, told, heard):
    moody, well = Moody(bad), Moody("never")
    with Trackers({"moody": moody, "well": well}, first=heard.append) as listen:
        for event in RUN:
            listen(event)
    assert moody.heard == told
    assert well.heard == ["begin", *(event.name for event in RUN), "end"]
    assert [text for text in notes(heard) if "failed" in text] == [
        "The tracker 'moody' failed and is left out from here on; the run is not affected. OSError: the server is away"
    ]
    assert [event for event in heard if event.name != "note"] == RUN


def test_an_interrupt_is_no_failure(heard):
    moody = Moody("never")
    moody.meet = lambda name: (_ for _ in ()).throw(KeyboardInterrupt) if name == "read" else None
    with pytest.raises(KeyboardInterrupt), Trackers({"moody": moody}, first=heard.append) as listen:
        for event in RUN:
            listen(event)
    assert not [text for text in notes(heard) if "failed" in text]


def test_nothing_is_written_before_the_first_event(tmp_path):
    with Trackers.of(["jsonl", "tensorboard"], out=tmp_path / "bundle"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused_at_once(tmp_path):
    with pytest.raises(SettingError, match="Did you mean 'tensorboard'"):
        Trackers.of(["jsonl", "tensorbord"], out=tmp_path / "bundle")


def test_further_seeds_have_curves_of_their_own():
    values = {"loss": 0.5, "learning_rate": 1, "seed": 124, "step": 3, "epoch": 1, "seconds_left": 2.0}
    assert numbers_of(Event("tuning", "step", 3, values=values)) == {
        "tuning-seed-124/loss": 0.5,
        "tuning-seed-124/learning_rate": 1.0,
    }
    assert numbers_of(Event("data", "read", values={"rows": 3})) == {}


def test_a_tracked_training_is_the_same_and_outlives_a_full_disk(
    tmp_path, toy_csv, toy_rows, quick_config, llama_bundle
):
    from tagsmith.pipeline import train

    out, heard = tmp_path / "bundle", []
    with Trackers.of(["jsonl=/dev/full", "tensorboard", "jsonl"], out=out, first=heard.append) as listen:
        train(toy_csv, out=out, config=quick_config(), listen=listen)
    assert (out / "MANIFEST.json").read_bytes() == (llama_bundle / "MANIFEST.json").read_bytes()
    assert len([text for text in notes(heard) if "'jsonl=/dev/full' failed" in text]) == 1

    text = (tmp_path / "bundle.log" / "events.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    scores = next(line for line in lines if line["name"] == "scores")
    assert (scores["accuracy"], scores["accuracy_low"]) == tuple(
        report["test"]["accuracy"][k] for k in ("value", "low")
    )
    assert scores["tfidf_log_loss"] == report["baselines"]["tfidf"]["log_loss"]["value"]
    assert scores["text"] == report["verdict"]["text"]
    steps = [line for line in lines if line["name"] == "step"]
    assert max(line["learning_rate"] for line in steps) == pytest.approx(5e-3)
    assert curve(tmp_path / "bundle.log" / "tensorboard", "tuning/loss") == [(s["step"], s["loss"]) for s in steps]

    written = [path.read_bytes() for path in (tmp_path / "bundle.log").rglob("*") if path.is_file()]
    assert not [row for row, _ in toy_rows if any(row.encode() in content for content in written)]


# ---- TensorBoard


def tracked(make, where, *, out, resume=False, run=RUN):
    with make(where, out=out, resume=resume) as listen:
        for event in run:
            listen(event)


def test_tensorboard_has_curves_settings_scores_and_the_verdict(tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tracked(TensorBoard, None, out=tmp_path / "bundle")
    folder = tmp_path / "bundle.log" / "tensorboard"
    assert curve(folder, "tuning/loss") == [(1, 0.75), (2, 0.25)]
    assert curve(folder, "tuning/validation_loss") == [(2, 0.5)]
    assert curve(folder, "test/accuracy_low") == [(0, 0.8)]
    found = accumulated(folder)
    assert found.Tensors("test/verdict/text_summary")[0].tensor_proto.string_val == [b"Better."]
    (session,) = (found.SummaryMetadata("_hparams_/session_start_info").plugin_data,)
    settings = HParamsPluginData.FromString(session.content).session_start_info.hparams
    assert settings["tuning.epochs"].number_value == 3
    assert settings["data.text"].string_value == "none"


def test_in_tensorboard_a_new_run_hides_the_old_one_and_a_resumed_one_goes_on(tmp_path):
    where = str(tmp_path / "runs")
    tracked(TensorBoard, where, out=tmp_path / "b", run=RUN[:3])
    tracked(TensorBoard, where, out=tmp_path / "b", run=RUN[3:4], resume=True)
    assert curve(where, "tuning/loss") == [(1, 0.75), (2, 0.25)]
    tracked(TensorBoard, where, out=tmp_path / "b", run=RUN[2:3])
    assert curve(where, "tuning/loss") == [(1, 0.75)]


# ---- Those whose libraries are too heavy for the development install


@pytest.fixture
def mlflow(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return pytest.importorskip("mlflow", reason="needs mlflow, which is 700 MB: pip install 'tagsmith[mlflow]'")


@pytest.mark.filterwarnings("default")
def test_mlflow_has_metrics_settings_and_how_the_run_ended(mlflow, tmp_path):
    tracked(MLflow, None, out=tmp_path / "bundle")
    store = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("tagsmith").experiment_id
    (run,) = store.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("bundle", "FINISHED")
    assert run.data.params["tuning.epochs"] == "3"
    assert run.data.tags["verdict"] == "Better."
    assert run.data.metrics["test/accuracy_low"] == 0.8
    assert [m.value for m in store.get_metric_history(run.info.run_id, "tuning/loss")] == [0.75, 0.25]

    with pytest.raises(KeyboardInterrupt), MLflow(None, out=tmp_path / "bundle", resume=False):
        raise KeyboardInterrupt
    tracked(MLflow, None, out=tmp_path / "bundle", resume=True)
    assert [run.info.status for run in store.search_runs([experiment])] == ["FINISHED", "FINISHED"]


@pytest.mark.filterwarnings("default")
def test_a_server_of_mlflow_that_is_away_is_noted_within_seconds(mlflow, tmp_path, heard, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with Trackers.of(["mlflow"], out=tmp_path / "bundle", first=heard.append) as listen:
        for event in RUN:
            listen(event)
    assert len(notes(heard)) == 1
    assert "The tracker 'mlflow' failed" in notes(heard)[0]
    assert list(tmp_path.iterdir()) == []


def test_mlflow_skinny_is_told_that_it_cannot_write_a_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("tagsmith.trackers.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"tagsmith\[mlflow\]"):
        MLflow(None, out=tmp_path / "bundle", resume=False)


@pytest.mark.filterwarnings("default")
def test_wandb_stays_in_a_folder_and_tells_nothing_of_the_machine(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb, which is 90 MB: pip install 'tagsmith[wandb]'")
    from tagsmith.trackers import WeightsAndBiases

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["tagsmith", "train", "postgresql://me:secret@host/base"])
    tracker = WeightsAndBiases(None, out=tmp_path / "bundle", resume=False)
    with tracker as listen:
        for event in RUN:
            listen(event)
    (record,) = (tmp_path / "bundle.log" / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert tracker.place == str(record.parent)
    for told in (b"tuning/loss", b"tuning.learning_rate", b"Better."):
        assert told in content
    assert b"secret" not in content
