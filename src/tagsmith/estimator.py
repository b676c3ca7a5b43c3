"""TextClassifier: the pipeline with scikit-learn's manners."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from tagsmith.config import Config, merge, settings_of
from tagsmith.data.table import Table
from tagsmith.errors import DataError
from tagsmith.pipeline import train

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle


class TextClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier for scikit-learn's pipelines and searches: `X` is a sequence of strings, `y` of labels.

    Parameters are those of `tagsmith.train`; `settings` maps `section` to `{key: value}` and is laid over `preset`.
    After `fit`: `classes_ (C,)`, `bundle_`, `report_`. Rows for stopping, calibration and test are split off `X`, so
    that `report_` is an honest estimate whatever is done with the estimator. `out` keeps the bundle; without it the
    bundle lasts as long as the estimator.
    """

    def __init__(
        self,
        *,
        backbone: str | None = None,
        preset: str = "default",
        settings: Mapping[str, Any] | None = None,
        seed: int = 123,
        out: str | Path | None = None,
        force: bool = False,
    ) -> None:
        self.backbone = backbone
        self.preset = preset
        self.settings = settings
        self.seed = seed
        self.out = out
        self.force = force

    def fit(self, X: Sequence[str], y: Sequence[Any], groups: Sequence[Any] | None = None) -> TextClassifier:
        """Train on texts `(N,)` and labels `(N,)`; rows of one of `groups (N,)` stay in one split."""
        texts = _texts(X)
        labels = np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(texts):
            raise DataError(
                f"Found {len(texts)} texts and labels of shape {labels.shape}; expected one label for each text."
            )
        self.classes_ = np.unique(labels)
        self._names = {str(label): i for i, label in enumerate(self.classes_.tolist())}
        table = Table.of(texts, [str(label) for label in labels.tolist()], groups=groups)
        folder = Path(self.out) if self.out is not None else self._own_folder() / "bundle"
        self.bundle_ = train(table, out=folder, config=self._config(), force=self.force)
        self.report_ = self.bundle_.report
        return self

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """Probabilities `(N, C)`, columns as `classes_`; DataError for an empty text, which gets no answer."""
        check_is_fitted(self)
        texts = _texts(X)
        bundle: Bundle = self.bundle_
        probs_NC = bundle.predict_proba(texts)
        empty = np.flatnonzero(np.isnan(probs_NC).any(axis=1))
        if len(empty):
            raise DataError(
                f"Text {int(empty[0])} is empty. Expected at least one letter or sign in each; leave empty texts out."
            )
        order = [self._names[name] for name in bundle.labels]
        columns = np.empty_like(probs_NC)
        columns[:, order] = probs_NC
        return columns

    def predict(self, X: Sequence[str]) -> np.ndarray:
        """Labels `(N,)` of the kind that `fit` was given."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _own_folder(self) -> Path:
        """A temporary folder that lasts as long as this estimator."""
        folder = Path(tempfile.mkdtemp(prefix="tagsmith-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def __getstate__(self) -> dict[str, Any]:
        """A fitted estimator is pickled with the files of its bundle, from which it is loaded again."""
        state = dict(super().__getstate__())
        if "bundle_" in state:
            folder = state.pop("bundle_").folder
            files = (path for path in folder.rglob("*") if path.is_file())
            state["_files"] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is None:
            return
        from tagsmith.deployment.bundle import load

        folder = self._own_folder()
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        self.bundle_ = load(folder)

    def _config(self) -> Config:
        backbone = {} if self.backbone is None else {"model": {"backbone": self.backbone}}
        return Config.of(merge(settings_of(self.preset), self.settings or {}, backbone, {"seed": self.seed}))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyrefly: ignore[missing-attribute]
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags


def _texts(X: Sequence[str]) -> list[str]:
    if isinstance(X, str):
        raise DataError("X is one string. Expected a sequence of texts; put it into a list.")
    texts = list(X)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(f"Item {wrong} of X is a {type(texts[wrong]).__name__}; expected strings, one text each.")
    return texts
