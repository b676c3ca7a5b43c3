import numpy as np
import pytest

from tagsmith.errors import SettingError
from tagsmith.evaluation.costs import cheapest_answers, cost_matrix, expected_cost
from tagsmith.labels import Labels

MAIL = Labels(("ham", "spam"))
COSTS = {"spam": {"ham": 1.0}, "ham": {"spam": 20.0}}


def test_what_is_not_named_costs_one_where_it_is_wrong():
    found = cost_matrix({"b": {"c": 5.0}}, Labels(("a", "b", "c")))
    assert found.tolist() == [[0, 1, 1], [1, 0, 5], [1, 1, 0]]


def test_costs_of_labels_that_are_none_are_refused():
    with pytest.raises(SettingError, match=r"names \['spma'\].*truth first"):
        cost_matrix({"spma": {"ham": 1.0}}, MAIL)


def costs_of(truth, guess, *, prior, groups=None):
    return expected_cost(
        truth, {"model": guess}, np.arange(len(truth)) if groups is None else groups,
        matrix=cost_matrix(COSTS, MAIL), prior=np.array(prior), resamples=400, seed=1,
    )  # fmt: skip


def test_the_expected_cost_weighs_labels_by_their_prior():
    truth, guess = np.repeat([0, 1], [80, 20]), np.repeat([0, 1, 0, 1], [76, 4, 10, 10])
    at_home, at_work = (costs_of(truth, guess, prior=prior)["model"] for prior in ([0.8, 0.2], [0.5, 0.5]))
    assert at_home["value"] == pytest.approx(1000 * (0.8 * 0.05 * 20 + 0.2 * 0.5 * 1))
    assert at_work["value"] == pytest.approx(1000 * (0.5 * 0.05 * 20 + 0.5 * 0.5 * 1))
    assert at_home["low"] < at_home["value"] < at_home["high"]


def test_labels_without_test_rows_are_left_out_of_the_prior():
    found = costs_of(np.zeros(50, dtype=int), np.zeros(50, dtype=int), prior=[0.9, 0.1])
    assert found["prior"] == {"shares": [1.0, 0.0], "left_out": [1]}
    assert found["model"]["value"] == 0


def test_the_cheapest_answer_needs_to_be_sure_of_what_is_dear_to_mistake():
    probs = np.array([[0.02, 0.98], [0.2, 0.8], [0.04, 0.96]])
    assert cheapest_answers(probs, cost_matrix(COSTS, MAIL)).tolist() == [1, 0, 1]


def test_intervals_of_the_cost_cover():
    rng, inside = np.random.default_rng(0), 0
    true = 1000 * (0.8 * 0.05 * 20 + 0.2 * 0.3)
    for _ in range(150):
        truth = (rng.random(400) < 0.2).astype(int)
        guess = np.where(truth == 1, rng.random(400) < 0.7, rng.random(400) < 0.05).astype(int)
        found = costs_of(truth, guess, prior=[0.8, 0.2])["model"]
        inside += found["low"] <= true <= found["high"]
    assert inside / 150 >= 0.90
