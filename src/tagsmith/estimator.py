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
from tagsmith.model.decision import decided
from tagsmith.pipeline import train

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle


class TextClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier for scikit-learn's pipelines and searches: `X` is a sequence of strings, `y` of labels.

    Where a text may have several labels `y` is a 0/1 matrix `(N, C)`, or holds a list, tuple or set of labels for each
    text; answers are then a 0/1 matrix, which scikit-learn's metrics take, with columns as `classes_`.

    Parameters are those of `tagsmith.train`; `settings` maps `section` to `{key: value}` and is laid over `preset`.
    After `fit`: `classes_ (C,)`, `bundle_`, `report_`. Rows for stopping, calibration and test are split off `X`, so
    that `report_` is an honest estimate whatever is done with the estimator. `out` keeps the bundle; without it the
    bundle lasts as long as the estimator.
    """

    def __init__(
        self,
        *,
        backbone: str | None = None,
        preset: str = "fixed",
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
        """Train on texts `(N,)` and labels `(N,)`, or sets of them; rows of one of `groups (N,)` stay in one split."""
        texts, sets = _texts(X), _label_sets(y)
        self.multilabel_ = sets is not None
        if sets is not None:
            self.classes_ = np.unique(np.array([label for each in sets for label in each]))
            return self._trained(Table.of(texts, [sorted(set(map(str, each))) for each in sets], groups=groups))
        labels = np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(texts):
            raise DataError(
                f"Found {len(texts)} texts and labels of shape {labels.shape}; expected one label for each text."
            )
        self.classes_ = np.unique(labels)
        return self._trained(Table.of(texts, [str(label) for label in labels.tolist()], groups=groups))

    def _trained(self, table: Table) -> TextClassifier:
        self._names = {str(label): i for i, label in enumerate(self.classes_.tolist())}
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
        columns = np.zeros((len(probs_NC), len(self.classes_)))
        columns[:, order] = probs_NC
        return columns

    def predict(self, X: Sequence[str]) -> np.ndarray:
        """Labels `(N,)` of the kind that `fit` was given; with several labels a text a 0/1 matrix `(N, C)`."""
        probs_NC = self.predict_proba(X)
        bundle: Bundle = self.bundle_
        if not self.multilabel_:
            own_NC = probs_NC[:, [self._names[name] for name in bundle.labels]]
            answers = decided(own_NC, bundle.engine.thresholds)
            return self.classes_[[self._names[bundle.labels[i]] for i in answers]]
        thresholds_C = np.ones(len(self.classes_))
        thresholds_C[[self._names[name] for name in bundle.labels]] = bundle.engine.thresholds
        return (probs_NC >= thresholds_C).astype(np.int64)

    def score(self, X: Sequence[str], y: Sequence[Any], sample_weight: Sequence[float] | None = None) -> float:
        """The share of right answers; with several labels a text, of texts whose set is exactly right."""
        check_is_fitted(self)
        sets = _label_sets(y) if self.multilabel_ else None
        truth = y if sets is None else np.array([np.isin(self.classes_, list(each)) for each in sets], dtype=np.int64)
        return float(super().score(X, truth, sample_weight))

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
        tags.classifier_tags.multi_label = True
        return tags


def _label_sets(y: Any) -> list[list[Any]] | None:
    """The labels of each text; None where `y` has one label for each. Labels of a 0/1 matrix are column numbers."""
    if not isinstance(y, np.ndarray) and any(isinstance(labels, list | tuple | set | frozenset) for labels in y):
        if not all(isinstance(labels, list | tuple | set | frozenset) for labels in y):
            raise DataError("y mixes labels and lists of labels; expected one kind. Put each label into a list.")
        return [list(labels) for labels in y]
    matrix = np.asarray(y)
    if matrix.ndim != 2 or matrix.dtype.kind not in "biuf" or not np.isin(matrix, (0, 1)).all():
        return None
    never = np.flatnonzero(~matrix.any(axis=0))
    if len(never):
        raise DataError(f"Column {int(never[0])} of y has no 1. Expected each label in some row; leave the column out.")
    return [np.flatnonzero(row).tolist() for row in matrix]


def _texts(X: Sequence[str]) -> list[str]:
    if isinstance(X, str):
        raise DataError("X is one string. Expected a sequence of texts; put it into a list.")
    texts = list(X)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(f"Item {wrong} of X is a {type(texts[wrong]).__name__}; expected strings, one text each.")
    return texts
