import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.evaluation import losses
from tagsmith.evaluation.calibration_error import ece
from tagsmith.evaluation.confusions import confusion_scores
from tagsmith.evaluation.metrics import confusion, measure
from tagsmith.evaluation.proportions import design_effect, mean_of_proportions, proportion
from tagsmith.labels import Labels


def sample(n, classes, *, seed=0, skill=2.0, grouped=False):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), truth] += skill
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, probs, rng.integers(0, n, n) if grouped else np.arange(n)


def names(classes):
    return Labels(tuple(f"label {i}" for i in range(classes)))


def scored(truth, probs, groups, *, resamples=300, seed=1):
    return measure(truth, probs, groups, labels=names(probs.shape[1]), resamples=resamples, seed=seed)


def intervals(scores):
    found = [each for name, each in scores.measures.items() if each is not None and name not in UNBOUNDED]
    return found + [getattr(each, key) for each in scores.per_label for key in ("precision", "recall", "f1")]


UNBOUNDED = {"mcc", "log_loss", "brier"}


def unbounded(scores):
    return [scores.measures[name] for name in sorted(UNBOUNDED)]


@pytest.mark.parametrize(("n", "classes", "skill"), [(1, 2, 0), (37, 2, 1), (300, 6, 2), (500, 60, 3)])
def test_values_equal_scikit_learns(n, classes, skill):
    from sklearn import metrics as sk

    truth, probs, groups = sample(n, classes, skill=skill, grouped=True)
    guess, scores = probs.argmax(axis=1), scored(truth, probs, groups)
    ids = list(range(classes))
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, guess, labels=ids, zero_division=0)
    assert scores.accuracy.value == pytest.approx(sk.accuracy_score(truth, guess), abs=1e-12)
    assert scores.confused.macro_f1.value == pytest.approx(
        sk.f1_score(truth, guess, average="macro", zero_division=0), abs=1e-12
    )
    assert scores.log_loss.value == pytest.approx(sk.log_loss(truth, probs, labels=ids), abs=1e-12)
    for key, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose([getattr(each, key).value for each in scores.per_label], expected, atol=1e-12)
    assert [each.support for each in scores.per_label] == support.tolist()
    np.testing.assert_array_equal(scores.counts, sk.confusion_matrix(truth, guess, labels=ids))


@given(st.integers(5, 60), st.integers(2, 5), st.integers(0, 99), st.booleans())
def test_each_measure_equals_scikit_learns(n, classes, seed, coarse):
    from sklearn import metrics as sk

    truth, probs, groups = sample(n, classes, seed=seed, skill=1)
    truth[:classes] = np.arange(classes)  # scikit-learn wants each label to occur
    if coarse:  # ties
        probs = np.round(probs, 1) + 0.01
        probs /= probs.sum(axis=1, keepdims=True)
    guess, is_true = probs.argmax(axis=1), truth[:, None] == np.arange(classes)
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
        "micro_f1": sk.f1_score(truth, guess, average="micro"),
        "weighted_f1": sk.f1_score(truth, guess, average="weighted"),
        "mcc": sk.matthews_corrcoef(truth, guess),
        "roc_auc": sk.roc_auc_score(is_true, probs, average="macro"),
        "pr_auc": sk.average_precision_score(is_true, probs, average="macro"),
        "brier": sk.brier_score_loss(truth, probs, labels=np.arange(classes))
        if classes > 2
        else sk.brier_score_loss(truth, probs[:, 1]),
    }
    scores = scored(truth, probs, groups, resamples=200)
    for name, value in expected.items():
        assert scores.measures[name].value == pytest.approx(value, abs=1e-12), name


def test_a_label_without_test_rows_counts_in_no_area():
    truth, probs, groups = sample(100, 3)
    kept = truth != 2
    whole = scored(truth[kept], probs[kept], groups[kept]).ranked
    truth_N2 = truth[kept][:, None] == np.arange(2)
    from sklearn.metrics import roc_auc_score

    assert whole.roc_auc.value == pytest.approx(roc_auc_score(truth_N2, probs[kept][:, :2]), abs=1e-12)
    alone = scored(np.zeros(20, dtype=int), probs[:20], np.arange(20))
    assert alone.ranked.roc_auc is None
    assert alone.as_dict()["roc_auc"] is None


def test_a_mean_of_recalls_is_as_sure_as_its_rarest_label():
    few, many = proportion(np.arange(10) < 8, np.arange(10)), proportion(np.arange(1000) < 800, np.arange(1000))
    found = mean_of_proportions([few, many])
    assert found.value == pytest.approx(0.8)
    assert (found.value - found.low) == pytest.approx(np.hypot(0.8 - few.low, 0.8 - many.low) / 2)


def test_certain_and_wrong_answers_have_a_finite_log_loss_like_scikit_learns():
    from sklearn.metrics import log_loss

    truth, probs = np.array([0, 1, 0]), np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    assert scored(truth, probs, np.arange(3)).log_loss.value == pytest.approx(log_loss(truth, probs), abs=1e-12)


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 99), st.booleans())
def test_intervals_hold_their_value_and_stay_in_range(n, classes, seed, grouped):
    scores = scored(*sample(n, classes, seed=seed, grouped=grouped), resamples=200)
    assert scores.counts.sum() == n == sum(each.support for each in scores.per_label)
    for interval in intervals(scores):
        if interval.low is not None:
            assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for name in UNBOUNDED:
        found = scores.measures[name]
        assert (-1 if name == "mcc" else 0) <= found.low <= found.value <= found.high


@given(st.integers(2, 60), st.integers(2, 5), st.integers(0, 99))
def test_the_order_of_rows_changes_nothing(n, classes, seed):
    truth, probs, groups = sample(n, classes, seed=seed, grouped=True)
    order = np.random.default_rng(seed).permutation(n)
    first, second = scored(truth, probs, groups), scored(truth[order], probs[order], groups[order])
    both = zip([*intervals(first), *unbounded(first)], [*intervals(second), *unbounded(second)], strict=True)
    for one, other in both:
        assert one.value == pytest.approx(other.value, abs=1e-12)
        if one.low is not None:
            assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_the_same_seed_gives_the_same_numbers():
    rows = sample(200, 3, grouped=True)
    assert scored(*rows).as_dict() == scored(*rows).as_dict()


def test_one_test_row_can_be_measured():
    scores = scored(*sample(1, 3))
    assert scores.n == 1
    assert scores.accuracy.high - scores.accuracy.low > 0.9


def test_a_label_absent_from_the_test_rows_is_counted_with_none():
    truth, probs, groups = sample(100, 3)
    kept = truth != 2
    absent = scored(truth[kept], probs[kept], groups[kept]).per_label[2]
    assert (absent.support, absent.recall.value, absent.recall.low) == (0, 0.0, None)


def test_labels_with_few_rows_get_counts_without_intervals():
    truth, probs, groups = sample(300, 3)
    kept = np.flatnonzero((truth != 2) | (np.cumsum(truth == 2) <= 9))
    scores = scored(truth[kept], probs[kept], groups[kept])
    assert scores.per_label[2].f1.low is None
    assert scores.per_label[1].f1.low is not None
    frequent = np.mean([each.f1.value for each in scores.per_label[:2]])
    assert scores.confused.macro_f1_frequent.value == pytest.approx(frequent)


def test_a_hundred_and_fifty_labels_take_seconds():
    truth, probs, groups = sample(3000, 150, skill=4, grouped=True)
    start = time.process_time()
    scores = scored(truth, probs, groups, resamples=2000)
    assert time.process_time() - start < 10
    assert scores.counts.shape == (150, 150)


def test_a_hundred_thousand_rows_take_seconds():
    from tagsmith.evaluation.sections import Asked, Measured, sections_of

    truth, probs, groups = sample(100_000, 10, grouped=True)
    start = time.process_time()
    scored(truth, probs, groups, resamples=2000)
    measured = Measured(truth, probs, groups, names(10))
    sections_of(measured, Asked(), baseline_probs={}, resamples=2000, seed=1)
    assert time.process_time() - start < 30


def test_faultless_answers_still_leave_doubt():
    truth = np.arange(60) % 2
    scores = scored(truth, np.eye(2)[truth], np.arange(60))
    assert scores.accuracy.low == pytest.approx(0.951, abs=0.01)
    assert scores.confused.macro_f1.low <= scores.accuracy.low


def test_rows_that_agree_in_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    hits = np.repeat(rng.random(100) < 0.8, 3)
    apart, together = proportion(hits, np.arange(300)), proportion(hits, np.repeat(np.arange(100), 3))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert design_effect(hits.astype(float), np.repeat(np.arange(100), 3)) == pytest.approx(3, abs=0.1)


def test_proportions_without_groups_are_clopper_pearson_below_thirty_rows():
    from scipy.stats import binomtest

    found = proportion(np.arange(20) < 17, np.arange(20))
    exact = binomtest(17, 20).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-8)


def test_bounds_count_the_observed_number_by_its_weight():
    from scipy.stats import binom

    found = proportion(np.arange(100) < 90, np.arange(100))
    below = binom.cdf(89, 100, found.high) + binom.pmf(90, 100, found.high) * 0.55
    above = binom.sf(90, 100, found.low) + binom.pmf(90, 100, found.low) * 0.55
    assert (below, above) == pytest.approx((0.025, 0.025), abs=1e-7)


def test_confusion_has_the_truth_in_its_rows():
    assert confusion(np.array([0, 0, 1]), np.array([1, 0, 1]), classes=2).tolist() == [[1, 1], [0, 1]]


def test_ece_of_a_calibrated_model_is_near_zero_and_of_a_sure_one_is_not():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 4000)
    probs = np.stack([confidence, 1 - confidence], axis=1)
    truth = (rng.random(4000) > confidence).astype(int)
    found = ece(truth, probs, np.arange(4000), resamples=300, seed=1)
    assert found.value < 0.01
    sure = np.where(probs > 0.5, 0.99, 0.01)
    gap = 0.99 - np.mean(truth == 0)
    found = ece(truth, sure, np.arange(4000), resamples=300, seed=1)
    assert found.low < gap < found.high


def test_scores_have_the_keys_of_the_report():
    plain = scored(*sample(50, 2)).as_dict()
    assert {"n", "accuracy", "macro_f1", "log_loss", "ece", "per_label", "confusion"} <= set(plain)
    assert set(plain["accuracy"]) == {"value", "low", "high"}
    assert set(plain["per_label"][0]) == {"label", "support", "precision", "recall", "f1"}
    assert set(plain["confusion"]) == {"labels", "counts"}


def drawn(n, p, *, share, correlation, seed):
    """Hits `(N,)` in groups of 2 to 5 that hold `share` of the rows; two rows of a group correlate as told."""
    rng = np.random.default_rng(seed)
    sizes = []
    while sum(sizes) < share * n:
        sizes.append(int(rng.integers(2, 6)))
    sizes += [1] * max(n - sum(sizes), 0)
    groups = np.repeat(np.arange(len(sizes)), sizes)[:n]
    common, own = rng.random(len(sizes))[groups] < p, rng.random(n) < p
    return np.where(rng.random(n) < np.sqrt(correlation), common, own), groups


def coverage(n, p, *, share, correlation, trials):
    inside = 0
    for seed in range(trials):
        found = proportion(*drawn(n, p, share=share, correlation=correlation, seed=seed))
        inside += found.low <= p <= found.high
    return inside / trials


def test_intervals_of_accuracy_cover_in_a_small_simulation():
    cells = [
        coverage(n, p, share=share, correlation=0.6, trials=150)
        for n in (40, 200) for p in (0.7, 0.95) for share in (0, 0.35)
    ]  # fmt: skip
    assert 0.93 <= np.mean(cells) <= 0.975
    assert min(cells) >= 0.90


@pytest.mark.slow
def test_intervals_of_accuracy_cover_as_promised():
    table = {}
    for share, correlation in ((0, 0), (0.2, 0.5), (0.35, 0.3), (0.35, 0.9)):
        for n in (30, 60, 100, 300, 1000, 3000):
            for p in (0.5, 0.7, 0.9, 0.95, 0.99):
                table[share, correlation, n, p] = coverage(n, p, share=share, correlation=correlation, trials=1500)
    assert 0.94 <= np.mean(list(table.values())) <= 0.96
    # Three standard errors of 1,500 trials at 0.92.
    assert min(value for (_, _, n, _), value in table.items() if n >= 100) >= 0.92 - 3 * 0.007


@pytest.mark.slow
def test_macro_f1_covers_where_each_label_has_rows():
    rng = np.random.default_rng(5)
    inside = []
    for trial in range(200):
        prior = 1 / np.arange(1, 7)
        prior /= prior.sum()
        recall = rng.uniform(0.5, 0.97, 6)
        off = rng.dirichlet(np.ones(6), 6) * (1 - np.eye(6))
        cells = prior[:, None] * (np.diag(recall) + (1 - recall)[:, None] * off / off.sum(axis=1, keepdims=True))
        true = np.mean(2 * np.diag(cells) / (cells.sum(axis=0) + cells.sum(axis=1)))
        rows = rng.choice(36, p=cells.ravel(), size=300)
        found = confusion_scores(rows // 6, rows % 6, np.arange(300), resamples=500, seed=trial).macro_f1
        inside.append(found.low <= true <= found.high)
    assert 0.91 <= np.mean(inside) <= 0.985


def test_many_groups_are_resampled_in_blocks_with_the_same_width(monkeypatch):
    truth, probs, groups = sample(3000, 3, grouped=True)
    whole = losses.log_loss(truth, probs, groups, resamples=2000, seed=1)
    monkeypatch.setattr("tagsmith.evaluation.resampling._MOST_UNITS", 500)
    blocks = losses.log_loss(truth, probs, groups, resamples=2000, seed=1)
    assert blocks.value == whole.value
    assert blocks.high - blocks.low == pytest.approx(whole.high - whole.low, rel=0.1)
