"""Who else listens to a run: a file of JSON lines, TensorBoard, MLflow, Weights & Biases, or a plug-in.

A tracker is made by `maker(where, out=..., resume=...)`: `where` is what the user asked for (None: a place beside the
bundle `out`, never in it), `resume` says that an interrupted run goes on. JSON lines hold every event; the others
hold the settings and numbers. No event has the text of a row.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tagsmith.errors import SettingError
from tagsmith.events import Event, JsonLines, Listener, silent
from tagsmith.plugins import find


class Tracker(Protocol):
    """A listener with a beginning and an end; once begun, `place` says where what it wrote can be found."""

    place: str

    def __enter__(self) -> Listener:
        """Begin; what is returned is told each event."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """End, with the error that ended the run, or None where it was done."""
        ...


class Trackers:
    """One listener that tells all: `first`, then each tracker.

    Trackers begin at the first event, so that a command that is refused leaves nothing behind. One that fails is told
    of in a note and left out from then on: no run ends because a server is away or a disk is full.
    """

    def __init__(self, trackers: Mapping[str, Tracker], *, first: Listener = silent) -> None:
        self._waiting, self._first = dict(trackers), first
        self._begun: dict[str, tuple[Tracker, Listener]] = {}

    @classmethod
    def of(cls, wanted: Iterable[str], *, out: str | Path, resume: bool = False, first: Listener = silent) -> Trackers:
        """The trackers `NAME` or `NAME=WHERE` of a run that writes the bundle `out`.

        SettingError for a name that is unknown, and for a library that is missing.
        """
        made = {}
        for each in wanted:
            name, _, where = each.partition("=")
            made[each] = find("tracker", name)(where or None, out=Path(out), resume=resume)
        return cls(made, first=first)

    def __enter__(self) -> Self:
        return self

    def __call__(self, event: Event) -> None:
        """Tell everyone who still listens."""
        self._first(event)
        waiting, self._waiting = self._waiting, {}
        for name, tracker in waiting.items():
            self._try(name, tracker, self._begin, name, tracker)
        for name, (tracker, listen) in list(self._begun.items()):
            self._try(name, tracker, listen, event)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, (tracker, _) in list(self._begun.items()):
            self._try(name, tracker, tracker.__exit__, kind, error, trace)

    def _begin(self, name: str, tracker: Tracker) -> None:
        self._begun[name] = tracker, tracker.__enter__()
        self._note(f"The run is tracked by {name.partition('=')[0]}: {tracker.place}")

    def _try(self, name: str, tracker: Tracker, act: Callable[..., object], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever its library throws, the run must go on
            if self._begun.pop(name, None):
                with suppress(Exception):
                    tracker.__exit__(type(error), error, None)
            told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._note(f"The tracker '{name}' failed and is left out from here on; the run is not affected. {told}")

    def _note(self, text: str) -> None:
        self._first(Event("tuning", "note", values={"text": text}))


def numbers_of(event: Event) -> dict[str, float]:
    """The numbers of an event that are worth a curve or a place in a table, such as `tuning/loss`; none of most events.

    Those of a further seed stand under a name of their own, since its steps begin at 1 again.
    """
    if event.name not in _TITLES:
        return {}
    seed = event.values.get("seed")
    title = _TITLES[event.name] if seed is None else f"{_TITLES[event.name]}-seed-{seed}"
    return {
        f"{title}/{key}": float(value)
        for key, value in event.values.items()
        if key not in _POSITIONS and isinstance(value, int | float) and not isinstance(value, bool)
    }


_TITLES = {"forecast": "forecast", "probe": "probe", "step": "tuning", "evaluated": "tuning", "scores": "test"}
"""Under which title the numbers of an event stand, by its name."""

_POSITIONS = frozenset({"step", "epoch", "seed", "seconds_left"})


def json_lines(where: str | None, *, out: Path, resume: bool) -> JsonLines:
    """Every event as a line of JSON, in `OUT.log/events.jsonl` or a file of the user's; a further run adds to it."""
    return JsonLines(Path(where) if where else _beside(out) / "events.jsonl")


def _beside(out: Path) -> Path:
    """The folder for what is written about a run: a bundle is never changed, so it stands beside it."""
    return out.with_name(f"{out.name}.log")


class TensorBoard:
    """Curves, and the settings as hyper-parameters, in `OUT.log/tensorboard` or a folder of the user's.

    Records are written one by one in this thread, and not by the library's own writer: that one works in a thread of
    its own, which prints a traceback when the disk is full, and forgets up to two minutes when the process is killed.
    """

    def __init__(self, where: str | None, *, out: Path, resume: bool) -> None:
        self.place = str(Path(where) if where else _beside(out) / "tensorboard")
        self._goes_on = resume

    def __enter__(self) -> Self:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from torch.utils.tensorboard import RecordWriter

        folder = Path(self.place)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")
        if not self._goes_on:  # from here on TensorBoard hides what runs before this one left in the folder
            self._write(session_log=SessionLog(status=SessionLog.START))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._records.close()

    def __call__(self, event: Event) -> None:
        """Write what TensorBoard can show of an event."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard.summary import hparams, text

        if event.name == "settings":
            known = {name: "none" if value is None else value for name, value in event.values.items()}
            self._write(summary=hparams(known, {})[1])
        if numbers := numbers_of(event):
            values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
            self._write(summary=Summary(value=values), step=event.step or 0)
        if event.name == "scores":
            self._write(summary=text("test/verdict", str(event.values["text"])))

    def _write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record

        self._records.write(Record(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()


class MLflow:
    """A run in the store that MLFLOW_TRACKING_URI names, else in `mlflow.db` beside the bundle, which its runs share.

    A run that goes on is the latest of its name that did not finish.
    """

    def __init__(self, where: str | None, *, out: Path, resume: bool) -> None:
        asked, here = where or os.environ.get("MLFLOW_TRACKING_URI"), out.absolute().with_name("mlflow.db")
        self.place = asked or f"sqlite:///{here}"
        self._name, self._goes_on = out.name, resume
        if self.place.startswith("sqlite:") and find_spec("sqlalchemy") is None:
            raise SettingError(
                f"The tracker 'mlflow' is to write '{self.place}', which mlflow-skinny alone cannot. Install all of it "
                'with pip install "tagsmith[mlflow]", or name a server in MLFLOW_TRACKING_URI.'
            )

    def __enter__(self) -> Self:
        for name, value in _MLFLOW_MANNERS.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.place)
        self._run = self._begun_run()
        self._metrics: list[Any] = []
        self._sent = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._send()
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._client.set_terminated(self._run, status=status)

    def __call__(self, event: Event) -> None:
        """Write the settings at once, and numbers together every few seconds: each by itself takes 40 ms."""
        from mlflow.entities import Metric, Param

        if event.name == "settings":
            params = [Param(name, str(value)) for name, value in event.values.items()]
            for i in range(0, len(params), _MLFLOW_MOST):
                self._client.log_batch(self._run, params=params[i : i + _MLFLOW_MOST])
        if event.name == "scores":
            self._client.set_tag(self._run, "verdict", str(event.values["text"]))
        now = time.time_ns() // 1_000_000
        self._metrics += [Metric(name, number, now, event.step or 0) for name, number in numbers_of(event).items()]
        if len(self._metrics) > _MLFLOW_MOST or time.monotonic() - self._sent > _SECONDS_APART:
            self._send()

    def _begun_run(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        unfinished = f"attributes.run_name = '{self._name}' and attributes.status != 'FINISHED'"
        found = self._client.search_runs([number], unfinished, max_results=1) if self._goes_on else []
        if not found:
            return self._client.create_run(number, run_name=self._name).info.run_id
        self._client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0].info.run_id

    def _send(self) -> None:
        waiting, self._metrics, self._sent = self._metrics, [], time.monotonic()
        if waiting:
            self._client.log_batch(self._run, metrics=waiting)


PROJECT = "tagsmith"
"""The experiment of MLflow, and the project of W&B, where the environment names no other."""

_MLFLOW_MOST, _SECONDS_APART = 100, 5.0
_MLFLOW_MANNERS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # A server that is away would hold up the training for minutes: by default 7 attempts of 120 s each.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class WeightsAndBiases:
    """A run of Weights & Biases; in a folder only, unless WANDB_API_KEY or WANDB_MODE says that it may be sent.

    What the library would add by itself is left out: the command line (a database's password may stand in it), the
    console, the state of a git repository, its own telemetry.
    """

    def __init__(self, where: str | None, *, out: Path, resume: bool) -> None:
        self.place = where or os.environ.get("WANDB_DIR") or str(_beside(out))
        self._name, self._goes_on = out.name, resume

    def __enter__(self) -> Self:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        Path(self.place).mkdir(parents=True, exist_ok=True)
        is_online = "WANDB_API_KEY" in os.environ or "WANDB_MODE" in os.environ
        reserved = {"console": "off", "silent": True, "disable_git": True, "disable_code": True, "x_disable_meta": True}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self._name,
            dir=self.place,
            mode=None if is_online else "offline",
            resume="auto" if self._goes_on and is_online else None,
            settings=wandb.Settings(**reserved),
        )
        self._run.define_metric("*", step_metric="step")
        self.place = str(Path(self._run.dir).parent if self._run.offline else self._run.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)

    def __call__(self, event: Event) -> None:
        """Write the settings, numbers, and at the end the verdict."""
        if event.name == "settings":
            self._run.config.update(dict(event.values))
        if numbers := numbers_of(event):
            self._run.log(numbers | {"step": event.step or 0})
        if event.name == "scores":
            self._run.summary["verdict"] = event.values["text"]
