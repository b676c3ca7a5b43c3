import numpy as np
import pytest

from tagsmith.evaluation.losses import mean_interval


def test_of_many_even_values_the_interval_is_that_of_a_normal_mean():
    values = np.random.default_rng(0).normal(10.0, 1.0, size=2000)
    found = mean_interval(values, np.arange(2000), resamples=2000, seed=1)
    error = values.std() / np.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert (found.value - found.low) / error == pytest.approx(1.96, abs=0.15)
    assert (found.high - found.value) / error == pytest.approx(1.96, abs=0.15)


def test_a_few_large_losses_stretch_the_interval_upwards():
    values = np.random.default_rng(0).lognormal(0.0, 1.5, size=80)
    found = mean_interval(values, np.arange(80), resamples=2000, seed=1)
    assert found.high - found.value > 1.3 * (found.value - found.low)


def test_intervals_of_skewed_losses_hold_the_truth_on_either_side():
    rng, truth = np.random.default_rng(3), np.exp(0.5)
    found = [mean_interval(rng.lognormal(size=100), np.arange(100), resamples=300, seed=i) for i in range(300)]
    above, below = (
        np.mean([bad(each) for each in found]) for bad in (lambda i: i.high < truth, lambda i: i.low > truth)
    )
    assert above + below < 0.11
    assert above < 0.09
    assert below < 0.05


def test_rows_of_one_group_count_once():
    values = np.random.default_rng(0).normal(5.0, 1.0, size=200)
    apart = mean_interval(values, np.arange(200), resamples=1000, seed=1)
    copied = mean_interval(np.repeat(values, 4), np.repeat(np.arange(200), 4), resamples=1000, seed=1)
    assert copied.high - copied.low == pytest.approx(apart.high - apart.low, rel=0.1)


def test_equal_losses_and_a_single_row_have_an_interval_of_no_width():
    for values in (np.full(50, 0.3), np.array([0.3])):
        found = mean_interval(values, np.arange(len(values)), resamples=100, seed=1)
        assert (found.low, found.value, found.high) == pytest.approx((0.3, 0.3, 0.3))
