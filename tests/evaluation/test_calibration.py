import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.evaluation.calibration import HIGHEST, LOWEST, fit_set_temperature, fit_temperature, prior_offset


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def drawn(temperature, *, n=4000, seed=0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, 4))
    probs = softmax(logits / temperature)
    return logits, (probs.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.06)


def test_a_temperature_lowers_the_log_loss():
    logits, truth = drawn(3.0)
    rows = np.arange(len(truth))
    before = -np.log(softmax(logits)[rows, truth]).mean()
    assert -np.log(softmax(logits / fit_temperature(logits, truth))[rows, truth]).mean() < before


def test_separated_and_hopeless_sets_stay_in_bounds():
    truth = np.arange(30) % 3
    assert LOWEST <= fit_temperature(100 * np.eye(3)[truth], truth) <= HIGHEST
    assert fit_temperature(-100 * np.eye(3)[truth], truth) == pytest.approx(HIGHEST, rel=1e-5)


@given(st.integers(0, 30), st.integers(2, 4), st.floats(0, 1e6))
def test_any_logits_give_a_temperature_in_bounds(n, classes, scale):
    rng = np.random.default_rng(n)
    assert LOWEST <= fit_temperature(scale * rng.normal(size=(n, classes)), rng.integers(0, classes, n)) <= HIGHEST


def test_an_offset_turns_answers_of_one_prior_into_those_of_another():
    balanced, true = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    likelihood = np.array([0.2, 0.6])
    at_balanced, at_true = (prior * likelihood / (prior @ likelihood) for prior in (balanced, true))
    moved = softmax((np.log(at_balanced) + prior_offset(balanced, true))[None])[0]
    np.testing.assert_allclose(moved, at_true)


def test_equal_priors_and_absent_labels_need_no_offset():
    np.testing.assert_allclose(prior_offset(np.array([0.3, 0.7]), np.array([0.3, 0.7])), 0, atol=1e-12)
    assert prior_offset(np.array([0.5, 0.5, 0.0]), np.array([0.9, 0.1, 0.0]))[2] == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_several_labels_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(2000, 4)) - np.arange(4)
    truth = rng.random(logits.shape) < 1 / (1 + np.exp(-logits / temperature))
    assert fit_set_temperature(logits, truth) == pytest.approx(temperature, rel=0.06)


def test_a_separated_set_of_several_labels_stays_in_bounds():
    truth = np.arange(30)[:, None] % [2, 3] == 0
    assert LOWEST <= fit_set_temperature(np.where(truth, 100.0, -100.0), truth) <= HIGHEST
    assert fit_set_temperature(np.zeros((0, 2)), np.zeros((0, 2), dtype=bool)) == 1.0
