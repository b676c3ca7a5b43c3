"""TF-IDF and a linear model fitted: the vocabulary, the model, and how strongly it is held back.

Axes: N rows, V terms of the vocabulary, C labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tagsmith.model.lexical import Counts, Lexical, Vectoriser, chunks_of, known_terms, softmax

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_MOST_TERMS = 2**18
_LOGISTIC_LABELS = 50
_LOGISTIC_ROWS = 100_000
_LOGISTIC_WEIGHTS = 4_000_000  # L-BFGS keeps about 22 copies of them in float64
_MOST_SET_WEIGHTS = 2**25  # fitting keeps about 6 copies of them in float32
_MOST_ROWS_TO_CHOOSE = 20_000
_SMALL_TABLE = 200
_FOLDS = 3


def fit_lexical(
    texts: Sequence[str],
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    classes: int,
    seed: int,
    weights: np.ndarray | None = None,
) -> Lexical:
    """A TF-IDF classifier fitted on `texts` with label ids `(N,)`, its C chosen by group 3-fold cross-validation.

    Word 1-2-grams and character 2-5-grams inside words, sublinear counts, each of the two blocks scaled to length 1.
    Logistic regression; above 50 labels, 1e5 rows or 4e6 weights a linear SVM, whose scores one temperature, fitted
    on the out-of-fold scores, turns into probabilities. Terms stand in two rows at least (in one, where a table of
    under 200 rows would have none); they and their idf come from all rows at once (labels are not looked at), so only
    the linear model is refitted in each fold. Texts of more than 1e7 letters together give words only. Without any
    term, or with a single label, the answer is the labels' shares.
    """
    vectoriser, matrix, terms, idf = _vocabulary(texts)
    sizes = np.bincount(labels, weights=weights, minlength=classes)
    if not len(terms) or np.count_nonzero(sizes) < 2:
        return _prior_model(sizes)
    task = _Task(matrix, labels, np.ones(len(labels)) if weights is None else weights, classes)
    solution = _solve(task, _folds(labels, groups, seed=seed), seed=seed)
    return Lexical(vectoriser.letters, vectoriser.words, terms, idf, n_grams=vectoriser.n_grams, **vars(solution))


def fit_lexical_sets(
    texts: Sequence[str],
    truth_NC: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int,
    weights_C: np.ndarray | None = None,
) -> Lexical:
    """`fit_lexical` for `truth_NC` bool, where a text may have several labels: one logistic regression for each label.

    One C for all of them, chosen by the mean log loss of group 3-fold cross-validation, on at most 20,000 rows. With
    many labels fewer terms are kept, at most 2^25 weights in all. `weights_C` multiply the loss of a label's positive
    rows, and the shift of its log-odds that comes of it is undone. Without any term the answer is the labels' shares.
    """
    from threadpoolctl import threadpool_limits

    from tagsmith.model.one_vs_rest import OneVsRest, fit_one_vs_rest

    vectoriser, matrix, terms, idf = _vocabulary(texts, most=_MOST_SET_WEIGHTS // truth_NC.shape[1])
    row_weights_NC = np.ones((1, truth_NC.shape[1]), dtype=np.float32)
    if weights_C is not None:
        row_weights_NC = np.where(truth_NC, weights_C, 1).astype(np.float32)
    start = OneVsRest.at_prior(truth_NC, terms=len(terms), row_weights_NC=row_weights_NC)
    best = None
    if len(terms):
        with threadpool_limits(1, user_api="blas"):
            best = _choose_for_sets(matrix, truth_NC, row_weights_NC, _folds(_rarest(truth_NC), groups, seed=seed))
            start = fit_one_vs_rest(matrix, truth_NC, start, c=best, row_weights_NC=row_weights_NC)
    bias = start.bias.astype(np.float64) - (0.0 if weights_C is None else np.log(weights_C))
    bias[~truth_NC.any(axis=0)] = -np.inf
    return Lexical(
        vectoriser.letters,
        vectoriser.words,
        terms,
        idf,
        start.weights,
        bias,
        n_grams=vectoriser.n_grams,
        regularisation=best,
        multi_label=True,
    )


def _rarest(truth_NC: np.ndarray) -> np.ndarray:
    """The rarest label of each row `(N,)`, C where it has none: what the folds are stratified by."""
    order = np.argsort(truth_NC.sum(axis=0), kind="stable")
    return np.where(truth_NC.any(axis=1), order[truth_NC[:, order].argmax(axis=1)], truth_NC.shape[1])


def _choose_for_sets(matrix: csr_matrix, truth_NC: np.ndarray, row_weights_NC: np.ndarray, folds: np.ndarray) -> float:
    """The C of least held-out log loss; the grid is left once the loss rises."""
    from scipy.sparse import csr_matrix

    from tagsmith.model.one_vs_rest import OneVsRest, fit_one_vs_rest

    # Folds are dealt out evenly to groups of each label, so that the first rows of each are as good as any.
    used = np.concatenate([np.flatnonzero(folds == k)[: _MOST_ROWS_TO_CHOOSE // _FOLDS] for k in range(_FOLDS)])
    parts = [(used[folds[used] != k], used[folds[used] == k]) for k in range(_FOLDS)]
    parts = [(fit, held) for fit, held in parts if len(fit) and len(held)]
    weights = np.broadcast_to(row_weights_NC, truth_NC.shape)
    models = [OneVsRest.at_prior(truth_NC[fit], terms=matrix.shape[1], row_weights_NC=weights[fit]) for fit, _ in parts]
    best = (np.inf, _Logistic.grid[0])

    def rows_of(rows: np.ndarray) -> csr_matrix:
        return csr_matrix(matrix[rows])

    for c in _Logistic.grid if parts else ():
        loss = 0.0
        for i, (fit, held) in enumerate(parts):
            models[i] = fit_one_vs_rest(rows_of(fit), truth_NC[fit], models[i], c=c, row_weights_NC=weights[fit])
            signed_NC = np.where(truth_NC[held], -1.0, 1.0) * models[i].scores(rows_of(held))
            loss += float((weights[held] * np.logaddexp(0.0, signed_NC)).sum())
        if loss >= best[0]:
            break
        best = (loss, c)
    return best[1]


def _vocabulary(
    texts: Sequence[str], *, most: int = _MOST_TERMS
) -> tuple[Vectoriser, csr_matrix, np.ndarray, np.ndarray]:
    """What `_vectorise` gives, with terms of one row where a small table would have none otherwise."""
    found = _vectorise(texts, least=2, most=most)
    if not len(found[2]) and len(texts) < _SMALL_TABLE:
        found = _vectorise(texts, least=1, most=most)
    return found


def _vectorise(
    texts: Sequence[str], *, least: int, most: int = _MOST_TERMS
) -> tuple[Vectoriser, csr_matrix, np.ndarray, np.ndarray]:
    """A vectoriser, the matrix `(N, V)` float32, the terms `(V,)` and their idf; the most frequent terms are kept."""
    from scipy.sparse import csr_matrix, vstack

    vectoriser = Vectoriser.of(texts, least=least)
    chunks = [vectoriser.count(chunk) for chunk in chunks_of(texts)]
    terms, rows_with = _document_frequency(chunks)
    kept = rows_with >= least
    if kept.sum() > min(most, _MOST_TERMS):
        order = np.lexsort((terms, -rows_with))[: min(most, _MOST_TERMS)]
        kept = np.zeros(len(terms), dtype=bool)
        kept[order] = True
    terms = terms[kept]
    idf = (np.log((1 + len(texts)) / (1 + rows_with[kept])) + 1).astype(np.float32)
    parts = []
    for counts in chunks:
        known = known_terms(counts, terms)
        values = known.values(terms, idf)
        parts.append(csr_matrix((values, known.places, known.bounds), shape=(len(known), len(terms))))
    return vectoriser, csr_matrix(vstack(parts, dtype=np.float32)), terms, idf


def _document_frequency(chunks: Sequence[Counts]) -> tuple[np.ndarray, np.ndarray]:
    terms, inverse = np.unique(np.concatenate([chunk.distinct for chunk in chunks]), return_inverse=True)
    rows = [np.bincount(chunk.local, minlength=len(chunk.distinct)) for chunk in chunks]
    return terms, np.bincount(inverse, weights=np.concatenate(rows), minlength=len(terms)).astype(np.int64)


@dataclass(frozen=True)
class _Solution:
    weights: np.ndarray
    bias: np.ndarray
    scale: float
    regularisation: float


def _solve(task: _Task, folds: np.ndarray, *, seed: int) -> _Solution:
    from threadpoolctl import threadpool_limits

    kind = _kind_of(task.matrix, task.classes)
    # One thread: the vectors are short, and on busy cores waiting BLAS threads took 50 times the time of the work.
    with threadpool_limits(1, user_api="blas"):
        c, scale = _choose(task, folds, kind=kind, seed=seed)
        model = kind(seed)
        model.fit(task, np.arange(len(task.labels)), c=c)
    weights_VC, bias = model.linear()
    return _Solution(weights_VC, bias, scale, c)


@dataclass(frozen=True)
class _Task:
    matrix: csr_matrix
    labels: np.ndarray
    weights: np.ndarray
    classes: int


class _Linear(Protocol):
    grid: tuple[float, ...]
    calibrated: bool

    def __init__(self, seed: int) -> None: ...
    def fit(self, task: _Task, rows: np.ndarray, *, c: float) -> None: ...
    def linear(self) -> tuple[np.ndarray, np.ndarray]: ...


class _Logistic:
    """Logistic regression; each larger C starts from the weights of the smaller one."""

    grid: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0)
    calibrated = True

    def __init__(self, seed: int) -> None:
        from sklearn.linear_model import LogisticRegression

        self._model = LogisticRegression(max_iter=300, warm_start=True, random_state=seed)

    def fit(self, task: _Task, rows: np.ndarray, *, c: float) -> None:
        self._classes = task.classes
        # With a fixed tolerance a larger C would stop where the smaller one ended: the gradient shrinks as C grows.
        self._model.set_params(C=c, tol=1e-3 / c)
        _fit(self._model, task, rows)

    def linear(self) -> tuple[np.ndarray, np.ndarray]:
        return _spread(self._model.coef_, self._model.intercept_, self._model.classes_, self._classes, halved=False)


class _Svm:
    """A linear SVM, one label against the rest; its scores are no log-odds until they are scaled."""

    grid: tuple[float, ...] = (0.25, 1.0)
    calibrated = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fit(self, task: _Task, rows: np.ndarray, *, c: float) -> None:
        from sklearn.svm import LinearSVC

        self._classes = task.classes
        self._model = LinearSVC(C=c, random_state=self._seed, tol=1e-2)
        _fit(self._model, task, rows)

    def linear(self) -> tuple[np.ndarray, np.ndarray]:
        return _spread(self._model.coef_, self._model.intercept_, self._model.classes_, self._classes, halved=True)


def _fit(model: Any, task: _Task, rows: np.ndarray) -> None:
    with warnings.catch_warnings():
        # scikit-learn takes many labels of few rows each for numbers, and says so once a fit; so it does of iterations.
        warnings.simplefilter("ignore", UserWarning)
        model.fit(task.matrix[rows], task.labels[rows], sample_weight=task.weights[rows])


def _spread(
    coefficients: np.ndarray, intercept: np.ndarray, present: np.ndarray, classes: int, *, halved: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(V, C)` and bias `(C,)` with a column for each label; a binary model's one row becomes two columns."""
    if len(present) == 2:
        below = -1.0 if halved else 0.0
        coefficients = np.stack([below * coefficients[0], coefficients[0]])
        intercept = np.array([below * intercept[0], intercept[0]])
    weights_VC = np.zeros((coefficients.shape[1], classes), dtype=np.float32)
    weights_VC[:, present] = coefficients.T
    bias = np.full(classes, -np.inf)
    bias[present] = intercept
    return weights_VC, bias


def _kind_of(matrix: csr_matrix, classes: int) -> type[_Linear]:
    rows, terms = matrix.shape
    small = classes <= _LOGISTIC_LABELS and rows <= _LOGISTIC_ROWS and terms * classes <= _LOGISTIC_WEIGHTS
    return _Logistic if small else _Svm


def _folds(labels: np.ndarray, groups: np.ndarray, *, seed: int) -> np.ndarray:
    """The fold of each row `(N,)`: whole groups, dealt out label by label, the largest first."""
    _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.lexsort((-sizes[shuffled], labels[first[shuffled]]))]
    fold = np.empty(len(sizes), dtype=np.int64)
    fold[order] = np.arange(len(sizes)) % _FOLDS
    return fold[group]


def _choose(task: _Task, folds: np.ndarray, *, kind: type[_Linear], seed: int) -> tuple[float, float]:
    """The C of least held-out log loss, and the scale of the scores; the grid is left once the loss rises."""
    parts = [(np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in range(_FOLDS)]
    parts = [(fit, held) for fit, held in parts if len(held) and len(np.unique(task.labels[fit])) > 1]
    models = [kind(seed) for _ in parts]
    held = np.concatenate([rows for _, rows in parts]) if parts else np.empty(0, dtype=np.int64)
    best = (np.inf, kind.grid[0], 1.0)
    for c in kind.grid if parts else ():
        scores_NC = np.concatenate([_held_out(m, task, *part, c=c) for m, part in zip(models, parts, strict=True)])
        scale = 1.0 if kind.calibrated else _fit_scale(scores_NC, task.labels[held])
        loss = _log_loss(scores_NC * scale, task.labels[held])
        if loss >= best[0]:
            break
        best = (loss, c, scale)
    return best[1], best[2]


def _held_out(model: _Linear, task: _Task, fit: np.ndarray, held: np.ndarray, *, c: float) -> np.ndarray:
    model.fit(task, fit, c=c)
    weights_VC, bias = model.linear()
    return task.matrix[held] @ weights_VC + bias


def _fit_scale(scores_NC: np.ndarray, labels: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: _log_loss(scores_NC * np.exp(log), labels), bounds=(np.log(0.05), np.log(50)), method="bounded"
    )
    return float(np.exp(found.x))


def _log_loss(scores_NC: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.maximum(softmax(scores_NC)[np.arange(len(labels)), labels], 1e-15)).mean())


def _prior_model(sizes: np.ndarray) -> Lexical:
    bias = np.full(len(sizes), -np.inf)
    bias[sizes > 0] = np.log(sizes[sizes > 0] / sizes.sum())
    none = np.empty(0, dtype=np.float32)
    empty = np.empty((0, len(sizes)), dtype=np.float32)
    return Lexical(np.array([32], dtype=np.uint32), {}, np.empty(0, dtype=np.uint64), none, empty, bias)
