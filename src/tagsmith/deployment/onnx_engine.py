"""The engine of ONNX Runtime, in fp32 and in int8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.deployment.graph_engine import GraphEngine, Rectangle
from tagsmith.deployment.recipe import Recipe

FOLDER = "onnx"
FILES = {"onnxruntime": "model.onnx", "onnxruntime-int8": "model_quantized.onnx"}
"""The file of each engine, under the names that other readers of such folders look for."""


def _open(
    name: str, folder: Path, settings: Mapping[str, Any], *, threads: int | None = None, device: str = "cpu"
) -> GraphEngine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Each batch has a shape of its own: a plan of the memory for each would be kept and grow without end.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores are shared with a server
    options.log_severity_level = 3
    path = folder / FOLDER / FILES[name]
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(rectangles: Iterable[Rectangle]) -> Iterator[np.ndarray]:
        for ids_BL, lengths_B in rectangles:
            yield np.asarray(session.run(None, {"ids": ids_BL, "lengths": lengths_B})[0])

    return GraphEngine(name, Recipe.read(folder, settings), run)


open_fp32 = partial(_open, "onnxruntime")
open_int8 = partial(_open, "onnxruntime-int8")
