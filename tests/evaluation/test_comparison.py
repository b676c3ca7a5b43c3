import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.power import detectable_difference, minimum_difference
from tagsmith.evaluation.comparison import _tango, compare, sign_flip_p


def verdict(wins, losses, both, *, groups=None, **options):
    """Rows on which the model alone is right, the baseline alone, or both."""
    model = np.repeat([True, False, True], [wins, losses, both])
    baseline = np.repeat([False, True, True], [wins, losses, both])
    truth = np.zeros(len(model), dtype=int)
    groups = np.arange(len(model)) if groups is None else groups
    return compare(truth, np.eye(2)[(~model).astype(int)], np.eye(2)[(~baseline).astype(int)], groups, **options)


def test_many_one_sided_rows_are_better():
    found = verdict(30, 5, 265)
    assert found.value == "better"
    assert found.text.startswith("Better than TF-IDF by 8.3 points (")
    assert found.difference.low > 0


def test_the_same_the_other_way_is_worse_and_says_what_to_use():
    found = verdict(5, 30, 265)
    assert found.value == "worse"
    assert found.text.startswith("Worse than TF-IDF by 8.3 points (")
    assert found.text.endswith("use TF-IDF.")


def test_an_interval_inside_the_margin_is_practically_equal():
    assert verdict(20, 22, 9958).value == "practically equal"


def test_equality_comes_before_a_small_significant_difference():
    found = verdict(70, 20, 99_910)
    assert found.p_value < 0.05
    assert found.value == "practically equal"


def test_too_few_rows_are_undecided_and_say_the_bound():
    found = verdict(6, 3, 291)
    assert found.value == "undecided"
    assert "on 300 rows no difference under 2.0 points can be significant" in found.text


def test_no_discordant_row_gives_a_p_of_one():
    found = verdict(0, 0, 300)
    assert found.p_value == 1.0
    assert (found.difference.value, found.value) == (0.0, "undecided")


def test_another_name_stands_in_the_sentence():
    assert "MiniLM minus NB-SVM" in verdict(3, 3, 94, names=("MiniLM", "NB-SVM")).text


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_single_rows_give_the_exact_mcnemar_test(wins, losses, both):
    from scipy.stats import binomtest

    gains = np.repeat([1, -1, 0], [wins, losses, both + 1])
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_flip_p(gains, np.arange(len(gains))) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 5)), min_size=1, max_size=14))
def test_the_sign_flip_test_counts_every_flip_of_whole_groups(rows):
    gains, groups = (np.array(column) for column in zip(*rows, strict=True))
    sums = np.array([gains[groups == group].sum() for group in np.unique(groups)])
    flips = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1)
    expected = np.mean(np.abs(sums @ flips) >= abs(sums.sum()))
    assert sign_flip_p(gains, groups) == pytest.approx(expected, abs=1e-9)


def test_groups_weaken_the_evidence():
    groups = np.concatenate([np.repeat(np.arange(8), 3), np.arange(100, 376)])
    alone, grouped = verdict(22, 2, 276), verdict(22, 2, 276, groups=groups)
    assert grouped.p_value > alone.p_value
    assert grouped.difference.low < alone.difference.low


def test_a_hundred_thousand_rows_have_an_exact_p():
    rng = np.random.default_rng(0)
    gains, groups = rng.choice([-1, 0, 1], p=[0.03, 0.94, 0.03], size=100_000), rng.integers(0, 60_000, 100_000)
    assert 0 <= sign_flip_p(gains, groups) <= 1


@given(st.integers(1, 60), st.integers(0, 60), st.integers(20, 300))
def test_tangos_bounds_solve_the_score_equation(wins, losses, both):
    from scipy.optimize import minimize_scalar

    rows = wins + losses + both
    for difference, sign in zip(_tango(wins, losses, rows), (1, -1), strict=True):

        def likelihood(lost, d=difference):
            shares = np.maximum([lost + d, lost, 1 - 2 * lost - d], 1e-300)
            return -(np.array([wins, losses, both]) @ np.log(shares))

        low, high = max(0.0, -difference), (1 - difference) / 2
        lost = minimize_scalar(likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        score = (wins - losses - rows * difference) / np.sqrt(rows * (2 * lost + difference - difference**2))
        assert sign * score == pytest.approx(1.96, abs=2e-2)


def test_six_rows_one_way_are_the_least_that_can_be_significant():
    assert minimum_difference(np.arange(300)) == pytest.approx(2.0)
    assert verdict(6, 0, 294).p_value < 0.05 < verdict(5, 0, 295).p_value
    assert minimum_difference(np.zeros(300)) is None


def test_the_detectable_difference_has_80_percent_power():
    rng, rows, discordance = np.random.default_rng(0), 1000, 0.1
    difference = detectable_difference(rows, discordance) / 100
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    seen = [sign_flip_p(rng.choice([1, -1, 0], p=shares, size=rows), np.arange(rows)) < 0.05 for _ in range(400)]
    assert 0.72 <= np.mean(seen) <= 0.86


def test_one_row_is_compared_without_complaint():
    found = verdict(1, 0, 0, discordance=0.1)
    assert (found.value, found.minimum_difference) == ("undecided", None)
    assert "no difference can be significant" in found.text


def test_the_verdict_has_the_keys_of_the_report():
    plain = verdict(3, 1, 96).as_dict()
    keys = {"value", "text", "p_value", "minimum_difference", "detectable_difference", "difference", "measure"}
    assert set(plain) == keys
    assert set(plain["difference"]) == {"value", "low", "high"}


@pytest.mark.slow
def test_the_difference_covers_with_and_without_groups():
    rng, cells = np.random.default_rng(3), []
    for grouped in (False, True):
        for rows in (100, 300, 1000):
            for wins, losses in ((0.06, 0.03), (0.02, 0.02), (0.15, 0.05)):
                cells.append(_difference_coverage(rng, rows, wins, losses, grouped=grouped))
    assert 0.93 <= np.mean(cells) <= 0.975
    assert min(cells) >= 0.90


def _difference_coverage(rng, rows, wins, losses, *, grouped, trials=400):
    from tagsmith.evaluation.comparison import _difference

    sizes = (
        np.r_[np.full(rows // 10, 3), np.ones(rows - 3 * (rows // 10), dtype=int)] if grouped else np.ones(rows, int)
    )
    groups = np.repeat(np.arange(len(sizes)), sizes)
    shares, inside = [wins, losses, 1 - wins - losses], 0
    for _ in range(trials):
        common = rng.choice([1, -1, 0], p=shares, size=len(sizes))[groups]
        gains = np.where(rng.random(rows) < 0.7, common, rng.choice([1, -1, 0], p=shares, size=rows))
        found = _difference(gains, groups)
        inside += found.low <= 100 * (wins - losses) <= found.high
    return inside / trials
