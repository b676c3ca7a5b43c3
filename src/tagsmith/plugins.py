"""One table of all swappable parts: kind -> name -> "module:attribute". Nothing registers itself by being imported.

A part is one of the table, or one that an installed package names as an entry point of the group `tagsmith.KIND`, or
is spelt out as "module:attribute".
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from tagsmith.errors import SettingError

PLUGINS = {
    "engine": {
        "onnxruntime": "tagsmith.deployment.onnx_engine:open_fp32",
        "onnxruntime-int8": "tagsmith.deployment.onnx_engine:open_int8",
        "openvino": "tagsmith.deployment.openvino_engine:open_fp32",
        "openvino-bf16": "tagsmith.deployment.openvino_engine:open_bf16",
        "tfidf": "tagsmith.deployment.tfidf_engine:open_tfidf",
        "torch-bf16": "tagsmith.deployment.torch_engine:open_bf16",
        "torch-fp32": "tagsmith.deployment.torch_engine:open_fp32",
    },
    "tracker": {
        "jsonl": "tagsmith.trackers:json_lines",
        "mlflow": "tagsmith.trackers:MLflow",
        "tensorboard": "tagsmith.trackers:TensorBoard",
        "wandb": "tagsmith.trackers:WeightsAndBiases",
    },
}

_LIBRARIES = {
    "mlflow": ("mlflow", "mlflow"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "onnxruntime-int8": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "openvino"),
    "openvino-bf16": ("openvino", "openvino"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "torch-bf16": ("torch", ""),
    "torch-fp32": ("torch", ""),
    "wandb": ("wandb", "wandb"),
}
"""The library that a part of the table needs, and the extra that brings it; the base install has what names none."""


@dataclass(frozen=True)
class Plugin:
    """A part by its name: where it lies, which package brings it, and what to install (empty: nothing is lacking)."""

    kind: str
    name: str
    target: str
    package: str = "tagsmith"
    lacks: str = ""

    def load(self) -> Any:
        """The part itself; SettingError where it is not to be had."""
        if self.lacks:
            raise SettingError(
                f"The {self.kind} '{self.name}' needs the library {_LIBRARIES[self.name][0]}, which is not installed. "
                f'Install it with pip install "{self.lacks}".'
            )
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise SettingError(
                f"The {self.kind} '{self.name}' cannot be loaded from '{self.target}': {error}. Expected "
                "module:attribute of an installed package; install or correct it."
            ) from error


def find(kind: str, name: str) -> Any:
    """The part of a kind by its name, or by its "module:attribute"; SettingError names the nearest known one."""
    if ":" in name:
        return Plugin(kind, name, target=name).load()
    known = {each.name: each for each in _built_in(kind)}
    if name not in known:
        known = {each.name: each for each in _installed(kind)} | known
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        told = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(sorted(known))}."
        raise SettingError(f"Unknown {kind} '{name}'. {told}")
    return known[name].load()


def available() -> list[Plugin]:
    """Every part that has a name: those of the table, then those of other packages."""
    return [each for kind in PLUGINS for each in known_names(kind)]


def known_names(kind: str) -> list[Plugin]:
    """Every part of a kind that has a name."""
    return [*_built_in(kind), *_installed(kind)]


def _built_in(kind: str) -> list[Plugin]:
    def lacks(name: str) -> str:
        library, extra = _LIBRARIES.get(name, ("tagsmith", ""))
        return "" if find_spec(library) is not None else f"tagsmith[{extra}]" if extra else "tagsmith"

    return [Plugin(kind, name, target, lacks=lacks(name)) for name, target in PLUGINS[kind].items()]


def _installed(kind: str) -> list[Plugin]:
    """Entry points; a name of the table is not theirs to take."""
    points = sorted(entry_points(group=f"tagsmith.{kind}"), key=lambda point: point.name)
    return [
        Plugin(kind, point.name, point.value, package=point.dist.name if point.dist else "?")
        for point in points
        if point.name not in PLUGINS[kind]
    ]
