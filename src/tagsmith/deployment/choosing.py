"""Which engine answers for a bundle: by name, or the fastest here of those that are installed and were let in."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsmith.errors import SettingError
from tagsmith.plugins import find, known_names

if TYPE_CHECKING:
    from tagsmith.deployment.engine import Engine

EXACT = ("torch-fp32", "onnxruntime", "openvino")
"""Engines in fp32, the reference first."""
LOSSY = ("torch-bf16", "openvino-bf16", "onnxruntime-int8")
"""Engines of fewer bits, which answer only where their gate was passed."""
_ON_DEVICES = ("torch-fp32", "torch-bf16")
_FILES = {
    "onnxruntime": "onnx/model.onnx",
    "onnxruntime-int8": "onnx/model_quantized.onnx",
    "openvino": "openvino/model.xml",
    "openvino-bf16": "openvino/model.xml",
    "tfidf": "baseline/vocabulary.json",
}
_EXPORTS = {
    "onnxruntime": "onnx",
    "onnxruntime-int8": "onnx-int8",
    "openvino": "openvino",
    "openvino-bf16": "openvino",
    "torch-bf16": "torch-bf16",
}
_ROUNDS = 3
_COPIES = 8

_logger = logging.getLogger(__name__)


def choose_engine(folder: Path, settings: Mapping[str, Any], name: str, *, threads: int | None, device: str) -> Engine:
    """The engine of this name; `auto` takes the fastest here, `reference` the first in fp32 that is installed.

    SettingError for a name that is unknown, or whose engine is not installed, not carried or not let in.
    """
    if name not in ("auto", "reference"):
        opener = find("engine", name)
        if why := why_not(name, folder, settings, device):
            raise SettingError(f"The engine '{name}' cannot answer for '{folder}': {why}.")
        return opener(folder, settings, threads=threads, device=device)
    if settings.get("kind") == "tfidf":
        return find("engine", "tfidf")(folder, settings, threads=threads, device=device)
    names = EXACT if name == "reference" else (*EXACT, *LOSSY)
    reasons = {each: why_not(each, folder, settings, device) for each in names}
    able = [each for each in names if not reasons[each]]
    if not able:
        told = "; ".join(f"{each}: {why}" for each, why in reasons.items())
        raise SettingError(
            f"No engine can answer for '{folder}' here ({told}). Install one of them, or name another with --engine."
        )
    if name == "reference":
        return find("engine", able[0])(folder, settings, threads=threads, device=device)
    return _fastest(able, lambda each: find("engine", each)(folder, settings, threads=threads, device=device), folder)


def why_not(name: str, folder: Path, settings: Mapping[str, Any], device: str = "cpu") -> str:
    """What keeps an engine from answering for a bundle on this machine; empty where nothing does."""
    lacks = next((each.lacks for each in known_names("engine") if each.name == name), "")
    if lacks:
        return f'it is not installed (pip install "{lacks}")'
    if settings.get("hybrid") and name not in (*EXACT, *LOSSY, "tfidf"):
        return "the bundle answers by an LLM and TF-IDF together, and engines of other packages know the LLM alone"
    if device != "cpu" and name not in _ON_DEVICES:
        return f"it computes on the CPU alone, and '{device}' was asked for"
    if settings.get("kind") == "tfidf":
        return "" if name == "tfidf" else "this bundle answers by TF-IDF and has no other weights"
    if name in _FILES and not (folder / _FILES[name]).is_file():
        export = _EXPORTS.get(name)
        return f"the bundle lacks {_FILES[name]}" + (
            f"; write one with tagsmith export --to {export}" if export else ""
        )
    gate = settings.get("engines", {}).get(name)
    if name in LOSSY and gate is None:
        return f"no gate was passed for it; see tagsmith export --to {_EXPORTS[name]}"
    if gate is not None and not gate["passed"]:
        return f"it did not pass its gate: {'; '.join(gate['refused'])}"
    if name in LOSSY and settings.get("abstention") and not (gate or {}).get("keeps_silence"):
        proven_for = settings["abstention"].get("engine", "torch-fp32")
        return (
            f"what is proven of the answers that are given, and of the silence, was proven for {proven_for}; an export "
            f"compares both on all held-out rows (tagsmith export --to {_EXPORTS[name]})"
        )
    if name.endswith("bf16") and not has_bf16():
        return "this processor has no bf16"
    return ""


def has_bf16() -> bool:
    """Whether the processor multiplies in bf16 (AVX512-BF16 or AMX), as far as the system tells."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", maxsplit=1)[-1].split("\n", 1)[0]
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def _fastest(names: Sequence[str], opened: Callable[[str], Engine], folder: Path) -> Engine:
    """The engine that answers probe texts in the least time; no more than two are open at once."""
    if len(names) == 1:
        return opened(names[0])
    texts = _probe_texts(folder)
    best, least = opened(names[0]), float("inf")
    least = _seconds(best, texts)
    for name in names[1:]:
        rival = opened(name)
        seconds = _seconds(rival, texts)
        _logger.info("%s: %.1f ms, %s: %.1f ms for %d texts", best.name, 1e3 * least, name, 1e3 * seconds, len(texts))
        if seconds < least:
            best, least = rival, seconds
    return best


def _seconds(engine: Engine, texts: Sequence[str]) -> float:
    """The least time of a few rounds, after one that warms up."""
    taken = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        engine.logits_of(engine.encode(texts))
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def _probe_texts(folder: Path) -> list[str]:
    """The bundle's probe texts several times, each different: equal texts are computed once."""
    lines = (folder / "probe.jsonl").read_text(encoding="utf-8").splitlines()
    return [f"{json.loads(line)['text']} {i}" for i in range(_COPIES) for line in lines]
