import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tagsmith.tuning.probes import STRENGTHS, choose_strength, fit_probe


def points(count=300, *, width=12, classes=3, seed=0):
    """Unit-variance points whose label is the largest of three linear scores, with noise."""
    random = np.random.default_rng(seed)
    pooled_ND = random.normal(size=(count, width)) * np.linspace(0.1, 5, width)
    scores_NC = pooled_ND / pooled_ND.std(axis=0) @ random.normal(size=(width, classes)) + random.normal(
        size=(count, classes)
    )
    return torch.from_numpy(pooled_ND).float(), torch.from_numpy(scores_NC.argmax(axis=1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("strength", [1.0, 30.0])
def test_a_probe_is_scikit_learns_logistic_regression(strength, bias):
    pooled_ND, truth_N = points()
    probe = fit_probe(pooled_ND, truth_N, classes=3, strength=strength, bias=bias, steps=500)
    scaled_ND = (pooled_ND / pooled_ND.std(dim=0)).double().numpy()
    reference = LogisticRegression(C=1 / strength, fit_intercept=bias, max_iter=2000, tol=1e-8)
    expected_NC = reference.fit(scaled_ND, truth_N.numpy()).predict_proba(scaled_ND)
    probs_NC = probe.logits(pooled_ND).softmax(dim=1).numpy()
    np.testing.assert_allclose(probs_NC, expected_NC, atol=2e-3)


def test_a_probe_of_several_labels_is_one_regression_for_each():
    pooled_ND, truth_N = points(classes=2)
    truth_NC = torch.stack([truth_N == 0, pooled_ND[:, 3] > 0], dim=1)
    probe = fit_probe(pooled_ND, truth_NC, classes=2, strength=2.0, bias=True, steps=500)
    scaled_ND = (pooled_ND / pooled_ND.std(dim=0)).double().numpy()
    for column in range(2):
        # The joint loss is averaged over labels, so that its penalty weighs twice as much for each.
        reference = LogisticRegression(C=1 / 4.0, max_iter=2000, tol=1e-8).fit(scaled_ND, truth_NC[:, column].numpy())
        probs_N = probe.logits(pooled_ND)[:, column].sigmoid().numpy()
        np.testing.assert_allclose(probs_N, reference.predict_proba(scaled_ND)[:, 1], atol=2e-3)


def test_the_penalty_with_the_least_loss_on_unseen_groups_is_chosen():
    pooled_ND, truth_N = points(60, width=40)
    pooled_ND = pooled_ND.repeat(4, 1)
    truth_N = truth_N.repeat(4)
    alone, losses = choose_strength(pooled_ND, truth_N, np.arange(240), classes=3, seed=0)
    together, kept = choose_strength(pooled_ND, truth_N, np.tile(np.arange(60), 4), classes=3, seed=0)
    tried = sorted(losses, reverse=True)
    assert tried == sorted(STRENGTHS, reverse=True)[: len(tried)]  # the strongest first, until the loss rises
    assert alone in (tried[-1], tried[-2])
    assert losses[alone] == min(losses.values())
    # With its copies in other folds each point is known by heart, and no penalty seems needed.
    assert alone < together
    assert losses[alone] < kept[together]


def test_a_feature_that_never_varies_gets_no_weight_to_speak_of():
    pooled_ND, truth_N = points()
    still_N1 = 0.3 + 1e-8 * torch.randn(len(pooled_ND), 1, generator=torch.Generator().manual_seed(0))
    plain = fit_probe(pooled_ND, truth_N, classes=3, strength=10.0, bias=True, steps=500)
    beside = fit_probe(torch.cat([pooled_ND, still_N1], dim=1), truth_N, classes=3, strength=10.0, bias=True, steps=500)
    assert beside.weight_CD[:, -1].abs().max() < plain.weight_CD.abs().max()
    moved_ND = torch.cat([pooled_ND, still_N1 + 0.01], dim=1)  # as a step of tuning may move it
    found_NC, expected_NC = beside.logits(moved_ND).softmax(1), plain.logits(pooled_ND).softmax(1)
    torch.testing.assert_close(found_NC, expected_NC, atol=0.02, rtol=0)


def test_a_small_probe_is_fitted_on_one_thread_and_the_others_are_there_afterwards(monkeypatch):
    pooled_ND, truth_N = points(90)
    used, before = [], torch.get_num_threads()
    step = torch.optim.LBFGS.step
    monkeypatch.setattr(torch.optim.LBFGS, "step", lambda *a: used.append(torch.get_num_threads()) or step(*a))
    try:
        torch.set_num_threads(2)
        fit_probe(pooled_ND, truth_N, classes=3, strength=1.0)
        assert used == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
