"""Tagsmith: a table of labelled text in, a fine-tuned classifier with an honest report out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tagsmith.config import Config
    from tagsmith.data.preparing import prepare
    from tagsmith.data.readers import read
    from tagsmith.data.table import Splits, Table
    from tagsmith.deployment.bundle import Bundle, load
    from tagsmith.deployment.scoring import score
    from tagsmith.estimator import TextClassifier
    from tagsmith.evaluation.report import Report
    from tagsmith.model.classifier import Classifier, build
    from tagsmith.pipeline import check, evaluate, train
    from tagsmith.tuning.loop import tune

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Classifier",
    "Config",
    "Report",
    "Splits",
    "Table",
    "TextClassifier",
    "build",
    "check",
    "evaluate",
    "load",
    "prepare",
    "read",
    "score",
    "train",
    "tune",
]

_HOMES = {
    "Bundle": "deployment.bundle",
    "Classifier": "model.classifier",
    "Config": "config",
    "Report": "evaluation.report",
    "Splits": "data.table",
    "Table": "data.table",
    "TextClassifier": "estimator",
    "build": "model.classifier",
    "check": "pipeline",
    "evaluate": "pipeline",
    "load": "deployment.bundle",
    "prepare": "data.preparing",
    "read": "data.readers",
    "score": "deployment.scoring",
    "train": "pipeline",
    "tune": "tuning.loop",
}


def __getattr__(name: str) -> object:
    # Imported when first used: torch and transformers take seconds, and `tagsmith --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module 'tagsmith' has no attribute '{name}'")
    found = getattr(import_module(f"tagsmith.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
