"""What every request passes: its id, its host, its key, the size and time of its body; and what is told of it after.

A plain ASGI application around another one. It answers what it refuses by itself, and what fails inside with a 500 that
says nothing. It never writes or repeats a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from tagsmith.deployment.limits import BODY_S, OPEN_ROUTES, Hosts, Keys, Rates, host_name
from tagsmith.deployment.metrics import Metrics
from tagsmith.deployment.problems import Problem, not_ready

_log = logging.getLogger("tagsmith.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

STREAMS = frozenset({"/batch"})
"""Routes that read their body themselves, line by line."""

PROBES = frozenset({"/health", "/ready", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Routes that machines ask every few seconds: they are counted, and not logged."""

_WITHOUT_TYPE = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
"""Where clients may name no content type, or that of binary tensors."""

_LINES = frozenset({"application/x-ndjson", "application/jsonl", "application/jsonlines", "application/json"})
_ID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_CLOSED = 499
"""Not a status that is sent: the client went before there was one."""


@dataclass
class Notes:
    """What is known of a request by now, for its log line and the headers of its answer."""

    request_id: str
    key: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    rejected: str = ""


class Guard:
    """The outermost application of a server."""

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        keys: Callable[[], Keys],
        hosts: Hosts,
        body_bytes: Callable[[], int],
        rate_per_minute: Callable[[], int | None],
        draining: Callable[[], bool],
        paths: frozenset[str],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys
        self._hosts = hosts
        self._body_bytes = body_bytes
        self._rate_per_minute = rate_per_minute
        self._rates = Rates(clock=time.monotonic)
        self._draining = draining
        self._paths = paths
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = _Headers(scope["headers"])
        notes = Notes(_request_id(headers))
        scope["tagsmith"] = notes
        sender = _Sender(send, notes, close=self._draining)
        start = time.perf_counter()
        self.active += 1
        try:
            await self._guarded(scope, receive, sender, headers, notes)
        finally:
            self.active -= 1
            self._tell(scope, notes, time.perf_counter() - start)

    async def _guarded(self, scope: Scope, receive: Receive, send: _Sender, headers: _Headers, notes: Notes) -> None:
        try:
            self._admit(scope, headers, notes)
            if scope["path"] in STREAMS:
                await self._app(scope, _timed(receive), send)
                return
            body = await self._body(receive, headers) if scope["method"] in ("POST", "PUT", "PATCH") else b""
            await _unless_gone(self._app, scope, body, receive, send, notes)
        except Problem as problem:
            notes.rejected = notes.rejected or problem.reason
            await send.problem(problem, scope["path"])
        except Exception as error:
            _log.exception("failed", extra={"request_id": notes.request_id})
            if notes.status and not send.complete:
                raise _Broken from error  # half an answer is out: the connection must close
            if not notes.status:
                await send.problem(Problem(500, "Something went wrong here; the log says where."), scope["path"])

    def _admit(self, scope: Scope, headers: _Headers, notes: Notes) -> None:
        """Problem for a request that is not to be looked at any further."""
        if not self._hosts.admits(headers.get("host")):
            raise Problem(400, "This server does not go by that Host. Name it with --allowed-host.", reason="host")
        origin = headers.get("origin")
        if origin is not None and host_name(origin.partition("://")[2]) != host_name(headers.get("host") or ""):
            raise Problem(403, "Pages of other sites may not ask here.", reason="origin")
        keys, path = self._keys(), scope["path"]
        if keys and path not in OPEN_ROUTES:
            notes.key = keys.owner(_given_key(headers))
            if notes.key is None:
                raise Problem(401, "A valid key is needed, as in: Authorization: Bearer KEY", reason="key")
        if scope["method"] != "POST":
            return
        if self._draining():
            raise not_ready("The server is stopping. Ask another one.", retry_after_s=1, reason="draining")
        _refuse_type(path, headers)
        per_minute = self._rate_per_minute()
        if per_minute is not None and (pause := self._rates.take(notes.key or "", per_minute=per_minute)):
            told = f"More than {per_minute} requests a minute."
            raise Problem(429, told, reason="rate", retry_after_s=math.ceil(pause))

    async def _body(self, receive: Receive, headers: _Headers) -> bytes:
        """The whole body. Problem with 413 where it is too large, 408 where it takes too long."""
        most = self._body_bytes()
        too_large = Problem(413, f"The body is too large; expected at most {most} bytes.", reason="too_long")
        length = headers.get("content-length")
        if length is not None and length.isdecimal() and int(length[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(_CLOSED, "The client is gone.", reason="disconnect")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Problem(408, "The body took too long to arrive.", reason="slow") from None

    def _tell(self, scope: Scope, notes: Notes, seconds: float) -> None:
        """Count the request and write its line."""
        status = notes.status or _CLOSED
        found = getattr(scope.get("route"), "path", scope["path"])
        route = found if found in self._paths else "other"
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if notes.rejected:
            self._metrics.rejected.labels(notes.rejected).inc()
        level = logging.INFO if status < 500 else logging.WARNING
        if scope["path"] in PROBES:
            level = logging.DEBUG
        facts: dict[str, Any] = {"request_id": notes.request_id, "method": scope["method"], "route": route}
        facts |= {"code": status, "ms": round(1000 * seconds, 2)}
        facts |= {"key": notes.key} if notes.key else {}
        facts |= {"rejected": notes.rejected} if notes.rejected else {}
        _log.log(level, "request", extra=facts | notes.facts)


class _Broken(Exception):  # noqa: N818
    """An answer ended in its middle. The message of the fault itself goes nowhere: it may hold a text."""


class _Headers:
    """Headers by name; of several of one name the first."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._found: dict[str, str] = {}
        for name, value in raw:
            self._found.setdefault(name.decode("latin-1"), value.decode("latin-1"))

    def get(self, name: str) -> str | None:
        """The value of a header in lower case."""
        return self._found.get(name)


class _Sender:
    """Sends an answer with what is known of the request in its headers."""

    def __init__(self, send: Send, notes: Notes, *, close: Callable[[], bool]) -> None:
        self._send = send
        self._notes = notes
        self._close = close
        self.complete = False

    async def __call__(self, message: Message) -> None:
        """Send one part of the answer."""
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.complete = True
        if message["type"] == "http.response.start":
            self._notes.status = message["status"]
            own = {name.lower() for name, _ in message.get("headers", ())}
            told = {"x-request-id": self._notes.request_id, **self._notes.headers}
            extra = [(name.encode(), value.encode("latin-1", "replace")) for name, value in told.items()]
            extra += [pair for pair in _ALWAYS if pair[0] not in own]
            if self._close():
                extra.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)

    async def problem(self, problem: Problem, path: str) -> None:
        """Send a problem, unless the client is gone."""
        if problem.status == _CLOSED:
            return
        body = problem.body(path, self._notes.request_id)
        headers = {**problem.all_headers(), "content-length": str(len(body))}
        if problem.status in (408, 413):  # what is left of the body is not read
            headers["connection"] = "close"
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})


async def _unless_gone(app: App, scope: Scope, body: bytes, receive: Receive, send: Send, notes: Notes) -> None:
    """Run the application, and stop it when the client goes."""
    handler = asyncio.ensure_future(app(scope, _replayed(body), send))
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({handler, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not handler.done():
            notes.rejected = "disconnect"
            handler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await handler
            return
        handler.result()
    finally:
        handler.cancel()
        watcher.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replayed(body: bytes) -> Receive:
    """The `receive` of a request whose body has been read."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if parts:
            return parts.pop()
        await asyncio.Event().wait()  # the watcher sees the client go
        raise AssertionError

    return receive


def _timed(receive: Receive) -> Receive:
    """A `receive` that gives up on a client that says nothing for too long."""

    async def timed() -> Message:
        try:
            return await asyncio.wait_for(receive(), BODY_S)
        except TimeoutError:
            raise Problem(408, "The body took too long to arrive.", reason="slow") from None

    return timed


def _request_id(headers: _Headers) -> str:
    """The client's own id where it is a plain one, the trace of its `traceparent`, or a new one."""
    given = headers.get("x-request-id")
    if given is not None and _ID.fullmatch(given):
        return given
    trace = (headers.get("traceparent") or "").split("-")
    if len(trace) == 4 and re.fullmatch(r"[0-9a-f]{32}", trace[1]):
        return trace[1]
    return secrets.token_hex(12)


def _given_key(headers: _Headers) -> str | None:
    scheme, _, key = (headers.get("authorization") or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _refuse_type(path: str, headers: _Headers) -> None:
    """Problem with 415 for a body that is packed, or is not said to be JSON."""
    if (headers.get("content-encoding") or "identity").lower() != "identity":
        raise Problem(415, "The body is compressed. Send it as it is.", reason="media_type")
    kind, _, options = (headers.get("content-type") or "").partition(";")
    kind = kind.strip().lower()
    if kind in ("", "application/octet-stream") and _WITHOUT_TYPE.fullmatch(path):
        return
    known = _LINES if path in STREAMS else frozenset({"application/json"})
    letters = re.search(r"charset\s*=\s*\"?([\w-]+)", options, re.IGNORECASE)
    if kind not in known or (letters is not None and letters[1].lower() not in ("utf-8", "utf8")):
        raise Problem(415, f"Expected the header content-type: {min(known)}, and text in UTF-8.", reason="media_type")


async def chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The body of a stream, part by part. Problem when the client goes or says nothing for too long."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(_CLOSED, "The client is gone.", reason="disconnect")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return
