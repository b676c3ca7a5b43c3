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

_IN_HAND = 2
"""Tasks of a worker: one that it computes, and one that waits, so that it need not."""
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_WITHOUT_WORKERS = 300.0
_FAILED_STARTS = 3


@dataclass(frozen=True)
class Lost:
    """The worker of a task died; `blamed` where it was at this task, and its machine lives on."""

    blamed: bool


@dataclass
class Hand:
    """A worker of the pool: its actor, its machine once it has started, and its tasks in the order they were given."""

    actor: Any
    started: Any
    node: str | None = None
    tasks: deque[tuple[Any, Any]] = field(default_factory=deque)

    def call(self, method: str, *arguments: Any) -> Any:
        """Have the worker do something; gives what its result is asked by."""
        return self.actor.call.remote(method, *arguments)


class Pool:
    """As many workers as a plan wants and a cluster holds, all alike; use it as a context manager.

    `worker` has a method `start`, which is called once on each and whose results must be the same. `starting` says in
    words what a worker loads, for the error of those that cannot.
    """

    def __init__(self, worker: Any, need: Need, *, starting: str) -> None:
        self._worker, self._need, self._starting = worker, need, starting
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

    def run(self, more: Callable[[], T | None], submit: Callable[[Hand, T], Any]) -> Iterator[tuple[T, Any]]:
        """Tasks with their results as they come, or with `Lost`; `more` gives the next task, None for none at present.

        Ends when nothing is in hand and `more` has nothing left.
        """
        while True:
            self._hand_out(more, submit)
            if any(hand.node for hand in self._hands) and not any(hand.tasks for hand in self._hands):
                return
            yield from self._look_after(self._wait())

    def _hand_out(self, more: Callable[[], T | None], submit: Callable[[Hand, T], Any]) -> None:
        for depth in range(_IN_HAND):  # everybody one, before anybody has two
            for hand in self._hands:
                if hand.node is not None and len(hand.tasks) == depth:
                    task = more()
                    if task is None:
                        return
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
            self._hands.remove(hand)
            ray.kill(hand.actor)  # it may live on behind a network that does not
            alive = hand.node in {node.id for node in living()}
            return [(task, Lost(blamed=alive and i == 0)) for i, (_, task) in enumerate(hand.tasks)]
        hand.tasks.popleft()
        return [(task, result)]

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
