from itertools import pairwise

import numpy as np
import pytest

from tagsmith.evaluation.reliability import reliability


def claims(n, *, seed=0, sharpen=1.0):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, n)
    odds = (confidence / (1 - confidence)) ** sharpen
    return odds / (1 + odds), rng.random(n) < confidence


def inside(bins):
    return np.mean([each["band"][0] <= each["accuracy"] <= each["band"][1] for each in bins])


def test_bins_have_equal_mass_and_hold_all_claims():
    bins = reliability(*claims(1500), np.arange(1500))
    assert len(bins) == 15
    assert {each["count"] for each in bins} == {100}
    assert all(each["low"] <= each["confidence"] <= each["high"] for each in bins)
    assert all(first["high"] <= second["low"] for first, second in pairwise(bins))


def test_a_calibrated_model_lies_in_nineteen_bands_of_twenty():
    share = np.mean([inside(reliability(*claims(600, seed=seed), np.arange(600))) for seed in range(60)])
    assert share == pytest.approx(0.95, abs=0.025)


def test_an_overconfident_model_lies_outside():
    assert inside(reliability(*claims(1500, sharpen=3.0), np.arange(1500))) < 0.4


def test_equal_claims_share_a_bin():
    bins = reliability(np.full(100, 0.7), np.arange(100) < 70, np.arange(100))
    assert [(each["count"], each["accuracy"]) for each in bins] == [(100, 0.7)]


def test_rows_in_groups_widen_the_bands():
    confidence, hits = np.full(300, 0.8), np.repeat(np.arange(100) < 80, 3)
    apart, together = (
        reliability(confidence, hits, groups)[0]["band"] for groups in (np.arange(300), np.repeat(np.arange(100), 3))
    )
    assert together[1] - together[0] > 1.4 * (apart[1] - apart[0])
