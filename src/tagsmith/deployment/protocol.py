"""uvicorn's HTTP protocol with patience that ends: headers must arrive in time, and be of a size.

uvicorn waits for headers for ever. Bodies are timed by the guard.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tagsmith.deployment.limits import HEADERS_S, MOST_HEADER_BYTES

_LAST_WORDS_S = 1.0
"""A connection that was just made brings its request within this time; closed at once, its client would see a reset."""


class PatientProtocol(HttpToolsProtocol):
    """One connection. From its first byte the headers of a request have 10 s, and 64 KiB."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._headers_due: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._in_headers = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read bytes, and count those that belong to headers."""
        if self._in_headers:
            self._header_bytes += len(data)
            if self._headers_due is None:
                self._wait()
        super().data_received(data)
        if self._in_headers and self._header_bytes > MOST_HEADER_BYTES:
            self._refuse(431, "The headers are too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The headers are there: what follows is the body."""
        self._stop_waiting()
        self._in_headers = False
        self._header_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there: what follows is another request."""
        self._in_headers = True
        super().on_message_complete()

    def shutdown(self) -> None:
        """Close when the server stops: after the request that is being answered, or the one that is on its way."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(_LAST_WORDS_S, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _wait(self) -> None:
        self._headers_due = self.loop.call_later(HEADERS_S, self._refuse, 408, "The headers took too long.")

    def _stop_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _refuse(self, status: int, message: str) -> None:
        self._stop_waiting()
        if self.transport.is_closing() or not self._header_bytes:  # a connection that was opened and never used
            self.transport.close()
            return
        reason = {408: "Request Timeout", 431: "Request Header Fields Too Large"}[status]
        body = json.dumps({"error": message, "error_type": reason.title().replace(" ", "")}).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
