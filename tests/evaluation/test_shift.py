import numpy as np
import pytest

from tagsmith.evaluation.shift import Counted, counted_numbers, detect_shift, smallest_shift


def features(live_mean, *, n=500, m=400, tests=6, seed=0):
    """Some numbers, of which the first moves."""
    rng = np.random.default_rng(seed)
    return [
        counted_numbers(f"f{i}", rng.normal(size=n), rng.normal(live_mean if i == 0 else 0, size=m))
        for i in range(tests)
    ]


def test_rows_of_the_same_source_are_alarmed_no_more_often_than_stated():
    alarms = sum(detect_shift(features(0, seed=seed), seed=seed)["detected"] for seed in range(60))
    assert alarms <= 7  # 3 expected; 8 or more have a chance of 1 %


def test_the_smallest_shift_is_seen_as_often_as_stated():
    n, m, tests, seen = 500, 400, 6, 0
    share = smallest_shift(n, m, tests=tests)
    reference = np.array([n // 2, n // 2])
    rng = np.random.default_rng(0)
    for seed in range(60):
        still = [Counted(f"s{i}", reference, rng.multinomial(m, [0.5, 0.5])) for i in range(tests - 1)]
        drawn = rng.multinomial(n, [0.5 - share / 2, 0.5 + share / 2])
        moved = Counted("moved", drawn, rng.multinomial(m, [0.5 + share / 2, 0.5 - share / 2]))
        found = detect_shift([moved, *still], seed=seed)["features"]
        seen += next(each for each in found if each["name"] == "moved")["detected"]
    assert 0.62 <= seen / 60 <= 0.95


def test_a_shift_is_named_with_its_size():
    found = detect_shift(features(1.0), seed=0)
    assert found["detected"]
    assert found["features"][0]["name"] == "f0"
    assert found["features"][0]["distance"] == pytest.approx(0.38, abs=0.06)  # 2 Phi(1/2) - 1
    assert "A shift was detected" in found["text"]
    assert "f0 (" in found["text"]


def test_without_one_it_is_said_what_would_have_been_missed():
    found = detect_shift(features(0.0), seed=0)
    assert not found["detected"]
    assert "No shift was detected" in found["text"]
    assert f"{found['smallest']:.0%}" in found["text"]
    assert "same" not in found["text"]


def test_labels_have_no_order():
    counted = Counted("label", np.array([100, 100, 100]), np.array([150, 100, 50]), ordered=False)
    assert detect_shift([counted], seed=0)["features"][0]["distance"] == pytest.approx(1 / 6)


def test_fewer_rows_see_less():
    assert smallest_shift(1000, 50, tests=4) > 2 * smallest_shift(1000, 1000, tests=4)
    assert smallest_shift(3, 1, tests=4) == 1.0


def test_near_twins_of_the_reference_count_once():
    counted = [counted_numbers("f", np.repeat(np.arange(50.0), 10), np.linspace(8, 50, 60))]
    alone = detect_shift(counted, seed=0, independent=0.1)["features"][0]["p_holm"]
    assert alone > detect_shift(counted, seed=0)["features"][0]["p_holm"]


def test_numbers_that_are_all_equal_are_no_shift():
    found = detect_shift([counted_numbers("f", np.zeros(50), np.zeros(50))], seed=0)
    assert not found["detected"]
    assert found["features"][0]["distance"] == 0
