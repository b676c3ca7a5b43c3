"""A loaded bundle: an engine that answers, the recipe and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from tagsmith.data.cleaning import clean_texts
from tagsmith.deployment.baselines import read_baselines
from tagsmith.deployment.engine import Answer, Engine, open_engine, probabilities
from tagsmith.deployment.recipe import cleaning_of, read_settings
from tagsmith.model.decision import Rule

E = TypeVar("E", bound=Engine)


@dataclass(frozen=True)
class Bundle(Generic[E]):
    """A loaded bundle. `settings` is the recipe of `tagsmith.json`, `report` what `report.json` says."""

    folder: Path
    engine: E
    settings: Mapping[str, Any]
    report: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the probabilities."""
        return self.engine.labels.names

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.engine.labels.multi_label

    @property
    def thresholds(self) -> dict[str, Rule] | None:
        """The probabilities `(C,)` from which on labels are answered, by `model` and by each baseline, or decisions.

        None where the likeliest label is answered.
        """
        own, baselines = self.engine.thresholds, read_baselines(self.folder).thresholds
        return None if own is None and not baselines else {"model": own} | dict(baselines)

    def predict(self, texts: Sequence[str]) -> list[str | tuple[str, ...] | None]:
        """The label of each text, or all of its labels where it may have several; None for an empty text."""
        if self.multi_label:
            return [answer.labels if answer.reason is None else None for answer in self.answer(texts)]
        return [answer.label for answer in self.answer(texts)]

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities `(N, C)` in the order of `labels`; NaN for an empty text."""
        return probabilities(self.engine, texts)

    def baseline_probabilities(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What the baselines fitted beside the model say: probabilities `(N, C)` of `majority` and `tfidf`."""
        return read_baselines(self.folder).probabilities(clean_texts(texts, cleaning_of(self.settings)))

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Label, probabilities and remarks for each text."""
        return self.engine.answer(texts)


def load(folder: str | Path, *, device: str = "cpu", engine: str = "reference") -> Bundle[Engine]:
    """A bundle that is ready to answer, on a `device` named as in `tuning.device`, by an `engine` as of `open_engine`.

    BundleError when it is absent, altered or of another format; SettingError when there is no such device or engine.
    """
    path = Path(folder)
    opened = open_engine(path, engine, device=device)
    return Bundle(path, opened, read_settings(path), read_report(path))


def read_report(folder: Path) -> Mapping[str, Any]:
    """What `report.json` of a bundle says; nothing where it is not written yet."""
    report = folder / "report.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
