"""`tagsmith train --on ray`: Ray Train starts the workers, and each of them runs the pipeline as under torchrun.

Workers divide the rows of each step, the frozen pass and the scoring, and add gradients up, so that the result is that
of one process within rounding, for the same `tuning.batch_size`. The first one writes checkpoints and the bundle to
storage that all machines share; when a machine is lost, those that are left go on from the last whole checkpoint.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsmith.config import Config, merge, settings_of
from tagsmith.errors import ResourceError, SettingError, TagsmithError
from tagsmith.events import Event, Listener, silent
from tagsmith.naming import Source, default_out
from tagsmith.scale.cluster import connected, first_line, require_ray
from tagsmith.scale.mailbox import Ear, Mailbox, Reporter
from tagsmith.scale.nodes import Need, Node, living, require_same_versions, require_shared, workers_that_fit

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle

FAILURES = 3
"""How often workers are started anew after one was lost."""

_PATIENCE_S = 86_400
"""How long a worker waits for the others: while the first one measures, they have nothing to do."""

_SECONDS_TO_LISTEN = 0.3
_STOPPED = 130


@dataclass(frozen=True)
class Workers:
    """How many workers there may be, and what each reserves; between `fewest` and `most` they come and go."""

    fewest: int
    most: int
    cpus: int
    gpus: int = 0

    @classmethod
    def read(cls, asked: str | None) -> tuple[int, int] | None:
        """`4`, or `1:4` for one to four; None where nothing is asked. SettingError for anything else."""
        if asked is None:
            return None
        fewest, colon, most = asked.partition(":")
        numbers = [fewest, most if colon else fewest]
        if not all(each.isdecimal() for each in numbers) or not 1 <= int(numbers[0]) <= int(numbers[1]):
            raise SettingError(f"--workers is '{asked}'. Expected a number, as 4, or the fewest and the most, as 1:4.")
        return int(numbers[0]), int(numbers[1])

    @classmethod
    def of(cls, asked: tuple[int, int] | None, nodes: list[Node], *, device: str) -> Workers:
        """Workers that fit on machines; by default from one to one a GPU, or one a machine where there is none.

        ResourceError where the fewest do not fit: they would be waited for, for ever.
        """
        gpus = int(sum(node.gpus for node in nodes)) if device != "cpu" else 0
        fewest, most = asked or (1, max(1, gpus or len(nodes)))
        each = int(sum(node.cpus for node in nodes)) // most
        cpus = max(1, min([each, *(int(node.cpus) for node in nodes if node.cpus >= 1)]))
        need = Need("Training", most, fewest=fewest, cpus=cpus, gpus=1 if gpus else 0)
        workers_that_fit(need, nodes)
        return cls(fewest, most, cpus, int(need.gpus))


@dataclass(frozen=True)
class _Task:
    """What each worker is told: the arguments of the pipeline, where the command was given, and the prepared rows."""

    source: Source
    validation: Source | None
    test: Source | None
    out: Path
    config: Config
    force: bool
    resume: bool
    folder: str
    ready: Any


def train(
    source: Source,
    *,
    on: str = "ray",
    workers: tuple[int, int] | None = None,
    validation: Source | None = None,
    test: Source | None = None,
    out: str | Path | None = None,
    config: Config | None = None,
    force: bool = False,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    listen: Listener = silent,
) -> Bundle:
    """Train as `pipeline.train` does, on the workers of a Ray cluster.

    Args:
        on: `ray` or `ray://HOST[:PORT]`.
        workers: the fewest and the most; see `Workers.of` for the default. Where both are one number a lost machine
            is waited for, else the others go on without it.

    Rows are prepared on the cluster, candidates of `auto` compete there. `out` lies on storage that all machines share.
    """
    from tagsmith.deployment.bundle import load
    from tagsmith.deployment.manifest import refuse_existing
    from tagsmith.pipeline import prepare_rows, search_ready
    from tagsmith.scale.prepare import Cluster, require_hash_splits
    from tagsmith.scale.tune import SideBySide
    from tagsmith.searching import require_search
    from tagsmith.tuning.checkpoints import drop_checkpoint

    require_ray()
    config = config or Config.of(settings_of("fixed"))
    require_search(config, is_known=resume)
    require_hash_splits(config.data)
    folder = Path(out) if out is not None else default_out(source, resume=resume)
    refuse_existing(folder, force=force)
    with connected(on):
        import ray

        nodes = living()
        require_same_versions(nodes)
        folder.parent.mkdir(parents=True, exist_ok=True)
        require_shared(folder.parent, nodes)
        plan = Workers.of(workers, nodes, device=config.tuning.device)
        if not resume:
            drop_checkpoint(folder.parent / f"{folder.name}.checkpoint")
        config = divided(config, plan)
        hands = Cluster().hands()
        ready = prepare_rows(source, validation=validation, test=test, config=config, hands=hands, listen=listen)
        if config.tuning.method == "auto":
            beside = SideBySide.of(nodes)
            search_ready(ready, out=folder, config=config, together=beside, resume=resume, listen=listen)
        task = _Task(
            source, validation, test, folder.absolute(), config, force, resume, str(Path.cwd()), ray.put(ready)
        )
        _run(task, plan, stop, listen)
    return load(folder)


def divided(config: Config, plan: Workers) -> Config:
    """The settings of a training by workers; a search must still see which of them were given."""
    # Further seeds are tuned side by side, each by one worker, from states of all rows.
    own = {"shard_states": config.tuning.seeds == 1, "elastic": plan.fewest < plan.most or config.tuning.elastic}
    return Config.of(merge(config.model_dump(exclude_unset=True), {"tuning": own}))


# ---- On the machine of the command


def _run(task: _Task, plan: Workers, stop: Callable[[], bool], listen: Listener) -> None:
    """Start workers and listen to them until the last one has ended."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    box: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    storage = task.out.parent / f".{task.out.name}.ray"
    ended: list[BaseException | None] = []
    ear = Ear(listen)

    def fit() -> None:
        try:
            _trainer(task, plan, box, storage).fit()
            ended.append(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            ended.append(error)

    threading.Thread(target=fit, daemon=True).start()  # Ray's own handler of Ctrl-C would take the command's place
    try:
        while True:
            is_over = bool(ended)
            if stop():
                ray.get(box.stop.remote())
            letters = ray.get(box.take.remote())
            ear.hear(letters.events)
            if letters.error is not None:
                raise letters.error
            if is_over:
                break
            threading.Event().wait(_SECONDS_TO_LISTEN)
        ear.release()
    finally:
        ray.kill(box)
        shutil.rmtree(storage, ignore_errors=True)
    if ended[0] is not None:
        raise _failed(ended[0], task.out) from ended[0]


def _trainer(task: _Task, plan: Workers, box: Any, storage: Path) -> Any:
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig  # what ray.train gives when asked

    reserved = {"CPU": plan.cpus, **({"GPU": plan.gpus} if plan.gpus else {})}
    return TorchTrainer(
        _work,
        train_loop_config={"task": task, "box": box},
        scaling_config=ScalingConfig(
            num_workers=plan.fewest if plan.fewest == plan.most else (plan.fewest, plan.most),
            use_gpu=bool(plan.gpus),
            resources_per_worker=reserved,
        ),
        run_config=RunConfig(
            name="training", storage_path=str(storage), failure_config=FailureConfig(max_failures=FAILURES)
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if plan.gpus else "gloo", timeout_s=_PATIENCE_S),
    )


def _failed(error: BaseException, out: Path) -> Exception:
    """What is told of workers that were lost again and again."""
    from ray.train import TrainingFailedError

    if not isinstance(error, TrainingFailedError | RuntimeError):
        raise error
    causes: dict[int, Exception] = getattr(error, "worker_failures", {})
    told = "; ".join(f"worker {rank}: {first_line(cause)}" for rank, cause in sorted(causes.items())[:3])
    return ResourceError(
        f"Workers were lost {FAILURES + 1} times, and training was given up: {told or first_line(error)} Expected "
        "machines that stay, with enough memory; lower tuning.tokens_per_batch, or take tuning.gradient_checkpointing, "
        f"if memory ran out. What was learnt until the last checkpoint lies beside '{out}': go on with --resume."
    )


# ---- In a worker


def _work(told: dict[str, Any]) -> None:
    """What each worker does: the pipeline, with its events sent to the command."""
    import ray
    from ray.train import get_context

    from tagsmith.model.packing import keep_freed_memory
    from tagsmith.pipeline import train as run
    from tagsmith.tuning.parallel import ranks_here

    task, box, context = told["task"], told["box"], get_context()
    number, count = context.get_world_rank(), context.get_world_size()
    found = ray.get(box.enter.remote(is_first=number == 0))
    if found.error is not None:  # it would only fail again
        return
    if Path(task.folder).is_dir():
        os.chdir(task.folder)  # Ray has gone elsewhere, and paths may be relative
    keep_freed_memory()
    # The first one's word: another may have come in before it, and have found the group before this one.
    again = ranks_here().agreed(found.groups > 1)[0]
    listen = Reporter(box, f"Worker {number + 1} of {count}")
    if number == 0:
        listen(_told_of(count, again=again))
    try:
        run(
            task.source,
            validation=task.validation,
            test=task.test,
            out=task.out,
            config=task.config,
            force=task.force,
            resume=task.resume or again,
            ready=ray.get(task.ready),
            is_searched=True,
            stop=listen.stop,
            listen=listen,
        )
    except TagsmithError as error:
        listen.send()
        ray.get(box.fail.remote(error))
        if error.exit_code != _STOPPED:  # others may wait for this worker: the group must end
            raise
    listen.send()


def _told_of(count: int, *, again: bool) -> Event:
    import socket

    text = f"{count} worker{'s' if count > 1 else ''}, the first on {socket.gethostname()}."
    if again:
        text = f"A worker was lost. Going on from the last checkpoint: {text}"
    return Event("tuning", "note", values={"text": text})
