import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from tagsmith.evaluation.decisions import fit_prior_decision, score_of
from tagsmith.evaluation.set_comparison import as_sets, compare_sets
from tagsmith.model.decision import Decision, decided, plain_of, rule_of

SHARES = np.array([0.75, 0.2, 0.05])


def drawn(count, *, seed):
    """Truth at unequal shares, and the probabilities that a normal score of each label makes exactly right."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, count, p=SHARES)
    scores_NC = np.log(SHARES) + 1.5 * rng.normal(size=(count, 3)) + 2.25 * np.eye(3)[truth]
    powers_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return truth, powers_NC / powers_NC.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("measure", ["macro_f1", "balanced_accuracy"])
def test_a_fitted_power_of_the_shares_raises_the_measure_on_other_rows(measure):
    truth, probs = drawn(1500, seed=1)
    found = fit_prior_decision(probs, truth, np.arange(1500), shares=SHARES, measure=measure, seed=0)
    other_truth, other = drawn(20_000, seed=2)
    gained = score_of(measure, other_truth, decided(other, found.decision))
    assert gained > score_of(measure, other_truth, other.argmax(axis=1)) + 0.01
    assert found.after > found.before
    assert f"{found.tau:.2f}" in found.text


def test_where_shares_are_even_the_likeliest_label_is_answered():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), 600)
    truth = np.array([rng.choice(3, p=p) for p in probs])
    found = fit_prior_decision(probs, truth, np.arange(600), shares=np.full(3, 1 / 3), measure="macro_f1", seed=0)
    assert found.decision is None
    assert "gains nothing" in found.text


def test_a_few_rows_fit_nothing():
    truth, probs = drawn(30, seed=1)
    found = fit_prior_decision(probs, truth, np.arange(30), shares=SHARES, measure="macro_f1", seed=0)
    assert found.decision is None
    assert "30 held-out rows are too few" in found.text


def test_scores_are_scikit_learns():
    truth, probs = drawn(400, seed=3)
    answers = probs.argmax(axis=1)
    assert score_of("macro_f1", truth, answers) == pytest.approx(f1_score(truth, answers, average="macro"))
    assert score_of("balanced_accuracy", truth, answers) == pytest.approx(balanced_accuracy_score(truth, answers))
    assert score_of("accuracy", truth, answers) == pytest.approx((truth == answers).mean())


def test_costs_choose_the_cheapest_answer():
    costs = np.array([[0.0, 1.0], [20.0, 0.0]])
    decision = Decision.by_costs(costs)
    assert decided(np.array([[0.9, 0.1], [0.97, 0.03]]), decision).tolist() == [1, 0]


@pytest.mark.parametrize(
    "decision", [Decision.by_prior(SHARES, 0.6), Decision.by_costs(np.array([[0, 1, 4], [2, 0, 1], [9.0, 1, 0]]))]
)
def test_a_margin_is_how_far_probabilities_may_move_before_the_answer_changes(decision):
    _, probs = drawn(500, seed=5)
    margins, answers = decision.margins(probs), decided(probs, decision)
    moved = probs + np.random.default_rng(0).choice([-1, 1], probs.shape) * (margins / 2)[:, None] * 0.999
    assert (decided(moved, decision) == answers).all()
    assert (decided(probs, rule_of(plain_of(decision))) == answers).all()


def test_the_paired_comparison_by_balanced_accuracy_is_that_of_mean_recalls():
    truth, probs = drawn(800, seed=6)
    answers, rival = decided(probs, Decision.by_prior(SHARES, 1.0)), probs.argmax(axis=1)
    sets = [as_sets(each, 3) for each in (truth, answers, rival)]
    found = compare_sets(*sets, np.arange(800), measure="balanced_accuracy", resamples=300, seed=0)
    expected = balanced_accuracy_score(truth, answers) - balanced_accuracy_score(truth, rival)
    assert found.difference.value == pytest.approx(100 * expected)
    assert found.value == "better"
