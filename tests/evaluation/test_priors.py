import numpy as np
import pytest

from tagsmith.errors import SettingError
from tagsmith.evaluation.priors import em_prior, estimate_prior, given_prior
from tagsmith.labels import Labels

OLD = np.array([0.7, 0.2, 0.1])


def world(n, shares, *, seed, apart=2.0):
    """Truth at `shares` and the calibrated probabilities of a model that was trained at OLD."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, p=shares, size=n)
    seen = rng.normal(size=(n, 3)) + apart * (truth[:, None] == np.arange(3))
    odds = np.exp(apart * seen) * OLD
    return truth, odds / odds.sum(axis=1, keepdims=True)


def estimated(probs, *, held=500, seed=0, held_probs=None):
    truth, calm = world(held, OLD, seed=seed + 100)
    return estimate_prior(probs, OLD, held_out_probs=calm, held_out_truth=truth, seed=1)


def test_em_finds_the_shares_of_a_shifted_world():
    shares = np.array([0.2, 0.3, 0.5])
    found = estimated(world(3000, shares, seed=0)[1])
    assert found.accepted
    np.testing.assert_allclose(found.shares, shares, atol=0.04)
    assert all(each.low <= each.value <= each.high for each in (*found.by_em, *found.by_confusion))
    assert "agree" in found.told


def test_em_leaves_unshifted_shares_alone():
    np.testing.assert_allclose(em_prior(world(20_000, OLD, seed=1)[1], OLD), OLD, atol=0.02)


def test_agreement_is_seldom_denied_under_label_shift():
    denied = sum(not estimated(world(600, [0.4, 0.3, 0.3], seed=seed)[1], seed=seed).accepted for seed in range(12))
    assert denied <= 2


def test_a_world_that_looks_otherwise_is_declined():
    # Texts of the first label look half like the second: not the shares have changed.
    rng = np.random.default_rng(0)
    truth, probs = world(3000, OLD, seed=2)
    odd = (truth == 0) & (rng.random(3000) < 0.5)
    probs[odd] = np.array([0.45, 0.54, 0.01])
    found = estimated(probs)
    assert not found.accepted
    assert "more than the shares has changed" in found.told


def test_few_texts_are_declined():
    found = estimated(world(60, OLD, seed=3)[1])
    assert (found.accepted, found.told) == (
        False, "declined: 60 unlabelled texts are too few; expected 100 or more",
    )  # fmt: skip


def test_labels_that_are_hardly_told_apart_are_declined():
    truth, calm = world(300, OLD, seed=4, apart=0.05)
    found = estimate_prior(calm, OLD, held_out_probs=calm, held_out_truth=truth, seed=1)
    assert "told apart too badly" in found.told


@pytest.mark.parametrize(
    ("shares", "complaint"),
    [({"ham": 1.0}, "Expected a share for each label"), ({"ham": 0.9, "spam": 0.3}, "sum to 1.2")],
)
def test_shares_that_are_none_are_refused(shares, complaint):
    with pytest.raises(SettingError, match=complaint):
        given_prior(shares, Labels(("ham", "spam")))


def test_given_shares_are_in_the_order_of_labels():
    assert given_prior({"spam": 0.1, "ham": 0.9}, Labels(("ham", "spam"))).tolist() == [0.9, 0.1]
