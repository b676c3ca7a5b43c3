"""What a server answers instead of a classification: a status, a sentence, and in which shape clients expect it.

No sentence holds anything of the request: neither its texts nor its paths.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_OPENAI_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}
_KINDS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    413: "PayloadTooLarge",
    415: "UnsupportedMediaType",
    422: "Validation",
    424: "Backend",
    429: "Overloaded",
    431: "HeadersTooLarge",
    500: "Internal",
    503: "Unavailable",
    504: "Timeout",
}


@dataclass
class Problem(Exception):  # noqa: N818 - the word of RFC 9457 for it
    """An answer that is no classification. `reason` is what `rejected_total` counts it under, empty for none."""

    status: int
    message: str
    reason: str = ""
    retry_after_s: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What sort of problem it is, in one word."""
        return _KINDS.get(self.status, "Error")

    def body(self, path: str, request_id: str) -> bytes:
        """The JSON of the answer, as clients of that path read it."""
        return json.dumps(self.plain(path, request_id)).encode()

    def plain(self, path: str, request_id: str) -> dict[str, Any]:
        """The same as data."""
        if speaks_openai(path):
            told = {
                "message": self.message,
                "type": _OPENAI_TYPES.get(self.status, self.kind),
                "param": None,
                "code": self.status,
            }
            return {"error": told, "request_id": request_id}
        return {"error": self.message, "error_type": self.kind, "request_id": request_id, **self.details}

    def all_headers(self) -> dict[str, str]:
        """The headers of the answer."""
        headers = {"content-type": "application/json", **self.headers}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def speaks_openai(path: str) -> bool:
    """Whether clients of a path expect errors as OpenAI shapes them."""
    return path == "/classify" or path.startswith("/v1/")


def not_ready(message: str, *, retry_after_s: int = 5, reason: str = "not_ready") -> Problem:
    """503: it may be tried again."""
    return Problem(503, message, reason=reason, retry_after_s=retry_after_s)


def engine_lost() -> Problem:
    """503: the engine died while it worked on the request."""
    return not_ready("The engine stopped while it worked on this; it is being restarted.", reason="engine_lost")
