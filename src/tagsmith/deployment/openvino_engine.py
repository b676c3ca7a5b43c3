"""The engine of OpenVINO, in fp32 and in bf16."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.deployment.graph_engine import GraphEngine, Rectangle
from tagsmith.deployment.recipe import Recipe

FOLDER = "openvino"
FILE = "model.xml"
PRECISIONS = {"openvino": "f32", "openvino-bf16": "bf16"}


def _open(
    name: str, folder: Path, settings: Mapping[str, Any], *, threads: int | None = None, device: str = "cpu"
) -> GraphEngine:
    import openvino

    core = openvino.Core()
    # Without a hint OpenVINO answers in bf16 where the processor has it.
    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[name], "NUM_STREAMS": "1"}
    if threads is not None:
        hints["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(core.read_model(folder / FOLDER / FILE), "CPU", hints)
    request = compiled.create_infer_request()

    def run(rectangles: Iterable[Rectangle]) -> Iterator[np.ndarray]:
        for ids_BL, lengths_B in rectangles:
            yield np.array(request.infer({"ids": ids_BL, "lengths": lengths_B})[compiled.output(0)])

    return GraphEngine(name, Recipe.read(folder, settings), run)


open_fp32 = partial(_open, "openvino")
open_bf16 = partial(_open, "openvino-bf16")
