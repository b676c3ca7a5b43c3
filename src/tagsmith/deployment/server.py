"""`tagsmith serve`: routes, limits and life of a server. Its engine is another process, which may die without it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from tagsmith.deployment import routes_batch, routes_hugging_face, routes_kserve, routes_openai, routes_own
from tagsmith.deployment.guard import Guard
from tagsmith.deployment.limits import MOST_CONNECTIONS, Hosts, Keys
from tagsmith.deployment.metrics import Metrics
from tagsmith.deployment.problems import Problem
from tagsmith.deployment.protocol import PatientProtocol
from tagsmith.deployment.supervisor import EngineLost
from tagsmith.deployment.ui import Desk, mount_ui
from tagsmith.deployment.versions import Plan, Versions
from tagsmith.errors import ResourceError, SettingError

_log = logging.getLogger("tagsmith.serve")

_KEEP_ALIVE_S = 75
"""Longer than the idle time of common proxies, so that it is they who close."""

_GRACE_S = 0.3
"""How long connections are still taken (and told 503) after the signal to stop."""

_SO_ATTACH_FILTER, _BPF_RETURN = 26, 0x06
"""Numbers of Linux that Python's socket module has no names for."""

_BODY_BYTES = 2_000_000
_DRAIN_S = 30.0


@dataclass(frozen=True)
class Door:
    """Where a server listens, and who may come in."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys = field(default_factory=lambda: Keys({}))
    key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()


def create_app(versions: Versions, desk: Desk | None = None) -> FastAPI:
    """The application with all routes, without the guard around it."""
    from tagsmith import __version__

    app = FastAPI(title="Tagsmith", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.versions = versions
    app.add_exception_handler(Problem, _tell_problem)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(Exception, _tell_fault)
    for part in (routes_own, routes_hugging_face, routes_openai, routes_kserve, routes_batch):
        app.include_router(part.router)
    mount_ui(app, versions, desk or Desk())
    return app


def guarded(app: FastAPI, versions: Versions, *, keys: Callable[[], Keys], hosts: Hosts) -> Guard:
    """The application with its guard around it."""

    def most() -> int:
        return versions.current.limits.body_bytes if versions.opened else _BODY_BYTES

    return Guard(
        app,
        metrics=versions.metrics,
        keys=keys,
        hosts=hosts,
        body_bytes=most,
        rate_per_minute=lambda: versions.current.config.rate_per_minute if versions.opened else None,
        draining=lambda: versions.draining,
        paths=frozenset(app.openapi()["paths"]),
    )


async def _tell_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    notes = request.scope["tagsmith"]
    notes.rejected = problem.reason
    body = problem.body(request.url.path, notes.request_id)
    return Response(body, problem.status, headers=problem.all_headers())


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: "There is no such route; /docs lists those there are.", 405: "The route knows another method."}
    headers = {key: value for key, value in (error.headers or {}).items() if key.lower() == "allow"}
    return await _tell_problem(
        request, Problem(error.status_code, told.get(error.status_code, "Refused."), headers=headers)
    )


async def _tell_fault(request: Request, error: Exception) -> Response:
    return await _tell_problem(request, Problem(500, "Something went wrong here; the log says where."))


def serve(plan: Plan, door: Door, *, desk: Desk | None = None, started: Callable[[str], None]) -> None:
    """Serve until a signal says to stop. `started` hears the address as soon as it answers.

    SettingError or ResourceError where the address cannot be had, BundleError where the bundle is refused.
    """
    listening = _listen(door)
    try:
        asyncio.run(_Service(plan, door, desk or Desk(), started).run(listening))
    finally:
        listening.close()


def _listen(door: Door) -> socket.socket:
    try:
        family = socket.getaddrinfo(door.host, door.port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends small answers at once on sockets that are said to be TCP; on others they wait for 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((door.host, door.port))
    except OSError as error:
        raise SettingError(
            f"Cannot listen on {door.host} port {door.port}: {error.strerror}. Expected a free address of this "
            "machine. Choose others with --host and --port."
        ) from None
    return listening


class _Service:
    """One life of a server: it opens the bundle, answers, reloads, and drains when it is told to stop."""

    def __init__(self, plan: Plan, door: Door, desk: Desk, started: Callable[[str], None]) -> None:
        self._door = door
        self._keys = door.keys
        self._started = started
        self._versions = Versions(plan, Metrics())
        self._guard = guarded(
            create_app(self._versions, replace(desk, asks_for_key=lambda: bool(self._keys))),
            self._versions,
            keys=lambda: self._keys,
            hosts=Hosts(door.host, allowed=door.allowed_hosts),
        )
        self._stopping = asyncio.Event()
        self._at_once = False

    async def run(self, listening: socket.socket) -> None:
        """Serve until told to stop."""
        server = _server(self._guard)
        self._listen_to_signals(server)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            await self._open_and_serve(listening)
        finally:
            server.should_exit = True
            await serving
            await self._versions.close()

    async def _open_and_serve(self, listening: socket.socket) -> None:
        opening = asyncio.create_task(self._versions.open())
        stopping = asyncio.create_task(self._stopping.wait())
        watching: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return
            try:
                opening.result()
            except EngineLost:
                raise ResourceError(
                    "The engine process ended while it loaded the bundle; the log says how. Expected enough memory, "
                    "and an engine that is installed. Free some memory, or choose another --engine."
                ) from None
            self._started(_address(self._door.host, listening.getsockname()[1]))
            watching = asyncio.create_task(self._versions.watch())
            await stopping
            await self._drain()
        finally:
            tasks = [task for task in (opening, stopping, watching) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self) -> None:
        """Answer what was accepted; what comes now hears 503, and where to look is the load balancer's to know."""
        self._versions.draining = True
        _log.info("draining", extra={"active": self._guard.active})
        start = time.monotonic()
        patience = self._versions.current.config.drain_s
        await asyncio.sleep(min(_GRACE_S, patience))
        while self._guard.active and not self._at_once and time.monotonic() - start < patience:
            await asyncio.sleep(0.02)
        _log.info("drained", extra={"left": self._guard.active, "seconds": round(time.monotonic() - start, 2)})

    def _listen_to_signals(self, server: uvicorn.Server) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, server)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _stop(self, server: uvicorn.Server) -> None:
        server.force_exit = self._at_once = self._stopping.is_set()  # a second time: at once
        self._stopping.set()

    def _reload(self) -> None:
        """Take up the newest bundle and the keys of the file, as a signal asked."""
        if self._door.key_file is not None:
            try:
                self._keys = Keys.of(self._door.key_file, environment=os.environ.get("TAGSMITH_API_KEY"))
            except SettingError as error:
                _log.error("keys_refused", extra={"reason": str(error)})
        task = asyncio.ensure_future(self._versions.reload())
        task.add_done_callback(lambda done: done.exception() if not done.cancelled() else None)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `_Service`, and nobody standing at the door when it closes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Capture none."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take the connections that wait to be accepted, which closing would reset; close; let all of them end."""
        for listening in sockets or ():
            _let_nobody_in(listening)
        waiting = [connection for listening in sockets or () for connection in _accepted(listening)]
        for server in self.servers:
            server.close()
        for connection in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> PatientProtocol:
        return PatientProtocol(config=self.config, server_state=self.server_state, app_state={})


def _let_nobody_in(listening: socket.socket) -> None:
    """Drop the packets that would open a connection, so that none comes between the last `accept` and the close.

    Who knocks now tries again a second later and is refused then. Linux alone can do this (socket(7),
    SO_ATTACH_FILTER); elsewhere those microseconds stay open.
    """
    if sys.platform != "linux":
        return
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    with contextlib.suppress(OSError):  # a kernel without filters leaves those microseconds open too
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _accepted(listening: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait at a socket."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:  # there is none left
            return
        connection.setblocking(False)
        yield connection


def _server(app: Any) -> _Server:
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2048,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )
    return _Server(config)


def _address(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else shown}:{port}"
