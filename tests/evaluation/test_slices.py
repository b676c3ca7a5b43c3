import numpy as np
import pytest

from tagsmith.evaluation.comparison import holm
from tagsmith.evaluation.slices import slices_of


def test_a_slice_that_is_worse_is_found_and_shrunk_a_little():
    rng = np.random.default_rng(0)
    source = np.repeat(["mail", "chat", "phone"], 200)
    right = rng.random(600) < np.where(source == "phone", 0.6, 0.95)
    found = {each["value"]: each for each in slices_of(right, np.arange(600), {"source": source.tolist()})}
    assert found["phone"]["p_holm"] < 1e-6
    assert found["phone"]["accuracy"]["value"] < found["phone"]["shrunk"] < right.mean()
    assert found["phone"]["shrunk"] == pytest.approx(found["phone"]["accuracy"]["value"], abs=0.03)
    assert set(found["mail"]) == {"by", "value", "n", "accuracy", "shrunk", "p_holm"}


def test_slices_that_differ_by_chance_are_seldom_called_different():
    called = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        facets = {"a": rng.choice(list("abcde"), 400).tolist(), "b": rng.choice(list("vwxyz"), 400).tolist()}
        found = slices_of(rng.random(400) < 0.9, np.arange(400), facets)
        called += any(each["p_holm"] < 0.05 for each in found)
    assert called <= 0.05 * 200 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_slices_that_differ_by_chance_are_drawn_to_the_mean_of_all():
    apart = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        right = rng.random(500) < 0.8
        found = slices_of(right, np.arange(500), {"a": rng.choice(list("abcdefghij"), 500).tolist()})
        apart.append([(abs(each["shrunk"] - 0.8), abs(each["accuracy"]["value"] - 0.8)) for each in found])
    shrunk, plain = np.mean([pair for pairs in apart for pair in pairs], axis=0)
    assert shrunk < 0.7 * plain


def test_small_slices_absent_values_and_whole_tables_are_left_out():
    values = ["a"] * 29 + ["b"] * 40 + [None] * 31
    found = slices_of(np.ones(100, dtype=bool), np.arange(100), {"few": values, "same": ["x"] * 100})
    assert [(each["by"], each["value"], each["n"]) for each in found] == [("few", "b", 40)]


def test_rows_of_one_group_are_no_evidence_of_their_own():
    right, groups = np.ones(400, dtype=bool), np.arange(400)
    right[:20], groups[:20] = False, 0
    values = {"source": ["odd"] * 40 + ["usual"] * 360}
    together = slices_of(right, groups, values)[0]["p_holm"]
    assert slices_of(right, np.arange(400), values)[0]["p_holm"] < 1e-9 < together


@pytest.mark.parametrize(
    ("given", "expected"), [([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([], []), ([0.5, 0.9], [1.0, 1.0])]
)
def test_p_values_are_corrected_after_holm(given, expected):
    assert holm(given) == pytest.approx(expected)
