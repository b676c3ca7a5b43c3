import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tagsmith.evaluation.thresholds import FEWEST_POSITIVES, best_threshold, fit_thresholds


def drawn(n=2000, shares=(0.3, 0.1, 0.005, 0.004), *, skill=2.0, seed=0):
    """Calibrated probabilities of labels with these shares, and a truth drawn from them."""
    rng = np.random.default_rng(seed)
    base = np.log(np.array(shares) / (1 - np.array(shares)))
    probs = 1 / (1 + np.exp(-(base + skill * rng.normal(size=(n, len(shares))))))
    return probs, rng.random(probs.shape) < probs


@given(st.integers(1, 40), st.integers(0, 99), st.integers(1, 6))
def test_no_other_threshold_has_a_larger_f1(n, seed, levels):
    rng = np.random.default_rng(seed)
    probs = rng.integers(0, levels + 1, n) / levels  # ties
    truth = rng.random(n) < 0.5
    truth[rng.integers(n)] = True
    found = f1_score(truth, probs >= best_threshold(probs, truth), zero_division=0)
    others = [f1_score(truth, probs >= level, zero_division=0) for level in [*np.unique(probs), 2.0]]
    assert found >= max(others) - 1e-12


def test_the_best_threshold_of_calibrated_scores_is_half_of_the_best_f1():
    probs, truth = drawn(200_000, (0.2,))
    found = best_threshold(probs[:, 0], truth[:, 0])
    assert found == pytest.approx(f1_score(truth[:, 0], probs[:, 0] >= found) / 2, abs=0.03)


@pytest.mark.parametrize("metric", ["log_loss", "macro_f1"])
def test_labels_with_under_fifty_positive_rows_share_one_threshold(metric):
    probs, truth = drawn()
    found = fit_thresholds(probs, truth, metric=metric)
    assert found.shared.tolist() == (truth.sum(axis=0) < FEWEST_POSITIVES).tolist() == [False, False, True, True]
    assert found.values[2] == found.values[3]
    assert len(set(found.values.tolist())) == 3
    assert found.rows == 2000


def test_a_threshold_lies_between_its_own_and_the_common_one():
    probs, truth = drawn()
    common = fit_thresholds(probs, truth, metric="micro_f1").values
    assert len(set(common.tolist())) == 1
    for metric, closer in (("log_loss", False), ("macro_f1", True)):
        values = fit_thresholds(probs, truth, metric=metric).values
        own = best_threshold(probs[:, 1], truth[:, 1])
        assert min(own, common[1]) <= values[1] <= max(own, common[1])
        assert (abs(values[1] - own) < abs(fit_thresholds(probs, truth, metric="log_loss").values[1] - own)) == closer


def test_accuracy_asks_for_the_likeliest_set():
    found = fit_thresholds(*drawn(), metric="accuracy")
    assert found.values.tolist() == [0.5] * 4
    assert not found.shared.any()


def test_shared_thresholds_find_rare_labels_better_than_their_own_do():
    """Fitted on 300 rows and measured on others, over 30 samples: what the sharing is for."""
    probs, truth = drawn(60_000, (0.02, 0.02, 0.02, 0.02, 0.02, 0.02), skill=1.5)
    gains = []
    for i in range(30):
        held = slice(300 * i, 300 * (i + 1))
        shared = fit_thresholds(probs[held], truth[held], metric="macro_f1").values
        own = [best_threshold(probs[held, j], truth[held, j]) if truth[held, j].any() else 0.5 for j in range(6)]
        scores = [
            f1_score(truth[20_000:], probs[20_000:] >= t, average="macro", zero_division=0) for t in (shared, own)
        ]
        gains.append(scores[0] - scores[1])
    assert np.mean(gains) > 0.01


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 99), st.sampled_from(["log_loss", "macro_f1", "micro_f1"]))
def test_any_rows_give_thresholds_inside_0_and_1(n, classes, seed, metric):
    rng = np.random.default_rng(seed)
    probs = rng.choice([0.0, 1e-12, 0.3, 1.0], size=(n, classes))
    values = fit_thresholds(probs, rng.random((n, classes)) < 0.2, metric=metric).values
    assert ((values > 0) & (values < 1)).all()
