import dataclasses

import numpy as np
import pytest

from tagsmith.deployment.parity import at_once, closely, closely_and_faster, compared, exactly


def found(changed=0, rows=400, *, truth=True, thresholds=None, gap=0.0, fast=1.0):
    """A comparison in which so many of the rows get another label."""
    wanted = np.tile([0.9, 0.1], (rows, 1))
    probs = wanted + np.array([-gap, gap])
    probs[:changed] = [0.1, 0.9]
    labels = np.zeros(rows, dtype=int) if thresholds is None else np.tile([True, False], (rows, 1))
    parity = compared(
        probs,
        wanted,
        labels if truth else None,
        names=("other", "torch-fp32"),
        told="some rows",
        thresholds=thresholds,
    )
    return dataclasses.replace(parity, rows_per_second=10 * fast, rows_per_second_reference=10.0)


def test_the_lower_bound_is_clopper_and_pearsons():
    """0.05 ** (1 / n) where nothing differs; 298 such rows do not show 99 %, 299 do."""
    assert found(rows=299).agreement_low == pytest.approx(0.05 ** (1 / 299))
    assert closely(found(rows=298)) != []
    assert closely(found(rows=299)) == []
    from scipy.stats import binomtest

    expected = binomtest(395, 400, alternative="greater").proportion_ci(confidence_level=0.95).low
    assert found(5).agreement_low == pytest.approx(expected)


def test_too_few_rows_are_told_how_many_would_do():
    assert "299 rows without a difference are the fewest" in closely(found(rows=100))[0]


def test_fewer_bits_are_refused_below_99_percent_of_agreement():
    assert not [why for why in closely(found(1, rows=2000)) if "agree" in why]
    assert "agree, at least 97.97 %" in closely(found(30, rows=2000))[0]


def test_fewer_bits_are_refused_where_macro_f1_falls_by_more_than_half_a_point():
    rows = 5000
    wanted = np.tile([0.9, 0.1], (rows, 1))
    wanted[:20] = [0.1, 0.9]
    probs = wanted.copy()
    probs[:10] = [0.9, 0.1]  # 0.2 % of the rows, and half of the rare label
    truth = (np.arange(rows) < 20).astype(int)
    rare = compared(probs, wanted, truth, names=("a", "b"), told="rows", thresholds=None)
    assert rare.points_lost == pytest.approx(100 * (1 - (2 / 3 + 2 * 4980 / (2 * 4980 + 10)) / 2))
    assert [why.split(",")[0] for why in closely(rare)] == ["macro-F1 falls by 16.72 points"]


def test_fewer_bits_are_refused_without_labelled_rows():
    assert "give labelled rows with --rows" in closely(found(truth=False))[0]


def test_int8_is_refused_where_it_is_not_a_fifth_faster():
    assert closely_and_faster(found(fast=1.2)) == []
    assert "1.19 times as fast as torch-fp32" in closely_and_faster(found(fast=1.19))[0]
    assert closely_and_faster(dataclasses.replace(found(), rows_per_second=None)) != []


def test_fp32_is_refused_beyond_its_tolerance():
    assert exactly(found(gap=9e-5)) == []
    assert "differ by up to 2.0e-04" in exactly(found(gap=2e-4))[0]


def test_a_label_may_change_where_rounding_decides():
    wanted, probs = np.array([[0.50005, 0.49995]]), np.array([[0.49998, 0.50002]])
    tie = compared(probs, wanted, np.array([0]), names=("a", "b"), told="rows", thresholds=None)
    assert tie.decided_by_rounding == 1
    assert exactly(tie) == []
    assert "1 of 400 labels changed" in exactly(dataclasses.replace(found(1), largest_difference=0.0))[0]


def test_sets_of_labels_agree_as_wholes():
    several = found(2, thresholds=np.array([0.5, 0.5]))
    assert several.agreement == pytest.approx(398 / 400)
    assert several.macro_f1 == pytest.approx((2 * 398 / (398 + 400)) / 2)


def test_at_saving_a_single_changed_answer_refuses():
    assert at_once(found(rows=64)) == []
    assert at_once(found(1, rows=64)) == ["1 of 64 answers changed"]
    assert "32 are the fewest" in at_once(found(rows=20))[0]


def test_silence_is_an_answer_that_must_agree_too():
    wanted, probs = np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([[0.9, 0.1], [0.6, 0.4]])
    options = {"names": ("a", "b"), "told": "rows", "thresholds": None}
    assert compared(probs, wanted, np.array([0, 0]), **options).agreement == 1.0
    asking = compared(probs, wanted, np.array([0, 0]), **options, sureties=np.array([1.0, 1.0]))
    assert asking.agreement == 0.5, "log(0.6 / 0.4) is below 1"
