import numpy as np
import pytest

from tagsmith.evaluation.at_prior import scores_at_prior
from tagsmith.labels import Labels

MAIL = Labels(("ham", "spam"))


def balanced(n, *, seed=0):
    """Half spam; 90 % of the ham and 96 % of the spam are answered rightly."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    right = rng.random(n) < np.where(truth == 1, 0.96, 0.9)
    return truth, np.where(right, truth, 1 - truth)


def scored(truth, guess, prior, *, groups=None):
    groups = np.arange(len(truth)) if groups is None else groups
    return scores_at_prior(truth, guess, groups, labels=MAIL, prior=np.array(prior), resamples=400, seed=1)


def test_precision_falls_where_a_label_is_rarer_than_in_the_test():
    truth, guess = balanced(4000)
    found = scored(truth, guess, [0.9, 0.1])
    recalls = [np.mean(guess[truth == i] == i) for i in (0, 1)]
    assert found["accuracy"]["value"] == pytest.approx(0.9 * recalls[0] + 0.1 * recalls[1])
    precision = 0.1 * recalls[1] / (0.1 * recalls[1] + 0.9 * (1 - recalls[0]))
    spam = found["per_label"][1]["precision"]
    assert spam["value"] == pytest.approx(precision)
    assert spam["low"] < spam["value"] < spam["high"] < 0.7
    assert found["shares"] == {"ham": 0.9, "spam": 0.1}


def test_at_the_shares_of_the_test_there_is_nothing_to_add():
    assert scored(*balanced(400), [0.51, 0.49]) is None


def test_a_label_without_test_rows_has_no_scores_at_any_share():
    assert scored(np.zeros(50, dtype=int), np.zeros(50, dtype=int), [0.5, 0.5]) is None


def test_intervals_cover_the_precision_at_the_prior():
    true, inside = 0.1 * 0.96 / (0.1 * 0.96 + 0.9 * 0.1), 0
    for seed in range(150):
        spam = scored(*balanced(400, seed=seed), [0.9, 0.1])["per_label"][1]["precision"]
        inside += spam["low"] <= true <= spam["high"]
    assert inside / 150 >= 0.9
