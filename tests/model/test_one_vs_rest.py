import numpy as np
import pytest
from scipy.sparse import random_array
from sklearn.linear_model import LogisticRegression

from tagsmith.model import one_vs_rest
from tagsmith.model.one_vs_rest import OneVsRest, fit_one_vs_rest


@pytest.fixture(scope="module")
def rows():
    matrix = random_array((400, 60), density=0.2, rng=np.random.default_rng(0), format="csr", dtype=np.float32)
    hidden = np.random.default_rng(1).normal(size=(60, 3))
    scores = matrix @ hidden - np.array([0.0, 1.0, 4.0])
    return matrix, np.random.default_rng(2).random(scores.shape) < 1 / (1 + np.exp(-scores))


def fitted(matrix, truth, *, c, weights=None):
    weights = np.ones((1, truth.shape[1]), dtype=np.float32) if weights is None else weights
    start = OneVsRest.at_prior(truth, terms=matrix.shape[1], row_weights_NC=weights)
    return fit_one_vs_rest(matrix, truth, start, c=c, row_weights_NC=weights)


@pytest.mark.parametrize("c", [0.1, 1.0, 30.0])
def test_each_label_has_scikit_learns_weights(c, rows, monkeypatch):
    monkeypatch.setattr(one_vs_rest, "_TOLERANCE", 1e-7)
    monkeypatch.setattr(one_vs_rest, "_MOST_ITERATIONS", 300)
    matrix, truth = rows
    model = fitted(matrix, truth, c=c)
    for j in range(truth.shape[1]):
        reference = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(matrix, truth[:, j])
        np.testing.assert_allclose(model.weights[:, j], reference.coef_[0], atol=2e-2 * np.abs(reference.coef_).max())
        assert model.bias[j] == pytest.approx(reference.intercept_[0], abs=0.03)


def test_weights_count_rows_of_a_label_as_often(rows, monkeypatch):
    monkeypatch.setattr(one_vs_rest, "_TOLERANCE", 1e-7)
    matrix, truth = rows
    weights = np.where(truth, 3.0, 1.0).astype(np.float32)
    model = fitted(matrix, truth, c=1.0, weights=weights)
    for j in range(2):
        reference = LogisticRegression(tol=1e-8).fit(matrix, truth[:, j], sample_weight=weights[:, j])
        assert model.bias[j] == pytest.approx(reference.intercept_[0], abs=0.03)


def test_labels_do_not_know_each_other(rows, monkeypatch):
    monkeypatch.setattr(one_vs_rest, "_TOLERANCE", 1e-6)
    matrix, truth = rows
    together, alone = fitted(matrix, truth, c=1.0), fitted(matrix, truth[:, :1], c=1.0)
    # The other labels may ask for more iterations, and that is all that they change.
    np.testing.assert_allclose(together.weights[:, :1], alone.weights, atol=0.02)


def test_a_label_that_every_row_has_stays_finite(rows):
    matrix, truth = rows
    always = np.column_stack([truth, np.ones(len(truth), dtype=bool), np.zeros(len(truth), dtype=bool)])
    model = fitted(matrix, always, c=64.0)
    assert np.isfinite(model.weights).all()
    scores = model.scores(matrix)
    assert (scores[:, 3] > 3).all()
    assert (scores[:, 4] < -3).all()


def test_the_same_rows_give_the_same_bytes(rows):
    assert fitted(*rows, c=4.0).weights.tobytes() == fitted(*rows, c=4.0).weights.tobytes()
