"""What a server must outlive: signals, dead engines, reloads, bundles that were meddled with, and bad bodies.

Each part starts `tagsmith serve` on a tiny bundle, on this machine alone, counts what happened, and ends by itself.

    python benchmarks/serving_faults.py --bundle TINY --write docs/benchmarks/serving-faults.md

The quick tests run a fiftieth of it (tests/deployment/test_attacks.py, test_server.py).
"""

from __future__ import annotations

import http.client
import json
import random
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DECLARED = frozenset({200, 400, 403, 404, 405, 408, 413, 415, 422, 424, 429, 431, 503, 504})
"""Statuses that the documentation names; 503 and 504 are declared, any other 5xx is a fault."""


# ---- Bundles that were meddled with


def corruptions(bundle: Path, aside: Path, *, flips: int, cuts: int, seed: int) -> dict[str, Any]:
    """Flip single bits, and cut each file at so many places, in a copy: which of them was loaded all the same?"""
    from tagsmith.deployment.engine import open_engine
    from tagsmith.deployment.manifest import UNHASHED
    from tagsmith.errors import BundleError

    copy = aside / "meddled"
    shutil.copytree(bundle, copy)
    unread = UNHASHED - {"MANIFEST.json"}
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.name not in unread]
    generator, loaded, tried = random.Random(seed), [], 0
    for path, changed in _changes(files, generator, flips=flips, cuts=cuts):
        whole = path.read_bytes()
        path.write_bytes(changed(whole))
        tried += 1
        try:
            open_engine(copy, "tfidf")
            loaded.append(path.name)
        except BundleError:
            pass
        finally:
            path.write_bytes(whole)
    open_engine(copy, "tfidf")  # whole again, it opens: the refusals were for the changes
    return {"tried": tried, "files": len(files), "loaded": loaded}


def _changes(files: list[Path], generator: random.Random, *, flips: int, cuts: int) -> Iterator[tuple[Path, Any]]:
    for number in range(flips):
        path = files[number % len(files)]
        bit = generator.randrange(8 * path.stat().st_size)

        def flip(whole: bytes, bit: int = bit) -> bytes:
            return whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]

        yield path, flip
    for path in files:
        for part in range(cuts):
            yield path, lambda whole, part=part: whole[: len(whole) * part // cuts]


# ---- Bad bodies

_ROUTES = ("/", "/predict", "/invocations", "/classify", "/v1/classify", "/v1/moderations", "/batch")
_SEEDS: tuple[Any, ...] = (
    {"inputs": "a lovely room", "parameters": {"top_k": 2, "function_to_apply": "softmax"}},
    {"inputs": [["a"], ["b"]], "truncate": True, "raw_scores": False},
    {"inputs": ["first", "second"]},
    {"input": ["a", "b"], "model": "toy", "truncate_prompt_tokens": -1},
    {"input": "rude waiter", "use_activation": False},
    {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}], "outputs": [{"name": "label"}]},
    {"id": 1, "text": "stale bread"},
)
_ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 1e308, "", " ", "\ud800", "\0", "a" * 5000, [], {}, [[]], [None], {"": ""}),
    *("../../etc/passwd", "<|im_end|>", "😀", "\u202e", "NaN", [["a"], "b"], {"text": 1}, ["a"] * 40),
)


def fuzz(port: int, *, bodies: int, seed: int) -> dict[str, Any]:
    """Send bodies that were bent in their structure or their bytes, one after the other on one connection."""
    generator = random.Random(seed)
    statuses: Counter[int] = Counter()
    undeclared = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(bodies):
        path, body = generator.choice([*_ROUTES, "/v2/models/toy/infer"]), _bent(generator)
        kind = "application/x-ndjson" if path == "/batch" else "application/json"
        for attempt in range(2):
            try:
                connection.request("POST", path, body, {"content-type": kind})
                reply = connection.getresponse()
                reply.read()
                break
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()  # after 413 and 408 it closes; the next one comes on a new connection
                if attempt:
                    raise
        statuses[reply.status] += 1
        if reply.status not in DECLARED:
            undeclared.append((number, path, reply.status))
    connection.close()
    return {"statuses": dict(statuses), "undeclared": undeclared}


def _bent(generator: random.Random) -> bytes:
    value = json.loads(json.dumps(generator.choice(_SEEDS)))
    for _ in range(generator.randrange(3)):
        value = _bend(value, generator)
    raw = bytearray(json.dumps(value).encode())
    if generator.random() < 0.3:
        for _ in range(generator.randrange(1, 4)):
            place = generator.randrange(len(raw)) if raw else 0
            action = generator.randrange(3)
            if action == 0 and raw:
                raw[place] = generator.randrange(256)
            elif action == 1:
                del raw[place : place + generator.randrange(1, 8)]
            else:
                raw[place:place] = generator.randbytes(generator.randrange(1, 8))
    return bytes(raw)


def _bend(value: Any, generator: random.Random) -> Any:
    """The same with one part of it replaced, removed, doubled or wrapped."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        key = generator.choice(sorted(value))
        action = generator.randrange(4)
        if action == 0:
            return {name: each for name, each in value.items() if name != key}
        if action == 1:
            return value | {str(generator.choice(_ODD)): generator.choice(_ODD)}
        return value | {key: _bend(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.7:
        place = generator.randrange(len(value))
        return value[:place] + [_bend(value[place], generator)] + value[place + generator.randrange(2) :]
    return generator.choice([generator.choice(_ODD), [value], {"text": value}, value])


def schemas(url: str, *, cases: int) -> dict[str, Any]:
    """Cases that schemathesis makes from the server's own description, until there were so many."""
    import schemathesis

    @schemathesis.serializer("application/x-ndjson")
    def as_lines(_: Any, value: Any) -> Any:
        return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses: Counter[int] = Counter()
    undeclared: list[tuple[str, int]] = []
    round_number = 0
    while sum(statuses.values()) < cases:  # a route that takes nothing has one case
        each = max(1, (cases - sum(statuses.values())) // len(operations))
        for operation in operations:
            _send_cases(operation, url, each, round_number, statuses, undeclared)
        round_number += 1
    return {"cases": sum(statuses.values()), "statuses": dict(statuses), "undeclared": undeclared}


def _send_cases(
    operation: Any, url: str, count: int, number: int, statuses: Counter[int], undeclared: list[tuple[str, int]]
) -> None:
    from hypothesis import HealthCheck, Phase, given, seed, settings

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        reply = case.call(base_url=url, timeout=30)
        statuses[reply.status_code] += 1
        if reply.status_code not in DECLARED:
            undeclared.append((case.path, reply.status_code))

    send()


# ---- Invariance


def compositions(port: int, bundle: Any, *, compositions: int, seed: int) -> dict[str, Any]:
    """Ask for random texts in random company, and compare with what the bundle says of each alone."""
    generator = random.Random(seed)
    words = ("lovely", "great", "rude", "dirty", "room", "waiter", "soup", "river", "bread", "train", "stale", "tasty")
    texts = [" ".join(generator.choices(words, k=generator.randrange(1, 60))) for _ in range(120)]
    alone = np.concatenate([bundle.predict_proba([text]) for text in texts])
    changed, worst, compared = 0, 0.0, 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(compositions):
        chosen = [generator.randrange(len(texts)) for _ in range(generator.randrange(1, 17))]
        body = json.dumps({"input": [texts[i] for i in chosen], "truncate_prompt_tokens": -1})
        connection.request("POST", "/v1/classify", body, {"content-type": "application/json"})
        reply = connection.getresponse()
        answer = json.loads(reply.read())
        assert reply.status == 200, answer
        for place, found in zip(chosen, answer["data"], strict=True):
            compared += 1
            worst = max(worst, float(np.abs(np.array(found["probs"]) - alone[place]).max()))
            changed += found["label"] != bundle.labels[int(alone[place].argmax())]
    connection.close()
    return {"compositions": compositions, "texts": compared, "labels_changed": changed, "largest_difference": worst}


def is_open(port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0
