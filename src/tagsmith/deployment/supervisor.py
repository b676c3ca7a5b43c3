"""Keeps the engine process of one bundle alive: starts it, asks it, and starts it again when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.deployment.frames import Frame, FrameError, pack, receive
from tagsmith.errors import BundleError

_log = logging.getLogger("tagsmith.serve")

LOADING_S = 600.0
ANSWER_S = 60.0
"""How long an engine may take to load, and to answer one frame, before it counts as hung and is killed."""

_LONGEST_PAUSE_S = 10.0
_LAST_LINES = 20


class EngineLost(Exception):  # noqa: N818 - a fact that callers turn into an answer
    """The engine process died, or could not be asked, before it answered."""


class EngineFailed(Exception):  # noqa: N818
    """The engine answered that it could not; `unfit` where the texts are the reason."""

    def __init__(self, told: str, *, unfit: bool) -> None:
        super().__init__(told)
        self.unfit = unfit


@dataclass(frozen=True)
class Launch:
    """How an engine process is started."""

    folder: Path
    engine: str = "auto"
    threads: int | None = None

    def command(self, digest: str | None) -> list[str]:
        """The command line; with a `digest` no other version of the bundle is opened."""
        words = [sys.executable, "-m", "tagsmith.deployment.engine_process", str(self.folder), "--engine", self.engine]
        words += [] if self.threads is None else ["--threads", str(self.threads)]
        return words + ([] if digest is None else ["--digest", digest])


class EngineProcess:
    """One life of an engine process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._numbers = itertools.count(1)
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._reading = [asyncio.create_task(self._listen_to_errors())]
        self.description: Mapping[str, Any] = {}
        self.gone = asyncio.Event()

    @classmethod
    async def start(cls, launch: Launch, *, digest: str | None = None) -> EngineProcess:
        """A process whose engine is ready. BundleError when it refuses the bundle, EngineLost when it dies."""
        process = await asyncio.create_subprocess_exec(
            *launch.command(digest),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=2**20,
            start_new_session=True,  # Ctrl-C in a terminal is the server's to answer
            env=_environment(),
        )
        started = cls(process)
        try:
            await started._be_ready(launch)
        except BaseException:
            await started.kill()
            raise
        return started

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    async def ask(self, kind: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Frame:
        """The answer to one frame. EngineLost when the process ends first, EngineFailed when it says that it cannot."""
        if self.gone.is_set():
            raise EngineLost
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        writer = self._process.stdin
        assert writer is not None
        try:
            writer.write(pack(Frame(kind, number, values, arrays)))
            reply = await asyncio.wait_for(answer, ANSWER_S)
        except TimeoutError:
            _log.error("engine_hung", extra={"pid": self.pid, "kind": kind})
            self._process.kill()
            self._lose()
            raise EngineLost from None
        finally:
            self._waiting.pop(number, None)
        if reply.kind == "failed":
            raise EngineFailed(reply.values["error"], unfit=reply.values["kind"] == "unfit")
        return reply

    async def stop(self) -> None:
        """Let it end by itself, and end it where it does not."""
        writer = self._process.stdin
        if writer is not None:
            writer.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 5.0)
        await self.kill()

    async def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._lose()
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    def last_words(self) -> str:
        """The last lines that it wrote to its standard error: why it died, if it said so."""
        return "\n".join(self._last_lines)

    async def _be_ready(self, launch: Launch) -> None:
        assert self._process.stdout is not None
        try:
            first = await asyncio.wait_for(receive(self._process.stdout), LOADING_S)
        except TimeoutError:
            raise EngineLost from None
        except FrameError:
            first = None
        if first is None:
            code = await self._process.wait()
            await asyncio.sleep(0)
            ended = f"by signal {-code}" if code < 0 else f"with code {code}"
            _log.error("engine_died_loading", extra={"ended": ended, "last_words": self.last_words()})
            raise EngineLost
        if first.kind != "ready":
            raise BundleError(first.values.get("message", f"'{launch.folder}' cannot be opened."))
        self.description = first.values
        self._reading.append(asyncio.create_task(self._listen(self._process.stdout)))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while (frame := await receive(reader)) is not None:
                answer = self._waiting.get(frame.number)
                if answer is not None and not answer.done():
                    answer.set_result(frame)
        except FrameError as error:
            _log.error("engine_spoke_nonsense", extra={"error": str(error)})
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._lose()

    async def _listen_to_errors(self) -> None:
        reader = self._process.stderr
        assert reader is not None
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # a line longer than the reader's limit
                continue
            if not line:
                return
            self._last_lines.append(line.decode("utf-8", "replace").rstrip())

    def _lose(self) -> None:
        self.gone.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(EngineLost())
                answer.exception()  # nobody may be left to look at it


class Supervisor:
    """An engine process that comes back. `changed` is called whenever it has come or gone."""

    def __init__(self, launch: Launch, *, changed: Callable[[], None] = lambda: None) -> None:
        self.launch = launch
        self.restarts = 0
        self.refused: str | None = None
        self._changed = changed
        self._engine: EngineProcess | None = None
        self._watch: asyncio.Task[None] | None = None
        self._description: Mapping[str, Any] = {}

    @property
    def ready(self) -> bool:
        """Whether there is an engine that answers."""
        return self._engine is not None and not self._engine.gone.is_set()

    @property
    def description(self) -> Mapping[str, Any]:
        """What the engine said of its bundle when it was first ready."""
        return self._description

    @property
    def pid(self) -> int | None:
        """The number of the engine process, None while there is none."""
        return self._engine.pid if self._engine is not None and self.ready else None

    async def start(self) -> None:
        """Open the bundle for the first time. BundleError when it is refused, EngineLost when the process dies."""
        self._engine = await EngineProcess.start(self.launch)
        self._description = self._engine.description
        self._watch = asyncio.create_task(self._keep_alive())

    async def ask(self, kind: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Frame:
        """The engine's answer; see `EngineProcess.ask`."""
        if self._engine is None:
            raise EngineLost
        return await self._engine.ask(kind, values, arrays)

    async def stop(self) -> None:
        """End the process, for good."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._engine is not None:
            await self._engine.stop()

    async def _keep_alive(self) -> None:
        while True:
            assert self._engine is not None
            await self._engine.gone.wait()
            self._changed()
            died = time.monotonic()
            _log.error("engine_died", extra={"pid": self._engine.pid, "last_words": self._engine.last_words()})
            await self._engine.kill()
            await self._come_back()
            self.restarts += 1
            _log.warning(
                "engine_restarted",
                extra={"pid": self._engine.pid, "seconds": round(time.monotonic() - died, 3)},
            )
            self._changed()

    async def _come_back(self) -> None:
        """Start the same version again, with growing pauses, for as long as it takes."""
        pause = 0.1
        same = replace(self.launch, engine=str(self._description["engine"]))  # `auto` might choose another one
        while True:
            try:
                self._engine = await EngineProcess.start(same, digest=str(self._description["digest"]))
            except BundleError as error:
                self.refused = str(error)
                _log.error("engine_refused", extra={"reason": str(error)})
                self._changed()
            except (EngineLost, OSError) as error:
                _log.error("engine_not_started", extra={"error": type(error).__name__})
            else:
                self.refused = None
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _environment() -> dict[str, str]:
    """The environment of an engine: libraries that would call home, or spin while they wait, are told not to."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    given = dict(os.environ)
    if "OMP_WAIT_POLICY" not in given:
        given.setdefault("GOMP_SPINCOUNT", "10000")
    return given | quiet
