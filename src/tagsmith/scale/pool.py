"""Workers on a cluster, each with work of its own: those that die are replaced, and their work comes back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from tagsmith.errors import ResourceError, TagsmithError
from tagsmith.scale.cluster import first_line
from tagsmith.scale.nodes import Need, living, room_for, workers_that_fit

T = TypeVar("T")

IN_HAND = 2
"""Tasks of a worker: one that it computes, and one that waits, so that it need not."""
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_WITHOUT_WORKERS = 300.0
_FAILED_STARTS = 3
_OUT_OF_MEMORY = 3
"""So often in a row workers may be ended for want of memory, before the machine is to blame and no row."""


@dataclass(frozen=True)
class Lost:
    """The worker of a task died; `blamed` where it was at this task, and its machine lives on.

    `hung_s` are the seconds after which it was ended because it gave no answer; None where it died by itself.
    """

    blamed: bool
    hung_s: float | None = None


@dataclass
class Patience:
    """How long a task may take, by what others took: many times the mean, and never less than `least_s`.

    A worker that computes a slow row looks like one that hangs. Who is ended wrongly loses time and no row: tasks come
    back in halves, and a single row has `least_s`.
    """

    least_s: float = 60.0
    first_s: float = 900.0
    times: float = 20.0
    _units: float = 0.0
    _seconds: float = 0.0

    def note(self, units: float, seconds: float) -> None:
        """A task of so many units was done."""
        self._units += units
        self._seconds += seconds

    def limit(self, units: float) -> float:
        """Seconds for a task; before any was done nothing is known, and `first_s` must do."""
        if not self._units:
            return self.first_s
        return self.least_s + self.times * units * self._seconds / self._units


@dataclass
class Hand:
    """A worker of the pool: its actor, its machine once it has started, and its tasks in the order they were given."""

    actor: Any
    started: Any
    node: str | None = None
    tasks: deque[tuple[Any, Any]] = field(default_factory=deque)
    since: float = 0.0
    """When it began with the oldest of them."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Have the worker do something; gives what its result is asked by."""
        return self.actor.call.remote(method, *arguments)


class Pool:
    """As many workers as a plan wants and a cluster holds, all alike; use it as a context manager.

    `worker` has a method `start`, which is called once on each and whose results must be the same. `starting` says in
    words what a worker loads, for the error of those that cannot. `units` says how large a task is; one that takes far
    longer than others of its size has its worker ended, as if it had died.
    """

    def __init__(
        self,
        worker: Any,
        need: Need,
        *,
        starting: str,
        units: Callable[[Any], float] = lambda task: 1.0,
        patience: Patience | None = None,
    ) -> None:
        self._worker, self._need, self._starting, self._units = worker, need, starting, units
        self._patience, self._out_of_memory = patience or Patience(), 0
        self._hands: list[Hand] = []
        self._told: Any = None
        self._failed_starts = 0
        self._looked = self._had_workers = time.monotonic()

    def __enter__(self) -> Self:
        workers_that_fit(self._need, living())
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        for hand in self._hands:
            ray.kill(hand.actor)

    @property
    def size(self) -> int:
        """How many workers there are, started or about to."""
        return len(self._hands)

    def share(self, value: Any) -> Any:
        """A value that goes to each machine once, however many tasks take it as an argument."""
        import ray

        return ray.put(value)

    def first(self) -> Any:
        """What `start` gave on the first worker that is ready."""
        while self._told is None:
            self._look_after(self._wait())
        return self._told

    @property
    def in_hand(self) -> list[Any]:
        """The tasks that workers have, at work on them or not yet."""
        return [task for hand in self._hands for _, task in hand.tasks]

    def run(
        self, more: Callable[[], T | None], submit: Callable[[Hand, T], Any], each: Callable[[], int] = lambda: IN_HAND
    ) -> Iterator[tuple[T, Any]]:
        """Tasks with their results as they come, or with `Lost`; `more` gives the next task, None for none at present.

        `each` says how many a worker may have at a time, from now on. Ends when nothing is in hand and `more` has
        nothing left.
        """
        while True:
            self._hand_out(more, submit, each)
            if any(hand.node for hand in self._hands) and not any(hand.tasks for hand in self._hands):
                return
            yield from self._look_after(self._wait())

    def _hand_out(
        self, more: Callable[[], T | None], submit: Callable[[Hand, T], Any], each: Callable[[], int]
    ) -> None:
        for depth in range(IN_HAND):  # everybody one, before anybody has two
            for hand in self._hands:
                if hand.node is not None and len(hand.tasks) == depth < each():
                    task = more()
                    if task is None:
                        return
                    hand.since = time.monotonic() if not hand.tasks else hand.since
                    hand.tasks.append((submit(hand, task), task))

    def _wait(self) -> list[Any]:
        """What has come to pass: results, and workers that started or could not."""
        import ray

        pending = [ref for hand in self._hands for ref, _ in list(hand.tasks)[:1]]
        pending += [hand.started for hand in self._hands if hand.node is None]
        if not pending:
            time.sleep(0.2)
            return []
        return ray.wait(pending, num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)[0]

    def _look_after(self, ready: list[Any]) -> list[tuple[Any, Any]]:
        found: list[tuple[Any, Any]] = []
        for hand in list(self._hands):
            if hand.node is None and hand.started in ready:
                self._begin(hand)
            elif hand.tasks and hand.tasks[0][0] in ready:
                found += self._take(hand)
            elif hand.tasks and time.monotonic() - hand.since > self._patience.limit(self._units(hand.tasks[0][1])):
                found += self._give_up(hand, hung_s=time.monotonic() - hand.since)
        now = time.monotonic()
        if any(hand.node for hand in self._hands):
            self._had_workers = now
        elif now - self._had_workers > _SECONDS_WITHOUT_WORKERS:
            raise ResourceError(
                f"No worker came up in {_SECONDS_WITHOUT_WORKERS:.0f} s. Expected room on the cluster for one; look "
                "whether other work holds it. What is done is kept: go on with --resume."
            )
        if now - self._looked > _SECONDS_BETWEEN_LOOKS or not self._hands:
            self._looked = now
            self._fill()
        return found

    def _begin(self, hand: Hand) -> None:
        import ray

        try:
            node, told = ray.get(hand.started)
        except ray.exceptions.RayError as error:
            self._hands.remove(hand)
            _raise_ours(error)
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise ResourceError(
                    f"{_FAILED_STARTS} workers died one after the other while they loaded {self._starting}: "
                    f"{first_line(error)} Expected about {self._need.memory / 1e9:.1f} GB of memory for each; take "
                    "fewer workers, or machines with more. What is done is kept: go on with --resume."
                ) from error
            return
        self._failed_starts = 0
        self._told = told if self._told is None else self._told
        if told != self._told:
            raise ResourceError(
                f"Workers differ: one answers by '{self._told}', another by '{told}'. Expected the same on all "
                "machines; install the same there, or name one with --engine."
            )
        hand.node = node

    def _take(self, hand: Hand) -> list[tuple[Any, Any]]:
        """The result of a worker's oldest task; of all its tasks where it died."""
        import ray

        ref, task = hand.tasks[0]
        try:
            result = ray.get(ref)
        except ray.exceptions.RayError as error:
            _raise_ours(error)
            if isinstance(error, ray.exceptions.RayTaskError):
                raise
            self._require_memory(error)
            return self._give_up(hand)
        hand.tasks.popleft()
        now = time.monotonic()
        self._patience.note(self._units(task), now - hand.since)
        hand.since, self._out_of_memory = now, 0
        return [(task, result)]

    def _give_up(self, hand: Hand, *, hung_s: float | None = None) -> list[tuple[Any, Any]]:
        """All tasks of a worker that died, or that hangs and is ended."""
        import ray

        self._hands.remove(hand)
        ray.kill(hand.actor)  # it may live on behind a network that does not
        alive = hand.node in {node.id for node in living()}
        return [
            (task, Lost(blamed=alive and i == 0, hung_s=hung_s if i == 0 else None))
            for i, (_, task) in enumerate(hand.tasks)
        ]

    def _require_memory(self, error: BaseException) -> None:
        """ResourceError where Ray ends one worker after the other because a machine runs out of memory."""
        import ray

        if not isinstance(error, ray.exceptions.OutOfMemoryError):
            return
        self._out_of_memory += 1
        if self._out_of_memory >= _OUT_OF_MEMORY:
            raise ResourceError(
                f"{_OUT_OF_MEMORY} workers were ended one after the other because their machine ran out of memory, "
                f"with {self.size} at work. Expected about {self._need.memory / 1e9:.1f} GB of memory for each; take "
                "fewer by --workers, or machines with more. What is done is kept: go on with --resume."
            ) from error

    def _fill(self) -> None:
        """As many workers as fit on the machines that there are now; machines may come back that are gone."""
        for _ in range(room_for(self._need, living()) - len(self._hands)):
            self._hands.append(self._new())

    def _new(self) -> Hand:
        import ray

        actor: Any = (
            ray.remote(_Actor)
            .options(
                num_cpus=self._need.cpus,
                num_gpus=self._need.gpus,
                memory=int(self._need.memory),
                max_restarts=0,
                max_task_retries=0,
            )
            .remote(self._worker)
        )
        return Hand(actor, actor.start.remote())


class _Actor:
    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def start(self) -> tuple[str, Any]:
        """The machine, and what the worker gives when it starts."""
        import ray

        return ray.get_runtime_context().get_node_id(), self._worker.start()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the worker gives."""
        return getattr(self._worker, method)(*arguments)


def _raise_ours(error: BaseException) -> None:
    """An error of a worker's that the user can mend, as it was raised there."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, TagsmithError):
        raise type(cause)(str(cause)) from None
