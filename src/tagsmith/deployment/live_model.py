"""A bundle that is being served: its engine process, the batcher before it, and the texts on their way between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.config import Config, DeploymentConfig, merge
from tagsmith.data.encoding import Tokens
from tagsmith.deployment.batcher import Batcher, Bounds, Full, Waiting
from tagsmith.deployment.classifying import (
    About,
    Answers,
    Question,
    Result,
    Spent,
    empty,
    refuse_texts,
    result_of,
    too_long,
)
from tagsmith.deployment.frames import Frame
from tagsmith.deployment.limits import Limits
from tagsmith.deployment.metrics import Metrics
from tagsmith.deployment.pace import Cost, Pace
from tagsmith.deployment.problems import Problem, engine_lost, not_ready
from tagsmith.deployment.supervisor import EngineFailed, EngineLost, Launch, Supervisor

_log = logging.getLogger("tagsmith.serve")

_MOST_OF_TIME = 0.25
"""Share of a request's time that the queue before it may take: who would only wait for a 504 is told 429 at once."""

_BATCH_OF_TIME = 1 / 30
"""Share of the server's time limit that one batch may take, so that on a slow machine none is in the way for long."""


@dataclass(eq=False)
class _Job:
    """One text in the queue: its tokens, and where its numbers go."""

    tokens: Tokens
    answer: asyncio.Future[tuple[np.ndarray, np.ndarray]]
    inference_s: float = 0.0


class LiveModel:
    """One version of a bundle, open and answering. `settings` are laid over those in the bundle."""

    def __init__(self, launch: Launch, *, name: str, settings: dict[str, Any], metrics: Metrics) -> None:
        self.launch = launch
        self.name = name
        self.metrics = metrics
        self.supervisor = Supervisor(launch, changed=self._engine_changed)
        self.limits: Limits
        self.about: About
        self.config: DeploymentConfig
        self._settings = settings
        self._batcher: Batcher[_Job]
        self._encoding = 0
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pace: Pace
        self._restarts = 0

    async def open(self) -> None:
        """Start the engine. BundleError when it refuses the bundle, EngineLost when it dies, SettingError."""
        await self.supervisor.start()
        description = self.supervisor.description
        merged = merge({"deployment": description["settings"]}, {"deployment": self._settings})
        self.config = Config.of(merged).deployment
        self.about = About.of(self.name, description)
        self.limits = Limits.of(self.config, max_tokens=self.about.max_tokens)
        bounds = Bounds(
            batch_tokens=self.limits.batch_tokens,
            max_wait_s=self.limits.max_wait_s,
            queue_texts=self.limits.queue_texts,
            queue_tokens=self.limits.queue_tokens,
        )
        lanes, cost = description["lanes"], Cost(**description["cost"])
        self._batcher = Batcher(bounds, clock=time.monotonic, lanes=lanes)
        self._pace = Pace(cost, batch_tokens=self.limits.batch_tokens, clock=time.monotonic, lanes=lanes)

    @property
    def ready(self) -> bool:
        """Whether its engine answers."""
        return self.supervisor.ready

    @property
    def load(self) -> tuple[int, int]:
        """Texts and tokens that wait."""
        return self._batcher.texts + self._encoding, self._batcher.tokens

    async def close(self, *, patience_s: float) -> None:
        """Stop once those who use it are served, or after `patience_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._unused.wait(), patience_s)
        await self.supervisor.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answer(self, question: Question) -> Answers:
        """The answers to a question.

        Problem with 413 or 422 for texts that it does not take, 429 where the queue is full, 503 where the engine is
        not there or dies on the way, 504 past the deadline, and 424 where a number is not finite.
        """
        refuse_texts(question, self.about, self.limits)
        self._users += 1
        self._unused.clear()
        try:
            deadline = min(question.deadline, time.monotonic() + self.limits.timeout_s)
            async with asyncio.timeout_at(deadline):  # an event loop's clock is time.monotonic
                return await self._answer(question, deadline)
        except TimeoutError:
            raise Problem(504, "There was no answer within the time limit.", reason="deadline") from None
        except EngineLost:
            raise engine_lost() from None
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def _answer(self, question: Question, deadline: float) -> Answers:
        spent = Spent()
        self._refuse_wait(deadline)
        tokens = await self._encode(question, spent)
        sizes = tokens.sizes
        for place in np.flatnonzero(sizes == 0):
            raise empty(int(place))
        if not question.truncate and tokens.truncated.any():
            raise too_long(int(np.flatnonzero(tokens.truncated)[0]), self.about)
        self._refuse_wait(deadline)  # once more: others came while this was encoded
        found = await self._compute(tokens, sizes, deadline, spent)
        results = tuple(
            self._result(place, probs_C, logits_C, tokens=int(sizes[place]), truncated=bool(tokens.truncated[place]))
            for place, (probs_C, logits_C) in enumerate(found)
        )
        if question.counts:
            self._count(tokens, results)
        return Answers(self.about, results, spent)

    async def _encode(self, question: Question, spent: Spent) -> Tokens:
        if not self.ready:
            raise not_ready("The engine is being started. Try again soon.")
        if self._batcher.texts + self._encoding + len(question.texts) > self.limits.queue_texts:
            raise self._queue_full()
        self._encoding += len(question.texts)
        self._show_load()
        try:
            pairs = None if question.pairs is None else list(question.pairs)
            reply = await self.supervisor.ask("encode", {"texts": list(question.texts), "pairs": pairs}, {})
        except EngineFailed as failure:
            raise _failed(failure) from None
        finally:
            self._encoding -= len(question.texts)
            self._show_load()
        spent.tokenize_s = float(reply.values["tokenize_s"])
        self.metrics.tokenize_seconds.observe(spent.tokenize_s)
        return Tokens(**reply.arrays)

    async def _compute(
        self, tokens: Tokens, sizes: np.ndarray, deadline: float, spent: Spent
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Probabilities and logits of each text, by way of the queue."""
        loop, arrived = asyncio.get_running_loop(), time.monotonic()
        jobs = [_Job(each, loop.create_future()) for each in _single_texts(tokens)]
        try:
            queued = self._batcher.add(
                [(job, int(size)) for job, size in zip(jobs, sizes, strict=True)], deadline=deadline
            )
        except Full:
            raise self._queue_full() from None
        self._pump()
        try:
            found = [await job.answer for job in jobs]
        finally:
            self._forget(queued)
        spent.inference_s = max(job.inference_s for job in jobs)
        spent.queue_s = max(0.0, time.monotonic() - arrived - spent.inference_s)
        return found

    def _forget(self, queued: Sequence[Waiting[_Job]]) -> None:
        """Take back what still waits; what is being computed is left, and its numbers go nowhere."""
        for waiting in queued:
            self._batcher.cancel(waiting)
            if not waiting.job.answer.done():
                waiting.job.answer.cancel()
            elif not waiting.job.answer.cancelled():
                waiting.job.answer.exception()
        self._show_load()

    def _pump(self) -> None:
        """Hand out the batches that are due, and come back when the next one will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for late in self._batcher.expired():
            if not late.job.answer.done():
                late.job.answer.set_exception(TimeoutError())
        if self.ready:
            while batch := self._batcher.take():
                task = asyncio.create_task(self._run(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            due = self._batcher.due_at()
            if due is not None:
                self._timer = asyncio.get_running_loop().call_later(max(0, due - time.monotonic()), self._pump)
        self._show_load()

    async def _run(self, batch: list[Waiting[_Job]]) -> None:
        """Have one batch computed, and give each text its numbers."""
        tokens = _joined([waiting.job.tokens for waiting in batch])
        out = self._pace.began(int(tokens.offsets[-1]))
        failure: BaseException | None = None
        reply, start = Frame("none"), time.monotonic()
        try:
            arrays = {"ids": tokens.ids, "offsets": tokens.offsets, "rows": tokens.rows, "truncated": tokens.truncated}
            reply = await self.supervisor.ask("score", {}, arrays)
        except EngineFailed as error:
            failure = _failed(error)
        except EngineLost as error:
            failure = error
        self._pace.ended(out, whole=failure is None)
        self._batcher.finished(batch_tokens=self._pace.tokens_within(_BATCH_OF_TIME * self.limits.timeout_s))
        self._pump()  # the engine first: what follows is the server's own work
        self._count_batch(batch, tokens, start)
        if failure is None:
            self.metrics.inference_seconds.observe(float(reply.values["inference_s"]))
        for row, waiting in enumerate(batch):
            answer = waiting.job.answer
            if answer.done():
                continue
            if failure is not None:
                answer.set_exception(failure)
            else:
                waiting.job.inference_s = float(reply.values["inference_s"])
                answer.set_result((reply.arrays["probabilities"][row], reply.arrays["logits"][row]))

    def _result(self, place: int, probs_C: np.ndarray, logits_C: np.ndarray, *, tokens: int, truncated: bool) -> Result:
        if not (np.isfinite(probs_C).all() and np.isfinite(logits_C).all()):
            self.metrics.nonfinite.inc()
            raise Problem(424, f"The classifier gave no finite number for text {place}.", reason="nonfinite")
        decimals = self.config.decimals
        return result_of(self.about, probs_C, logits_C, tokens=tokens, truncated=truncated, decimals=decimals)

    def _queue_full(self) -> Problem:
        return Problem(
            429,
            "The queue is full. Try again after the time in Retry-After.",
            reason="queue_full",
            retry_after_s=max(1, min(60, math.ceil(self._wait_s()))),
        )

    def _refuse_wait(self, deadline: float) -> None:
        """Problem with 429 for a request that would wait for too much of its time."""
        if self._wait_s() > _MOST_OF_TIME * (deadline - time.monotonic()):
            raise self._queue_full()

    def _wait_s(self) -> float:
        """How long the queue will take."""
        return self._pace.wait_s(self._batcher.tokens)

    def _engine_changed(self) -> None:
        came_back = self.supervisor.restarts - self._restarts
        self._restarts = self.supervisor.restarts
        self.metrics.restarts.inc(max(0, came_back))
        self._pump()

    def _show_load(self) -> None:
        texts, tokens = self.load
        self.metrics.queue_texts.set(texts)
        self.metrics.queue_tokens.set(tokens)

    def _count_batch(self, batch: list[Waiting[_Job]], tokens: Tokens, now: float) -> None:
        lengths = tokens.lengths
        self.metrics.batch_texts.observe(len(batch))
        self.metrics.batch_tokens.observe(float(lengths.sum()))
        self.metrics.batch_padding.observe(1 - float(lengths.sum()) / float(len(lengths) * max(1, lengths.max())))
        for waiting in batch:
            self.metrics.queue_seconds.observe(now - waiting.arrived)

    def _count(self, tokens: Tokens, results: Sequence[Result]) -> None:
        self.metrics.count_results(self.about, results)
        if self.about.unknown_id is not None:
            places = np.flatnonzero(tokens.ids == self.about.unknown_id)
            pieces = np.searchsorted(tokens.offsets, places, side="right") - 1
            self.metrics.unknown.inc(len(np.unique(tokens.rows[pieces])))


def _single_texts(tokens: Tokens) -> list[Tokens]:
    """The tokens of each text by itself."""
    if len(tokens) == 1:
        return [tokens]
    return [tokens.of_texts(np.array([row])) for row in range(len(tokens))]


def _joined(parts: Sequence[Tokens]) -> Tokens:
    """The tokens of several texts as one."""
    pieces = np.array([len(part.rows) for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    return Tokens(
        ids=np.concatenate([part.ids for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows=np.repeat(np.arange(len(parts)), pieces).astype(np.int64),
        truncated=np.concatenate([part.truncated for part in parts]),
    )


def _failed(failure: EngineFailed) -> Problem:
    if failure.unfit:
        return Problem(422, "The classifier does not take this text.")
    _log.error("engine_failed", extra={"error": str(failure)})
    return Problem(424, "The engine failed on this request.", reason="engine_failed")
