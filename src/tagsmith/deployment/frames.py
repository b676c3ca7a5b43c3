"""What a server and its engine process say to one another: a JSON head and plain arrays, their sizes first. No pickle.

A frame is `TSF1`, the length of the head and that of the payload (little-endian, 4 bytes each), the head (JSON: kind,
number, values, and name, type and shape of each array), and the arrays one after the other.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from tagsmith.errors import TagsmithError

_START = struct.Struct("<4sII")
_MAGIC = b"TSF1"
_MOST_BYTES = 64 * 2**20
_MOST_AXES = 2
_TYPES = frozenset({"<i4", "<i8", "<f4", "<f8", "|b1"})


class FrameError(TagsmithError):
    """Bytes that are no frame. Who reads them can trust nothing after them, and closes."""

    exit_code = 1


@dataclass(frozen=True)
class Frame:
    """One message: what it is about, the number that its answer carries too, plain values and arrays by name."""

    kind: str
    number: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def pack(frame: Frame) -> bytes:
    """The bytes of a frame; FrameError where it would be too large to be read."""
    arrays = {name: np.ascontiguousarray(array) for name, array in frame.arrays.items()}
    head = json.dumps(
        {
            "kind": frame.kind,
            "number": frame.number,
            "values": dict(frame.values),
            "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
        },
        separators=(",", ":"),
    ).encode()
    payload = b"".join(array.tobytes() for array in arrays.values())
    if max(len(head), len(payload)) > _MOST_BYTES:
        raise FrameError(f"A frame of {len(head) + len(payload)} bytes is too large; expected at most {_MOST_BYTES}.")
    return _START.pack(_MAGIC, len(head), len(payload)) + head + payload


async def receive(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame, None at the end of the stream; FrameError where it is none, or ends in the middle."""
    try:
        start = await reader.readexactly(_START.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameError("The stream ended within the start of a frame.") from None
        return None
    head, payload = _sizes(start)
    try:
        return _unpack(await reader.readexactly(head), await reader.readexactly(payload))
    except asyncio.IncompleteReadError:
        raise FrameError("The stream ended within a frame.") from None


def read(file: BinaryIO) -> Frame | None:
    """The next frame of a file, None at its end; FrameError where it is none, or ends in the middle."""
    start = file.read(_START.size)
    if not start:
        return None
    head_size, payload_size = _sizes(start)
    head, payload = file.read(head_size), file.read(payload_size)
    if len(head) < head_size or len(payload) < payload_size:
        raise FrameError("The stream ended within a frame.")
    return _unpack(head, payload)


def _sizes(start: bytes) -> tuple[int, int]:
    if len(start) < _START.size:
        raise FrameError("The stream ended within the start of a frame.")
    magic, head, payload = _START.unpack(start)
    if magic != _MAGIC or max(head, payload) > _MOST_BYTES:
        raise FrameError("These bytes are no frame.")
    return head, payload


def _unpack(head: bytes, payload: bytes) -> Frame:
    try:
        frame = _frame(json.loads(head), payload)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        frame = None
    if frame is None:
        raise FrameError("A frame's head is not what a head says.")
    return frame


def _frame(told: Any, payload: bytes) -> Frame | None:
    kind, number, values = told["kind"], told["number"], told["values"]
    arrays = _arrays(told["arrays"], payload)
    plain = isinstance(kind, str) and isinstance(number, int) and isinstance(values, dict)
    return Frame(kind, number, values, arrays) if plain and arrays is not None else None


def _arrays(described: list, payload: bytes) -> dict[str, np.ndarray] | None:
    """The arrays in a payload, None where it is not exactly they."""
    found, start = {}, 0
    for name, kind, shape in described:
        if kind not in _TYPES or len(shape) > _MOST_AXES or any(type(n) is not int or n < 0 for n in shape):
            return None
        stop = start + np.dtype(kind).itemsize * int(np.prod(shape, dtype=object))
        if stop > len(payload):
            return None
        found[str(name)] = np.frombuffer(payload[start:stop], dtype=kind).reshape(shape)
        start = stop
    return found if start == len(payload) else None
