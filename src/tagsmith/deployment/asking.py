"""From a route to the bundle that answers, and what the headers of the answer say of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tagsmith.deployment.classifying import Answers, Question, Result
from tagsmith.deployment.guard import Notes
from tagsmith.deployment.problems import Problem
from tagsmith.deployment.versions import Versions


def versions_of(request: Request) -> Versions:
    """The bundles behind a request's server."""
    return request.app.state.versions


def notes_of(request: Request) -> Notes:
    """What is known of a request."""
    return request.scope["tagsmith"]


async def ask(
    request: Request, texts: Sequence[str], *, pairs: Sequence[str] | None = None, truncate: bool = True
) -> Answers:
    """The answers to texts, told of in the request's headers and log line. Problem where there are none."""
    start = time.monotonic()
    question = Question(texts, pairs, truncate, start + _patience(request))
    answers = await versions_of(request).answer(question)
    notes = notes_of(request)
    notes.headers |= _headers(answers, time.monotonic() - start)
    notes.facts |= {
        "texts": len(answers.results),
        "tokens": answers.tokens,
        "version": answers.about.version,
        "queue_ms": round(1000 * answers.spent.queue_s, 2),
        "inference_ms": round(1000 * answers.spent.inference_s, 2),
    }
    return answers


def as_json(content: Any) -> Response:
    """An answer of JSON."""
    return Response(json.dumps(content, separators=(",", ":"), allow_nan=False), media_type="application/json")


def remarks(result: Result) -> dict[str, Any]:
    """What every answer can say of a text beyond its labels."""
    return {"truncated": result.truncated, "abstained": result.abstained}


def _patience(request: Request) -> float:
    """Seconds that the client is ready to wait; the server's own limit holds beside it."""
    given = request.headers.get("x-timeout-s")
    if given is None:
        return math.inf
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise Problem(422, "The header x-timeout-s is no number of seconds above 0.")
    return seconds


def _headers(answers: Answers, total_s: float) -> dict[str, str]:
    spent = answers.spent
    times = {
        "x-tokenization-time": spent.tokenize_s,
        "x-queue-time": spent.queue_s,
        "x-inference-time": spent.inference_s,
        "x-total-time": total_s,
    }
    return {
        "x-model-version": answers.about.version,
        "x-truncated": str(sum(result.truncated for result in answers.results)),
        "x-abstained": str(sum(result.abstained for result in answers.results)),
        "x-compute-tokens": str(answers.tokens),
        **{name: str(round(1000 * seconds)) for name, seconds in times.items()},
    }
