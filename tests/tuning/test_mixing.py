import json

import numpy as np
import pytest

from tagsmith.model.hybrid import Mixing, sureness
from tagsmith.tuning.mixing import KINDS, cross_mixed, fit_mixing, mixed_at, row_losses_of, share_of


def sides(rows=2000, *, seed=0, noise=(1.5, 1.5), sharp=(3.0, 0.5)):
    """Truth of three labels and two models that err apart, the first far too sure and the second too timid."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, size=rows)
    signal = 2.0 * (truth[:, None] == np.arange(3))
    found = [(signal + random.normal(scale=n, size=(rows, 3))) * s for n, s in zip(noise, sharp, strict=True)]
    return *found, truth


def loss_of(logits, truth):
    return float(row_losses_of(logits, truth).mean())


def least_loss(logits, truth):
    return min(loss_of(power * logits, truth) for power in np.geomspace(0.05, 20, 200))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hybrid_reads_new_rows_better_than_either_side(kind):
    llm, tfidf, truth = sides()
    mixing = fit_mixing(kind, llm[:1000], tfidf[:1000], truth[:1000])
    own = loss_of(mixing.mixed(llm[1000:], tfidf[1000:]), truth[1000:])
    assert own < min(least_loss(side[1000:], truth[1000:]) for side in (llm, tfidf)) - 0.05


def test_an_average_finds_the_side_that_knows_more():
    llm, tfidf, truth = sides(noise=(0.5, 3.0))
    mixing = fit_mixing("average", llm, tfidf, truth)
    assert share_of(mixing, llm, tfidf, truth) < 0.35
    llm, tfidf, truth = sides(noise=(30.0, 1.0), sharp=(1.0, 1.0))
    assert share_of(fit_mixing("average", llm, tfidf, truth), llm, tfidf, truth) > 0.65


def test_a_share_means_the_same_for_logits_of_another_sharpness():
    llm, tfidf, truth = sides()
    share = share_of(fit_mixing("average", llm, tfidf, truth), llm, tfidf, truth)
    assert share == pytest.approx(0.5, abs=0.05)
    again = mixed_at(share, 7 * llm, tfidf, truth)
    assert share_of(again, 7 * llm, tfidf, truth) == pytest.approx(share, abs=1e-3)
    assert loss_of(again.mixed(7 * llm, tfidf), truth) < least_loss(llm, truth)


def test_a_stack_learns_which_side_knows_which_label():
    llm, tfidf, truth = sides(4000)
    llm[:, 2], tfidf[:, 0] = 0, 0  # one knows nothing of the last label, the other nothing of the first
    losses = {
        kind: loss_of(
            fit_mixing(kind, llm[:2000], tfidf[:2000], truth[:2000]).mixed(llm[2000:], tfidf[2000:]), truth[2000:]
        )
        for kind in ("average", "stacking")
    }
    assert losses["stacking"] < losses["average"] - 0.01


def test_a_cascade_spares_the_llm_what_tfidf_is_sure_of():
    llm, tfidf, truth = sides(noise=(1.0, 1.0))
    easy = np.arange(len(truth)) % 2 == 0
    tfidf[easy] = 20.0 * (truth[easy, None] == np.arange(3))
    mixing = fit_mixing("cascade", llm, tfidf, truth)
    sure = mixing.is_sure(tfidf)
    assert sure[easy].all()
    assert sure.mean() < 0.8
    silent = np.where(sure[:, None], np.nan, llm)  # nobody looks at what was not asked
    np.testing.assert_array_equal(mixing.mixed(silent, tfidf), mixing.mixed(llm, tfidf))


def test_a_cascade_asks_always_where_tfidf_knows_nothing():
    llm, tfidf, truth = sides(noise=(0.5, 1.0))
    tfidf = np.random.default_rng(1).normal(size=tfidf.shape)
    assert fit_mixing("cascade", llm, tfidf, truth).is_sure(tfidf).mean() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_several_labels_are_mixed_as_well(kind):
    random = np.random.default_rng(0)
    truth = random.random((2000, 4)) < [0.5, 0.2, 0.1, 0.05]
    llm, tfidf = ((2.0 * truth - 1 + random.normal(size=truth.shape)) * sharp for sharp in (4.0, 0.5))
    mixing = fit_mixing(kind, llm[:1000], tfidf[:1000], truth[:1000])
    own = loss_of(mixing.mixed(llm[1000:], tfidf[1000:]), truth[1000:])
    assert own < min(least_loss(side[1000:], truth[1000:]) for side in (llm, tfidf)) - 0.02
    assert mixing.multi_label


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_mixed_by_what_it_helped_to_fit(kind):
    llm, tfidf, truth = sides(300)
    groups = np.arange(300) // 3
    found = cross_mixed(kind, llm, tfidf, truth, groups, seed=0)
    changed = truth.copy()
    changed[:3] = (changed[:3] + 1) % 3  # the labels of one whole group
    again = cross_mixed(kind, llm, tfidf, changed, groups, seed=0)
    np.testing.assert_array_equal(found[:3], again[:3])
    assert (found[3:] != again[3:]).any()


def test_rows_without_a_fault_ask_for_no_endless_weights():
    truth = np.arange(40) % 2
    perfect = 3.0 * (truth[:, None] == np.arange(2))
    mixing = fit_mixing("average", perfect, perfect, truth)
    assert mixing.llm + mixing.tfidf < 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixing_is_the_same_after_it_was_written_down(kind):
    llm, tfidf, truth = sides(300)
    mixing = fit_mixing(kind, llm, tfidf, truth)
    assert Mixing.from_dict(json.loads(json.dumps(mixing.as_dict()))) == mixing


def test_sureness_is_the_lead_of_the_likeliest_or_the_least_of_several():
    scores = np.array([[3.0, 1.0, 0.5], [-2.0, 0.25, 4.0]])
    np.testing.assert_allclose(sureness(scores, multi_label=False), [2.0, 3.75])
    np.testing.assert_allclose(sureness(scores, multi_label=True), [0.5, 0.25])
