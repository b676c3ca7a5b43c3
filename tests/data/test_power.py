import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from tagsmith.data.power import USUAL_DISCORDANCE, detectable_difference, minimum_difference


def test_on_300_rows_no_difference_under_two_points_can_be_significant():
    assert minimum_difference(np.arange(300)) == pytest.approx(2.0)
    assert minimum_difference(np.zeros(300)) is None
    assert minimum_difference(np.arange(0)) is None


@pytest.mark.parametrize(("rows", "points"), [(300, 4.1), (1821, 1.7), (3080, 1.3)])
def test_the_difference_that_is_usually_seen_is_that_of_the_design(rows, points):
    assert detectable_difference(rows, USUAL_DISCORDANCE) == pytest.approx(points, abs=0.06)


@given(st.floats(1, 1e6), st.floats(1e-4, 1))
def test_the_closed_form_solves_the_equation_of_the_sample_size(rows, discordance):
    level, power = norm.ppf(0.975), norm.ppf(0.8)

    def missing(d):
        return d * rows**0.5 - level * discordance**0.5 - power * max(discordance - d * d, 0) ** 0.5

    found = detectable_difference(rows, discordance)
    if missing(discordance) < 0:
        assert found is None or found == pytest.approx(100 * discordance)
    else:
        assert found == pytest.approx(100 * brentq(missing, 0, discordance, xtol=1e-14), rel=1e-6)


def test_too_few_discordant_rows_show_nothing():
    assert detectable_difference(50, 0.01) is None
    assert detectable_difference(50, 0.0) is None
