import numpy as np
import pytest

from tagsmith.tuning.cross_fitting import FOLDS, CrossFit


def blobs(n=200, width=8, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    return (rng.normal(size=(n, width)) + 2 * np.eye(3, width)[truth]).astype(np.float32), truth


def test_rows_are_answered_by_probes_that_did_not_see_them():
    states, truth = blobs()
    noise = np.random.default_rng(1).normal(size=(200, 150)).astype(np.float32)  # enough to learn rows by heart
    labels = np.random.default_rng(2).integers(0, 3, 200)
    crossed = CrossFit.of(noise, labels, np.arange(200), classes=3, seed=0)
    assert (crossed.probabilities().argmax(axis=1) == labels).mean() < 0.5
    crossed = CrossFit.of(states, truth, np.arange(200), classes=3, seed=0)
    assert (crossed.probabilities().argmax(axis=1) == truth).mean() > 0.8


def test_groups_share_a_fold():
    states, truth = blobs()
    groups = np.repeat(np.arange(50), 4)
    folds = CrossFit.of(states, truth, groups, classes=3, seed=0).folds_N
    assert len({(group, fold) for group, fold in zip(groups, folds, strict=True)}) == 50
    assert set(folds) == set(range(FOLDS))


def test_only_rows_that_are_kept_are_learnt_from():
    states, truth = blobs()
    swapped = np.where(np.arange(200) < 100, (truth + 1) % 3, truth)
    crossed = CrossFit.of(states, swapped, np.arange(200), classes=3, seed=0)
    kept = np.arange(200) >= 100
    right = (crossed.probabilities(kept).argmax(axis=1) == truth).mean()
    assert right > (crossed.probabilities().argmax(axis=1) == truth).mean() + 0.1


def test_probabilities_add_up_to_one_or_stand_alone_for_several_labels():
    states, truth = blobs()
    single = CrossFit.of(states, truth, np.arange(200), classes=3, seed=0).probabilities()
    assert single.sum(axis=1) == pytest.approx(1)
    several = CrossFit.of(states, np.eye(3, dtype=bool)[truth], np.arange(200), classes=3, seed=0).probabilities()
    assert ((several > 0.5).argmax(axis=1) == truth).mean() > 0.7
    assert several.sum(axis=1) != pytest.approx(1)
