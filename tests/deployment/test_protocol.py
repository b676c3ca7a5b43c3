"""Slow and endless clients, against the real protocol on a socket, with short patience."""

import asyncio
import contextlib
import json

import pytest
import uvicorn

from tagsmith.deployment import protocol
from tagsmith.deployment.protocol import PatientProtocol


async def echo(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def listening():
    config = uvicorn.Config(echo, http=PatientProtocol, lifespan="off", log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()

    def build():
        return PatientProtocol(config=config, server_state=state, app_state={})

    server = await loop.create_server(build, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.close()
        await server.wait_closed()


async def sent(port, parts, *, pause_s=0.0):
    """What a server says to bytes that come in parts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.ensure_future(reader.read(65536))
    try:
        for part in parts:
            with contextlib.suppress(ConnectionError):
                writer.write(part)
                await writer.drain()
            await asyncio.sleep(pause_s)
            if answer.done():
                break
        return await asyncio.wait_for(answer, 5)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def answered(parts, **options):
    async def run():
        async with listening() as port:
            return await sent(port, parts, **options)

    return asyncio.run(run())


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(protocol, "HEADERS_S", 0.2)


HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"


def test_headers_a_byte_at_a_time_are_given_up(impatient):
    answer = answered([bytes([byte]) for byte in HEAD], pause_s=0.02)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    assert json.loads(body)["error_type"] == "RequestTimeout"


def test_a_connection_that_never_asks_is_closed_without_a_word(impatient):
    assert answered([]) == b""


def test_a_request_in_time_is_answered_and_so_is_the_next_one_on_its_connection(impatient):
    async def run():
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(HEAD + b"{}")
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
                await asyncio.sleep(0.3)  # longer than headers may take: it is between two requests
            writer.close()

    asyncio.run(run())


def test_headers_without_end_are_refused():
    answer = answered([b"GET / HTTP/1.1\r\nHost: localhost\r\n", *[b"x-filler: " + b"a" * 8000 + b"\r\n"] * 20])
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_large_body_behind_small_headers_is_no_large_header():
    body = b"a" * 500_000
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n"
    assert answered([head + body]).startswith(b"HTTP/1.1 200 ")


def test_what_is_no_http_is_400():
    assert answered([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20]).startswith(b"HTTP/1.1 400 ")
