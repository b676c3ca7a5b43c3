"""`/batch`: a text a line in, an answer a line out, in order and while the rest is still coming.

A line that cannot be answered gets an error of its own; the others are answered. There is no 429 here: the stream is
read as fast as the engine answers, and takes at most half of the queue from those who ask for single texts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tagsmith.deployment.asking import notes_of, remarks, versions_of
from tagsmith.deployment.bodies import parse
from tagsmith.deployment.classifying import Answers, Question
from tagsmith.deployment.guard import chunks
from tagsmith.deployment.limits import BODY_S, MOST_LINE_BYTES
from tagsmith.deployment.problems import Problem
from tagsmith.deployment.versions import Versions

_log = logging.getLogger("tagsmith.serve")

router = APIRouter()

_PAUSE_S = 0.02
_EXAMPLE = '{"id": 1, "text": "Never again."}\n{"id": 2, "text": "Lovely."}\n'
_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/x-ndjson": {"schema": {"type": "string"}, "example": _EXAMPLE}},
    },
    "responses": {"200": {"description": "A line of JSON for each line", "content": {"application/x-ndjson": {}}}},
}


@router.post(
    "/batch",
    summary="Many texts, a line each",
    description='Lines of {"id": ..., "text": ..., "text_pair": ...} or of a JSON string; each is answered by a line '
    "with its id, label, score, probabilities, truncated and abstained, or with its id and an error.",
    openapi_extra=_SCHEMA,
    tags=["Tagsmith"],
)
async def batch(request: Request) -> Response:
    """Classify a stream of lines."""
    versions = versions_of(request)
    versions.current  # noqa: B018 - 503 while there is none, before the answer begins
    notes = notes_of(request)
    notes.headers["x-model-version"] = versions.current.about.version
    return _Stream(versions, request)


class _Stream(Response):
    """Reads the body and sends the answers at the same time, each as fast as the other lets it."""

    media_type = "application/x-ndjson"

    def __init__(self, versions: Versions, request: Request) -> None:
        super().__init__()
        self._versions = versions
        self._notes = notes_of(request)
        self._facts = {"texts": 0, "errors": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer until the lines end."""
        window = max(1, min(256, self._versions.current.limits.queue_texts // 2))
        answers: asyncio.Queue[Awaitable[bytes] | None] = asyncio.Queue(window)
        reader = asyncio.create_task(self._read(receive, answers))
        raw = [(b"content-type", b"application/x-ndjson")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            while (answer := await answers.get()) is not None:
                line = await answer
                async with asyncio.timeout(BODY_S):  # a client that does not read its answers
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            while not answers.empty():
                left = answers.get_nowait()
                if isinstance(left, asyncio.Task):
                    left.cancel()
            self._notes.facts |= self._facts

    async def _read(self, receive: Receive, answers: asyncio.Queue[Awaitable[bytes] | None]) -> None:
        """Queue an answer for each line, at most as many at once as the queue holds."""
        try:
            async for number, line in _lines(chunks(receive)):
                await answers.put(asyncio.create_task(self._line(number, line)))
        except Problem as problem:
            self._notes.rejected = problem.reason
            await answers.put(_given(self._error(None, problem)))
        await answers.put(None)

    async def _line(self, number: int, line: bytes | None) -> bytes:
        """The answer to one line; None stands for one that was too long."""
        self._facts["texts"] += 1
        told: dict[str, Any] = {"line": number}
        try:
            if line is None:
                raise Problem(413, f"The line is too long; expected at most {MOST_LINE_BYTES} bytes.")
            row, question = _question(line)
            told |= row
            answers = await self._patiently(lambda: self._versions.answer(question))
        except Problem as problem:
            return self._error(told, problem)
        return json.dumps(told | _told(answers)).encode() + b"\n"

    async def _patiently(self, ask: Callable[[], Awaitable[Answers]]) -> Answers:
        """Ask again while the queue is full or an engine is coming back, as long as a request may take."""
        limit = self._versions.current.limits.timeout_s
        try:
            async with asyncio.timeout(limit):
                while True:
                    try:
                        return await ask()
                    except Problem as problem:
                        if problem.status not in (429, 503):
                            raise
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            raise Problem(504, "There was no answer within the time limit.", reason="deadline") from None

    def _error(self, told: dict[str, Any] | None, problem: Problem) -> bytes:
        self._facts["errors"] += 1
        error = problem.plain("/batch", self._notes.request_id)
        return json.dumps((told or {}) | error | {"status": problem.status}).encode() + b"\n"


async def _given(line: bytes) -> bytes:
    return line


def _question(line: bytes) -> tuple[dict[str, Any], Question]:
    """The id of a line, where it has one, and what it asks."""
    found = parse(line)
    row = {"text": found} if isinstance(found, str) else found
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise Problem(422, 'Expected {"id": ..., "text": ...} or a JSON string.')
    pair, key = row.get("text_pair"), row.get("id")
    if not isinstance(pair, str | None) or not isinstance(key, str | int | float | None):
        raise Problem(422, "'text_pair' is a string, and 'id' is a string or a number.")
    told = {"id": key} if "id" in row else {}
    try:
        json.dumps(told, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, UnicodeEncodeError):
        raise Problem(422, "'id' is no number and no text.") from None
    return told, Question([row["text"]], None if pair is None else [pair])


def _told(answers: Answers) -> dict[str, Any]:
    (result,), about = answers.results, answers.about
    probabilities = dict(zip(about.labels, map(float, result.probs_C), strict=True))
    found: dict[str, Any] = {"labels": list(result.labels)} if about.multi_label else {"label": result.label}
    if not about.multi_label:
        found["score"] = float(result.probs_C.max()) if result.label is None else probabilities[result.label]
    return found | {"probabilities": probabilities, **remarks(result), "model_version": about.version}


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes | None]]:
    """Numbered lines that are not blank, from 1; None for one that is too long, whose bytes are dropped."""
    number, rest, dropped = 1, b"", False
    async for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if dropped or len(line) > MOST_LINE_BYTES:
                yield number, None
            elif line.strip():
                yield number, line
            number, dropped = number + 1, False
        if len(rest) > MOST_LINE_BYTES:
            rest, dropped = b"", True
    if dropped:
        yield number, None
    elif rest.strip():
        yield number, rest
