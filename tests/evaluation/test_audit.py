import numpy as np
import pytest

from tagsmith.evaluation.audit import audit, confident_joint, expected_errors


def softmax(scores):
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def noisy(n=600, classes=3, share=0.1, seed=0):
    """True labels, given ones of which a share is wrong, and probabilities that know the truth rather well."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, n)
    wrong = rng.random(n) < share
    given = np.where(wrong, (true + rng.integers(1, classes, n)) % classes, true)
    return true, given, softmax(rng.normal(size=(n, classes)) + 5 * np.eye(classes)[true])


def test_wrong_labels_are_found_and_the_true_ones_suggested():
    true, given, probs = noisy()
    found = audit(given, lambda kept: probs)
    wrong = true != given
    assert wrong[found.places].mean() > 0.9
    assert wrong[found.places].sum() > 0.7 * wrong.sum()
    assert (found.suggested == true[found.places]).mean() > 0.9
    assert np.all(np.diff(probs[found.places, given[found.places]]) >= 0), "the least supported come first"


def test_clean_labels_are_left_alone():
    true, _, _ = noisy()
    found = audit(true, lambda kept: softmax(10 * np.eye(3)[true]))
    assert len(found.places) == 0
    assert found.share == 0


def test_rows_that_disagree_are_left_out_of_further_rounds():
    true, given, probs = noisy()
    asked = []

    def out_of_fold(kept):
        asked.append(kept)
        return probs

    audit(given, out_of_fold)
    assert asked[0] is None
    left_out = ~asked[1]
    assert (true != given)[left_out].mean() > 0.9
    assert all(asked[1][given == label].mean() >= 0.5 for label in range(3))


def test_the_number_of_errors_is_that_of_the_confident_joint():
    _, given, probs = noisy()
    joint = confident_joint(probs, given)
    assert joint.sum(axis=1) == pytest.approx(np.bincount(given))
    assert expected_errors(probs, given) == round(joint.sum() - np.trace(joint))


def test_the_confident_joint_is_that_of_cleanlab():
    count = pytest.importorskip("cleanlab.count", reason="needs cleanlab")
    for seed in range(5):
        _, given, probs = noisy(n=300, classes=4, share=0.25, seed=seed)
        theirs = count.compute_confident_joint(given, probs, calibrate=True)
        assert np.abs(confident_joint(probs, given) - theirs).max() <= 1.0  # theirs is rounded to whole rows


def test_a_label_that_no_row_has_accuses_nobody():
    probs = softmax(np.array([[3.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 3.0, 0]]))
    assert expected_errors(probs, np.array([0, 0, 1, 1])) == 0


def test_of_several_labels_a_missing_and_a_false_one_are_found():
    rng = np.random.default_rng(0)
    true = rng.random((400, 3)) < 0.4
    given = true.copy()
    given[:20, 0] ^= True
    probs = 1 / (1 + np.exp(-(rng.normal(size=true.shape) + 8 * (true - 0.5))))
    asked = []
    found = audit(given, lambda kept: asked.append(kept) or probs)
    assert all(kept.mean() >= 0.5 for kept in asked[1:]), "enough is left to learn from"
    assert set(found.places[:15]) <= set(range(20))
    assert (found.suggested[:15] == true[found.places[:15]]).mean() > 0.95
