"""TF-IDF and a linear model with a Classifier's face: the baseline that an LLM has to beat.

A term is one number. A character n-gram packs up to five letters of 12 bits, so that equal numbers mean equal n-grams
(no hashing, no collisions); a word 1- or 2-gram carries the flag `_WORD` and two word numbers of 31 bits. Terms are
therefore counted by sorting arrays, and predicting needs numpy alone.

Axes: N rows, V terms of the vocabulary, C labels, M pairs of a row and a term in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_MOST_TERMS = 2**18
_MOST_LETTERS = 4094  # 12 bits, less 0 for "no letter" and `_RARE`
_RARE = 4095
_WORD = np.uint64(1 << 62)
_LENGTHS = (2, 3, 4, 5)
_CHUNK_LETTERS = 1_000_000
_LETTERS_FOR_N_GRAMS = 10_000_000  # above it words alone: n-grams of 33M letters (IMDB) would take 2 GiB
_LOGISTIC_LABELS = 50
_LOGISTIC_ROWS = 100_000
_LOGISTIC_WEIGHTS = 4_000_000  # L-BFGS keeps about 22 copies of them in float64
_MOST_SET_WEIGHTS = 2**25  # fitting keeps about 6 copies of them in float32
_MOST_ROWS_TO_CHOOSE = 20_000
_SMALL_TABLE = 200
_FOLDS = 3


@dataclass(frozen=True)
class Lexical:
    """A fitted TF-IDF classifier: plain arrays, no library.

    `letters` are the known letters, sorted by code point; `words` maps a word to its number; `terms (V,)` uint64 are
    sorted; `weights (V, C)` float32, `bias (C,)` float64, -inf for a label that training did not see. `scale`
    multiplies the scores before the softmax (1 for logistic regression). `regularisation` is the chosen C, None where
    there was nothing to fit. With `multi_label` the scores are log-odds of each label by itself.
    """

    letters: np.ndarray
    words: dict[str, int]
    terms: np.ndarray
    idf: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    scale: float = 1.0
    n_grams: bool = True
    regularisation: float | None = None
    multi_label: bool = False

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities `(N, C)` float64 of the labels; each row's answer is independent of its neighbours."""
        scores_NC = np.tile(self.bias, (len(texts), 1))
        vectoriser = _Vectoriser(self.letters, self.words, n_grams=self.n_grams)
        for start, chunk in _chunks(texts):
            bounds, places, values = _known_terms(vectoriser.count(chunk), self.terms, self.idf)
            for row in range(len(chunk)):
                part = slice(bounds[row], bounds[row + 1])
                scores_NC[start + row] += values[part] @ self.weights[places[part]]
        return np.exp(-np.logaddexp(0.0, -scores_NC)) if self.multi_label else _softmax(scores_NC * self.scale)


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


@dataclass(frozen=True)
class _Counts:
    """Which terms stand in which rows: row r has the terms `distinct[local[bounds[r]:bounds[r + 1]]]`."""

    bounds: np.ndarray
    local: np.ndarray
    times: np.ndarray
    distinct: np.ndarray


@dataclass(frozen=True)
class _Vectoriser:
    letters: np.ndarray
    words: dict[str, int]
    n_grams: bool

    @classmethod
    def of(cls, texts: Sequence[str], *, least: int) -> _Vectoriser:
        """The most frequent letters, and the words that stand in at least `least` texts."""
        seen, words, total = Counter[str](), Counter[str](), 0
        for text in texts:
            folded = _fold(text)
            total += len(folded)
            seen.update(folded)
            words.update(set(_split(folded)))
        common = [letter for letter, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:_MOST_LETTERS]]
        letters = np.array(sorted({ord(letter) for letter in common} | {32}), dtype=np.uint32)
        kept = sorted(word for word, rows in words.items() if rows >= least)
        return cls(letters, {word: i for i, word in enumerate(kept, start=1)}, total <= _LETTERS_FOR_N_GRAMS)

    def count(self, texts: Sequence[str]) -> _Counts:
        folded = [_fold(text) for text in texts]
        rows, terms = self._words(folded)
        if self.n_grams:
            found = [(rows, terms), *self._n_grams(folded)]
            rows, terms = (np.concatenate(column) for column in zip(*found, strict=True))
        distinct, local = np.unique(terms, return_inverse=True)
        pairs, times = np.unique(rows * max(len(distinct), 1) + local, return_counts=True)
        rows, local = np.divmod(pairs, max(len(distinct), 1))
        bounds = np.searchsorted(rows, np.arange(len(texts) + 1))
        return _Counts(bounds, local.astype(np.int32), times.astype(np.float32), distinct)

    def _words(self, folded: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        split = [_split(text) for text in folded]
        sizes = [len(words) for words in split]
        flat = (self.words.get(word, 0) for word in chain.from_iterable(split))
        words = np.fromiter(flat, dtype=np.uint64, count=sum(sizes))
        rows = np.repeat(np.arange(len(split)), sizes)
        first, second = words[:-1], words[1:]
        # A pair with a word below the least number of rows is itself below it, so nothing is lost by leaving it out.
        paired = (first > 0) & (second > 0) & (rows[:-1] == rows[1:])
        single = words > 0
        terms = np.concatenate([_WORD | words[single], _WORD | (second[paired] << np.uint64(31)) | first[paired]])
        return np.concatenate([rows[single], rows[:-1][paired]]), terms

    def _n_grams(self, folded: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and terms of each length: windows inside ` word `, as scikit-learn's `char_wb`."""
        padded = [f" {text} " for text in folded]
        points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        rows = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
        places = np.minimum(np.searchsorted(self.letters, points), len(self.letters) - 1)
        letters = np.where(self.letters[places] == points, places + 1, _RARE).astype(np.uint64)
        space = points == 32
        terms, inside = letters, np.ones(len(points), dtype=bool)
        for length in range(2, max(_LENGTHS) + 1):
            if len(points) < length:
                return
            terms = (terms[:-1] << np.uint64(12)) | letters[length - 1 :]
            inside = inside[:-1] & ~space[length - 2 : -1] if length > 2 else ~(space[:-1] & space[1:])
            yield rows[: len(terms)][inside], terms[inside]


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


_split = re.compile(r"\w+").findall


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    start, letters, chunk = 0, 0, []
    for i, text in enumerate(texts):
        chunk.append(text)
        letters += len(text)
        if letters >= _CHUNK_LETTERS:
            yield start, chunk
            start, letters, chunk = i + 1, 0, []
    if chunk:
        yield start, chunk


def _vocabulary(
    texts: Sequence[str], *, most: int = _MOST_TERMS
) -> tuple[_Vectoriser, csr_matrix, np.ndarray, np.ndarray]:
    """What `_vectorise` gives, with terms of one row where a small table would have none otherwise."""
    found = _vectorise(texts, least=2, most=most)
    if not len(found[2]) and len(texts) < _SMALL_TABLE:
        found = _vectorise(texts, least=1, most=most)
    return found


def _vectorise(
    texts: Sequence[str], *, least: int, most: int = _MOST_TERMS
) -> tuple[_Vectoriser, csr_matrix, np.ndarray, np.ndarray]:
    """A vectoriser, the matrix `(N, V)` float32, the terms `(V,)` and their idf; the most frequent terms are kept."""
    from scipy.sparse import csr_matrix, vstack

    vectoriser = _Vectoriser.of(texts, least=least)
    chunks = [vectoriser.count(chunk) for _, chunk in _chunks(texts)]
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
        bounds, places, values = _known_terms(counts, terms, idf)
        parts.append(csr_matrix((values, places, bounds), shape=(len(bounds) - 1, len(terms))))
    return vectoriser, csr_matrix(vstack(parts, dtype=np.float32)), terms, idf


def _document_frequency(chunks: Sequence[_Counts]) -> tuple[np.ndarray, np.ndarray]:
    terms, inverse = np.unique(np.concatenate([chunk.distinct for chunk in chunks]), return_inverse=True)
    rows = [np.bincount(chunk.local, minlength=len(chunk.distinct)) for chunk in chunks]
    return terms, np.bincount(inverse, weights=np.concatenate(rows), minlength=len(terms)).astype(np.int64)


def _known_terms(counts: _Counts, terms: np.ndarray, idf: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds `(N+1,)`, places in the vocabulary `(M,)` and TF-IDF values `(M,)`; words and n-grams each of length 1."""
    if not len(terms):
        return np.zeros_like(counts.bounds), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
    places = np.minimum(np.searchsorted(terms, counts.distinct), len(terms) - 1)
    known = terms[places] == counts.distinct
    kept = known[counts.local]
    places = places[counts.local[kept]].astype(np.int32)
    values = (1 + np.log(counts.times[kept])) * idf[places]
    rows = np.repeat(np.arange(len(counts.bounds) - 1), np.diff(counts.bounds))[kept]
    blocks = 2 * rows + (terms[places] >= _WORD)
    lengths = np.sqrt(np.bincount(blocks, weights=values.astype(np.float64) ** 2, minlength=2 * len(counts.bounds)))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(counts.bounds) - 1))])
    return bounds, places, (values / lengths[blocks]).astype(np.float32)


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
        self._model.fit(task.matrix[rows], task.labels[rows], sample_weight=task.weights[rows])

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
        self._model.fit(task.matrix[rows], task.labels[rows], sample_weight=task.weights[rows])

    def linear(self) -> tuple[np.ndarray, np.ndarray]:
        return _spread(self._model.coef_, self._model.intercept_, self._model.classes_, self._classes, halved=True)


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
    return float(-np.log(np.maximum(_softmax(scores_NC)[np.arange(len(labels)), labels], 1e-15)).mean())


def _softmax(scores_NC: np.ndarray) -> np.ndarray:
    odds_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return odds_NC / odds_NC.sum(axis=1, keepdims=True)


def _prior_model(sizes: np.ndarray) -> Lexical:
    bias = np.full(len(sizes), -np.inf)
    bias[sizes > 0] = np.log(sizes[sizes > 0] / sizes.sum())
    none = np.empty(0, dtype=np.float32)
    empty = np.empty((0, len(sizes)), dtype=np.float32)
    return Lexical(np.array([32], dtype=np.uint32), {}, np.empty(0, dtype=np.uint64), none, empty, bias)
