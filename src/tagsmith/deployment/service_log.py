"""The log of a server: a line of JSON for each event, never with a text in it."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

NAME = "tagsmith.serve"
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, and what the event says of itself.

    Of what other libraries log only the first line is kept, as they wrote it, without what they put into it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of one event. Of an error its kind and place are told: its message may hold a text."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = record.getMessage() if record.name == NAME else str(record.msg).partition("\n")[0]
        told: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "event": event}
        told |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            told["error"] = record.exc_info[0].__name__
            told["at"] = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-5:]]
        return json.dumps(told, default=str)


def start_logging(stream: TextIO | None = None) -> None:
    """Write the server's events, and what uvicorn and asyncio have to say, as JSON lines to standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in ((NAME, logging.INFO), ("uvicorn.error", logging.WARNING), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
