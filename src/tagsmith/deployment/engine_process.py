"""The process in which a served bundle's engine computes: `python -m tagsmith.deployment.engine_process FOLDER ...`.

It verifies and opens the bundle, checks it on its own probes, and then answers frames on its standard input with frames
on its standard output, until that input ends. Texts are encoded in one thread while another one computes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, BinaryIO

import numpy as np

from tagsmith.data.encoding import Tokens
from tagsmith.deployment.choosing import LOSSY
from tagsmith.deployment.engine import Engine, open_engine
from tagsmith.deployment.frames import Frame, FrameError, pack, read
from tagsmith.deployment.manifest import MANIFEST, verify
from tagsmith.deployment.pace import Cost
from tagsmith.deployment.recipe import read_settings
from tagsmith.errors import BundleError, TagsmithError
from tagsmith.model.decision import plain_of

EXACT, NEAR = 1e-4, 0.05
"""How far probabilities of probes may lie from the recorded ones: of an engine in fp32, and of one in fewer bits."""

_WARM_UP = (1, 16, 64, 256)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve one bundle until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--digest", help="refuse another version of the bundle than this one")
    chosen = parser.parse_args(arguments)
    # The server decides when this process ends: a terminal's or a supervisor's signal goes to the whole group.
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = _take_over_the_pipes()
    send = _Sender(answers)
    try:
        engine = _open(chosen.folder, chosen.engine, threads=chosen.threads, digest=chosen.digest)
        lanes = lanes_of(engine)
        description = _describe(chosen.folder, engine) | {"lanes": len(lanes)}
        description["cost"] = asdict(_warm_up(engine, description["max_tokens"]))
        check_probes(chosen.folder, engine)
    except TagsmithError as error:
        send(Frame("refused", values={"message": str(error), "kind": type(error).__name__}))
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the server must hear of it
        send(Frame("refused", values={"message": f"The bundle cannot be opened: {_told(error)}.", "kind": "fault"}))
        return
    send(Frame("ready", values=description))
    _Desk(engine, send, lanes=lanes).serve(requests)


class _Sender:
    """Writes frames, one at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = Lock()

    def __call__(self, frame: Frame) -> None:
        with self._lock:
            self._file.write(pack(frame))
            self._file.flush()


class _Desk:
    """Takes frames and answers them: `encode` in a thread of its own, `score` in a thread for each lane.

    Each of `lanes` is called in its thread before the first frame.
    """

    def __init__(self, engine: Engine, send: Callable[[Frame], None], *, lanes: Sequence[Callable[[], None]]) -> None:
        self._engine = engine
        self._send = send
        self._lanes = lanes
        self._to_encode: SimpleQueue[Frame | None] = SimpleQueue()
        self._to_score: SimpleQueue[Frame | None] = SimpleQueue()

    def serve(self, requests: BinaryIO) -> None:
        """Answer until the requests end; whatever is unanswered then, nobody waits for."""
        Thread(target=self._sort, args=(requests,), daemon=True).start()
        Thread(target=self._work, args=(self._to_encode, self._encode), daemon=True).start()
        for prepare in self._lanes[1:]:
            Thread(target=self._compute, args=(prepare,), daemon=True).start()
        self._compute(self._lanes[0])

    def _compute(self, prepare: Callable[[], None]) -> None:
        prepare()
        self._work(self._to_score, self._score)

    def _sort(self, requests: BinaryIO) -> None:
        """Read frames and hand each to its thread. One that cannot be read ends the process."""
        try:
            while (frame := read(requests)) is not None:
                (self._to_encode if frame.kind == "encode" else self._to_score).put(frame)
        except FrameError as error:
            print(f"engine process: {error}", file=sys.stderr)  # noqa: T201 - the log of this process
        for _ in self._lanes:
            self._to_score.put(None)

    def _work(self, queue: SimpleQueue[Frame | None], answer: Callable[[Frame], Frame]) -> None:
        while (frame := queue.get()) is not None:
            try:
                reply = answer(frame)
            except Exception as error:  # noqa: BLE001 - one bad request must not end the others
                # The message of an error may hold a text; where it came from does not.
                kind = "unfit" if isinstance(error, TagsmithError) else "fault"
                reply = Frame("failed", frame.number, {"kind": kind, "error": _told(error)})
            self._send(reply)

    def _encode(self, frame: Frame) -> Frame:
        start = time.perf_counter()
        tokens = self._engine.encode(frame.values["texts"], frame.values.get("pairs"))
        spent = {"tokenize_s": time.perf_counter() - start}
        return Frame("encoded", frame.number, spent, _as_arrays(tokens))

    def _score(self, frame: Frame) -> Frame:
        start = time.perf_counter()
        logits_NC = self._engine.logits_of(Tokens(**frame.arrays))
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found and refused by the server
            probs_NC = self._engine.probabilities_of(logits_NC)
        spent = {"inference_s": time.perf_counter() - start}
        arrays = {"logits": logits_NC.astype("<f4"), "probabilities": probs_NC.astype("<f8")}
        return Frame("scored", frame.number, spent, arrays)


def lanes_of(engine: Engine) -> list[Callable[[], None]]:
    """What a thread does first, for each batch that the engine computes at a time; one where it says nothing."""
    lanes: Callable[[], list[Callable[[], None]]] | None = getattr(engine, "lanes", None)
    return [lambda: None] if lanes is None else lanes()


def _as_arrays(tokens: Tokens) -> dict[str, np.ndarray]:
    return {
        "ids": tokens.ids.astype("<i4"),
        "offsets": tokens.offsets.astype("<i8"),
        "rows": tokens.rows.astype("<i8"),
        "truncated": tokens.truncated,
    }


def _take_over_the_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for frames alone: whatever a library prints goes to standard error instead."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, answers


def _open(folder: Path, name: str, *, threads: int | None, digest: str | None) -> Engine:
    if digest is not None:
        verify(folder)
        if digest_of(folder) != digest:
            raise BundleError(
                f"The bundle '{folder}' is another one than the one that was served. Expected the same files; "
                "publish a new version under a new name and reload."
            )
    return open_engine(folder, name, threads=threads)


def digest_of(folder: Path) -> str:
    """The SHA-256 over all files of a bundle, as its manifest has it: its version."""
    return str(json.loads((folder / MANIFEST).read_bytes())["sha256"])


def _describe(folder: Path, engine: Engine) -> dict[str, Any]:
    settings = read_settings(folder)
    model: Mapping[str, Any] = settings.get("model", {})
    thresholds, sureties = engine.thresholds, engine.sureties
    return {
        "engine": engine.name,
        "labels": list(engine.labels.names),
        "multi_label": engine.labels.multi_label,
        "thresholds": plain_of(thresholds),
        "sureties": None if sureties is None else [float(each) if each < np.inf else None for each in sureties],
        "proof": _proof(settings, engine),
        "max_tokens": engine.max_tokens,
        "long_texts": str(model.get("long_texts", "head")),
        "pairs": bool(model.get("pairs")),
        "digest": digest_of(folder),
        "unknown_id": _unknown_id(folder),
        "settings": settings.get("config", {}).get("deployment", {}),
    }


def _proof(settings: Mapping[str, Any], engine: Engine) -> dict[str, Any] | None:
    """What is proven of the answers that are given, and why it holds for this engine; None where nothing is."""
    about = settings.get("abstention")
    if about is None or engine.sureties is None:
        return None
    proven_for = about.get("engine", "torch-fp32")
    if engine.name == proven_for:
        holds = "proven for this engine"
    elif engine.name in LOSSY:
        holds = "this engine answered, or kept silent, as that one on all held-out rows"
    else:
        holds = "this engine's probabilities are those of that one within 1e-4"
    return {"proven_for": proven_for, "holds": holds, **(about.get("certificate") or {})}


def _unknown_id(folder: Path) -> int | None:
    """The id that stands for letters which the tokenizer does not know; None where it knows all."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    vocabulary, unknown = model.get("vocab"), model.get("unk_token")
    return vocabulary.get(unknown) if isinstance(vocabulary, dict) and isinstance(unknown, str) else None


def _warm_up(engine: Engine, max_tokens: int | None) -> Cost:
    """Answer texts of several lengths, so that the first users wait for no kernels and pages; and what that took."""
    sizes = [words for words in _WARM_UP if max_tokens is None or words <= max_tokens]
    taken = [_timed(engine, [f"{i} {'word ' * words}".strip() for i in range(4)]) for words in sizes]
    return Cost.of(taken[0], taken[-1])


def _timed(engine: Engine, texts: Sequence[str]) -> tuple[int, float]:
    """How many tokens texts have, and in how many seconds they were computed once that was familiar."""
    tokens, seconds = engine.encode(texts), []
    for _ in range(2):
        start = time.perf_counter()
        engine.probabilities_of(engine.logits_of(tokens))
        seconds.append(time.perf_counter() - start)
    return int(tokens.offsets[-1]), min(seconds)


def check_probes(folder: Path, engine: Engine) -> None:
    """Refuse a bundle that does not answer its own probes as it did when it was saved."""
    path = folder / "probe.jsonl"
    is_another = engine.name == "tfidf" and read_settings(folder).get("kind") != "tfidf"
    if is_another or not path.is_file():  # the baseline beside a model: the probes are the model's
        return
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = engine.probabilities_of(np.array([line["logits"] for line in lines], dtype=np.float32))
    found = engine.probabilities_of(engine.logits_of(engine.encode([line["text"] for line in lines])))
    allowed = EXACT if engine.name.endswith("fp32") or engine.name == "tfidf" else NEAR
    off = float(np.abs(wanted - found).max())
    if not off <= allowed:  # NaN is too far as well
        raise BundleError(
            f"The bundle '{folder}' answers its own probes otherwise than when it was saved: probabilities differ by "
            f"{off:.2g} with the engine {engine.name}; expected at most {allowed:g}. Use another --engine, or train it "
            "anew."
        )


def _told(error: Exception) -> str:
    """What kind of error it was and where it arose: never its message, which may hold a text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    return f"{type(error).__name__}{where}"


if __name__ == "__main__":
    main()
