import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from tagsmith.evaluation.label_sets import measure_sets
from tagsmith.labels import Labels

HALF = 0.5


def drawn(n=300, classes=4, *, seed=0, grouped=False):
    """Truth, calibrated probabilities and groups; a group's rows are copies of one another."""
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, n // 2, n)) if grouped else np.arange(n)
    first = np.unique(groups, return_index=True)[1][np.unique(groups, return_inverse=True)[1]]
    probs = 1 / (1 + np.exp(-(2 * rng.normal(size=(n, classes)) - np.arange(classes) / 2)))[first]
    return (rng.random((n, classes))[first] < probs), probs, groups


def measured(truth, probs, groups, *, thresholds=None, resamples=300):
    classes = truth.shape[1]
    return measure_sets(
        truth,
        probs,
        groups,
        thresholds=np.full(classes, HALF) if thresholds is None else thresholds,
        labels=Labels(tuple(f"label {i}" for i in range(classes)), multi_label=True),
        resamples=resamples,
        seed=1,
    )


@pytest.mark.parametrize("seed", range(12))
def test_values_are_scikit_learns(seed):
    n, classes = (3, 8, 20, 60)[seed % 4], 2 + seed // 4
    truth, probs, groups = drawn(n, classes, seed=seed)
    thresholds = np.linspace(0.2, 0.6, classes)
    found, guess = measured(truth, probs, groups, thresholds=thresholds, resamples=200), probs >= thresholds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels that neither truth nor answers show
        assert found.measures["micro_f1"].value == pytest.approx(
            metrics.f1_score(truth, guess, average="micro", zero_division=0)
        )
        assert found.samples_f1.value == pytest.approx(
            metrics.f1_score(truth, guess, average="samples", zero_division=1)
        )
        occurring = np.flatnonzero((truth | guess).any(axis=0))
        macro = (
            metrics.f1_score(truth, guess, average="macro", labels=occurring, zero_division=0) if len(occurring) else 0
        )
        precision, recall, f1, support = metrics.precision_recall_fscore_support(truth, guess, zero_division=0)
    assert found.measures["macro_f1"].value == pytest.approx(macro)
    assert found.hamming_loss.value == pytest.approx(metrics.hamming_loss(truth, guess))
    assert found.accuracy.value == pytest.approx(np.mean((truth == guess).all(axis=1)))
    assert found.log_loss.value == pytest.approx(
        np.mean([metrics.log_loss(truth[:, j], probs[:, j], labels=[False, True]) for j in range(classes)])
    )
    np.testing.assert_array_equal(found.counts, metrics.multilabel_confusion_matrix(truth, guess))
    both = [j for j in range(classes) if 0 < truth[:, j].sum() < n]
    if both:
        expected = {
            "roc_auc": metrics.roc_auc_score(truth[:, both], probs[:, both], average="macro"),
            "pr_auc": metrics.average_precision_score(truth[:, both], probs[:, both], average="macro"),
            "balanced_accuracy": np.mean([metrics.balanced_accuracy_score(truth[:, j], guess[:, j]) for j in both]),
        }
        assert {name: found.measures[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found.measures["mcc"].value == pytest.approx(
        metrics.matthews_corrcoef(truth.ravel(), guess.ravel()), abs=1e-12
    )
    assert found.brier.value == pytest.approx(
        np.mean([metrics.brier_score_loss(truth[:, j], probs[:, j], labels=[False, True]) for j in range(classes)]),
        abs=1e-12,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weighted = metrics.f1_score(truth, guess, average="weighted", zero_division=0)
    assert found.measures["weighted_f1"].value == pytest.approx(weighted, abs=1e-12)
    for j, each in enumerate(found.per_label):
        assert (each.support, each.threshold) == (support[j], thresholds[j])
        assert [each.precision.value, each.recall.value, each.f1.value] == pytest.approx(
            [precision[j], recall[j], f1[j]]
        )


@given(st.integers(2, 60), st.integers(0, 99))
def test_each_interval_holds_its_value(n, seed):
    found = measured(*drawn(n, 3, seed=seed), resamples=200).as_dict()
    for name in ("accuracy", "micro_f1", "macro_f1", "samples_f1", "hamming_loss", "log_loss", "ece", "ece_calibrated"):
        assert 0 <= found[name]["low"] <= found[name]["value"] <= found[name]["high"], name


def test_rows_in_groups_have_wider_intervals():
    truth, probs, groups = drawn(600, 3, grouped=True)
    whole, apart = measured(truth, probs, groups), measured(truth, probs, np.arange(600))
    for name in ("accuracy", "micro_f1", "macro_f1", "samples_f1", "hamming_loss", "log_loss"):
        wide, narrow = whole.measures[name], apart.measures[name]
        assert wide.high - wide.low > 1.15 * (narrow.high - narrow.low), name


def test_a_row_without_any_label_is_right_when_nothing_is_answered():
    truth, probs = np.zeros((40, 2), dtype=bool), np.full((40, 2), 0.1)
    truth[0, 0], probs[0, 0] = True, 0.9
    found = measured(truth, probs, np.arange(40))
    assert found.accuracy.value == found.measures["micro_f1"].value == found.samples_f1.value == 1.0


def test_no_errors_on_few_rows_do_not_prove_that_there_are_none():
    truth, _, groups = drawn(40, 3)
    found = measured(truth, truth.astype(float), groups)
    assert found.measures["micro_f1"].value == 1
    assert 0.85 < found.measures["micro_f1"].low < 0.97
    assert found.hamming_loss.high > 0.01


def test_labels_with_few_positive_rows_have_counts_alone_and_stay_out_of_the_frequent():
    truth, probs, groups = drawn(300, 3)
    truth[:, 2] = False
    truth[:4, 2] = True
    found = measured(truth, probs, groups)
    assert found.per_label[2].f1.low is None
    assert found.per_label[0].f1.low is not None
    frequent = metrics.f1_score(truth[:, :2], probs[:, :2] >= HALF, average="macro")
    assert found.measures["macro_f1_frequent"].value == pytest.approx(frequent)
    assert found.measures["macro_f1_frequent"].value > found.measures["macro_f1"].value


def test_the_error_of_calibration_tells_calibrated_from_overconfident():
    truth, probs, groups = drawn(3000, 4)
    sharp = 1 / (1 + np.exp(-3 * np.log(probs / (1 - probs))))
    honest, boasting = measured(truth, probs, groups), measured(truth, sharp, groups)
    assert honest.ece.value <= honest.ece_calibrated.high
    assert boasting.ece.value > 5 * honest.ece_calibrated.high


@pytest.mark.slow
@pytest.mark.parametrize("average", ["micro_f1", "macro_f1"])
def test_intervals_of_f1_cover_the_true_value(average):
    inside = []
    true = getattr(measured(*drawn(200_000, 4, seed=99), resamples=200), average).value
    for trial in range(300):
        found = getattr(measured(*drawn(300, 4, seed=trial), resamples=400), average)
        inside.append(found.low <= true <= found.high)
    assert 0.915 <= np.mean(inside) <= 0.985
