"""Load on a server of this machine, by asyncio alone: clients that wait for answers, or arrivals that wait for nobody.

Arrivals come at random times of a given rate, whatever the server does: latency counts from when a request was due, so
that a slow answer does not hide those which could not be asked meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LOST = 0
"""The status of a request that got no answer."""


@dataclass
class Found:
    """What came of a load: statuses, seconds of the answers with 200, and how long it went on."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def goodput(self) -> float:
        """Answers with 200 a second."""
        return self.statuses[200] / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds within which so many per cent of the answers with 200 came."""
        return 1000 * float(np.percentile(self.latencies_s, percent)) if self.latencies_s else float("nan")

    def plain(self) -> dict[str, object]:
        """The same as data."""
        return {
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "seconds": round(self.seconds, 2),
            "goodput": round(self.goodput, 2),
            "p50_ms": round(self.percentile_ms(50), 1),
            "p99_ms": round(self.percentile_ms(99), 1),
        }


class Connection:
    """One connection to a server, opened when it is needed and again when it was closed."""

    def __init__(self, port: int) -> None:
        self.refused = False
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> int:
        """The status of the answer; LOST where there was none."""
        for _ in range(2):
            fresh = self._writer is None
            try:
                return await self._ask(request)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.close()
                self.refused = isinstance(error, ConnectionRefusedError)
                if fresh:
                    return LOST  # a kept connection may have been closed meanwhile; a new one was ours
        return LOST

    async def _ask(self, request: bytes) -> int:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._reader, self._writer
        assert reader is not None
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), b":0")
        await reader.readexactly(int(length.partition(b":")[2]))
        if b"connection: close" in head.lower():
            self.close()
        return status

    def close(self) -> None:
        """Close it."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def requests_of(texts: Sequence[str], *, path: str) -> list[bytes]:
    """A request for each text."""
    bodies = [json.dumps({"inputs": text}).encode() for text in texts]
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    return [head.format(path, len(body)).encode() + body for body in bodies]


async def waiting_clients(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Found:
    """So many clients, each of which asks as soon as it was answered."""
    found, start = Found(), time.perf_counter()
    following = itertools.cycle(requests)

    async def ask() -> None:
        connection = Connection(port)
        while time.perf_counter() - start < seconds:
            begun = time.perf_counter()
            status = await connection.ask(next(following))
            found.statuses[status] += 1
            if status == 200:
                found.latencies_s.append(time.perf_counter() - begun)
        connection.close()

    await asyncio.gather(*(ask() for _ in range(clients)))
    found.seconds = time.perf_counter() - start
    return found


async def arrivals(port: int, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int) -> Found:
    """Requests at random times, so many a second on average, whether or not the earlier ones were answered."""
    found, start = Found(), time.perf_counter()
    generator, idle, running = random.Random(seed), [], set()

    async def ask(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else Connection(port)
        status = await connection.ask(request)
        found.statuses[status] += 1
        if status == 200:
            found.latencies_s.append(time.perf_counter() - due)
        idle.append(connection)

    due = start
    for request in itertools.cycle(requests):
        due += generator.expovariate(rate)
        if due - start > seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(ask(request, due))
        running.add(task)
        task.add_done_callback(running.discard)
    found.seconds = time.perf_counter() - start
    if running:
        await asyncio.wait(running, timeout=60)
    found.statuses[LOST] += len(running)
    for connection in idle:
        connection.close()
    return found
