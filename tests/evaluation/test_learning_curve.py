from itertools import pairwise

import numpy as np
import pytest

from tagsmith.evaluation.learning_curve import SHARES, Measured, learning_curve, measure_curve, sampled

ROWS = (500, 1000, 2000, 4000)


def rows_right(errors, n=4000, seed=0):
    """Rows that are wrong with these chances, nearly the same ones at each size."""
    luck = np.random.default_rng(seed).random(n)
    return np.array([luck >= error for error in errors], dtype=float)


def test_a_power_law_is_continued_to_twice_the_rows():
    errors = [0.02 + 3 * rows**-0.5 for rows in ROWS]
    curve = learning_curve(
        Measured(ROWS, rows_right(errors), np.arange(4000)), measure="accuracy", resamples=400, seed=0
    )
    expected = 100 * (errors[-1] - 0.02 - 3 * 8000**-0.5)
    assert curve["gain"]["value"] == pytest.approx(expected, abs=0.5)
    assert curve["gain"]["low"] <= expected <= curve["gain"]["high"]
    assert curve["forecast"][0]["rows"] == 8000
    assert f"{curve['gain']['value']:+.1f} points" in curve["text"]


def test_the_truth_lies_in_the_interval_as_often_as_it_claims():
    inside = 0
    for seed in range(40):
        errors = [0.02 + 3 * rows**-0.5 for rows in ROWS]
        measured = Measured(ROWS, rows_right(errors, n=1000, seed=seed), np.arange(1000))
        gain = learning_curve(measured, measure="accuracy", resamples=300, seed=seed)["gain"]
        inside += gain["low"] <= 100 * 3 * (4000**-0.5 - 8000**-0.5) <= gain["high"]
    assert inside >= 34


def test_where_nothing_is_gained_that_is_said():
    measured = Measured(ROWS, rows_right([0.1] * 4), np.arange(4000))
    curve = learning_curve(measured, measure="accuracy", resamples=300, seed=0)
    assert curve["gain"]["value"] == pytest.approx(0, abs=0.2)
    assert "may give nothing" in curve["text"]


def test_points_have_intervals_that_groups_widen():
    right = np.repeat(rows_right([0.3, 0.25, 0.2, 0.15], n=400), 5, axis=1)
    widths = []
    for groups in (np.arange(2000), np.repeat(np.arange(400), 5)):
        point = learning_curve(Measured(ROWS, right, groups), measure="accuracy", resamples=400, seed=0)["points"][-1]
        widths.append(point["accuracy"]["high"] - point["accuracy"]["low"])
    assert widths[1] > 1.7 * widths[0]


def test_subsets_are_nested_and_keep_groups_whole():
    groups, asked = np.repeat(np.arange(64), 3), []

    def right(kept):
        asked.append(kept)
        return np.ones(len(groups))

    measured = measure_curve(right, groups, learnt_share=0.8, seed=3)
    assert [round(rows / 0.8) for rows in measured.rows] == pytest.approx([share * 192 for share in SHARES], abs=1)
    assert all(len(set(groups[kept]) & set(groups[~kept])) == 0 for kept in asked)
    first_of_each = [asked[0], asked[2], asked[4], asked[5]]
    for small, large in pairwise(first_of_each):
        assert np.all(large[small])


def test_a_sample_keeps_the_shares_of_labels_and_one_row_of_each():
    strata = np.repeat([0, 1, 2], [900, 99, 1])
    chosen = sampled(1000, seed=1, most=100, strata=strata)
    assert len(chosen) == 100
    assert np.bincount(strata[chosen]).tolist() == pytest.approx([89, 10, 1], abs=1)
    assert np.all(np.diff(chosen) > 0)
    assert sampled(50, seed=1, most=100, strata=strata[:50]).tolist() == list(range(50))
