import itertools

import numpy as np
import pytest

from tagsmith.evaluation.comparison import compare_hits
from tagsmith.evaluation.label_sets import f1_of, label_sums
from tagsmith.evaluation.set_comparison import compare_sets, paired_spread, primary_measure


def drawn(n=400, classes=4, *, better=0.0, seed=0):
    """A truth and two models' answers; the first errs less by `better`."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, classes)) < 0.3
    return truth, truth ^ (rng.random(truth.shape) < 0.15 - better), truth ^ (rng.random(truth.shape) < 0.15)


def verdict(truth, model, baseline, groups=None, **options):
    groups = np.arange(len(truth)) if groups is None else groups
    given = {"measure": "micro_f1", "resamples": 400, "seed": 1}
    return compare_sets(truth, model, baseline, groups, **(given | options))


@pytest.mark.parametrize("measure", ["micro_f1", "macro_f1", "accuracy"])
def test_a_better_model_is_better_and_the_other_way_round(measure):
    truth, model, baseline = drawn(better=0.1)
    found = verdict(truth, model, baseline, measure=measure)
    assert (found.value, found.measure) == ("better", measure)
    turned = verdict(truth, baseline, model, measure=measure)
    assert turned.value == "worse"
    assert turned.difference.value == pytest.approx(-found.difference.value)
    assert turned.p_value == pytest.approx(found.p_value, abs=0.01)
    assert "use TF-IDF" in turned.text


def test_the_same_answers_are_practically_equal():
    truth, model, _ = drawn()
    found = verdict(truth, model, model)
    assert (found.value, found.p_value, found.difference.value) == ("practically equal", 1.0, 0.0)


def test_few_rows_are_undecided_and_say_what_they_could_show():
    truth, model, baseline = drawn(60)
    found = verdict(truth, model, baseline, spread=paired_spread(*drawn(60), np.arange(60), measure="micro_f1"))
    assert found.value == "undecided"
    assert found.text.startswith("Undecided: LLM minus TF-IDF is ")
    assert f"60 rows show a difference of {found.detectable_difference:.1f} points with 80 % power" in found.text


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_the_p_value_is_that_of_all_swaps(average):
    truth, model, baseline = drawn(9, 2, seed=3)
    sums = [label_sums(truth, answers, np.arange(9), seed=0) for answers in (model, baseline)]

    def gain(swapped):
        first, second = (np.where(np.array(swapped)[:, None], *pair).sum(axis=0)[None] for pair in (sums[::-1], sums))
        return float((f1_of(first, average) - f1_of(second, average))[0])

    seen = abs(gain([False] * 9))
    exact = np.mean([abs(gain(swaps)) >= seen - 1e-12 for swaps in itertools.product([False, True], repeat=9)])
    assert verdict(truth, model, baseline, measure=f"{average}_f1").p_value == pytest.approx(exact, abs=0.02)


def test_no_difference_is_rarely_called_one():
    calls = [verdict(*drawn(120, seed=trial), resamples=200).p_value < 0.05 for trial in range(100)]
    assert np.mean(calls) <= 0.1


def test_groups_count_as_one_observation():
    truth, model, baseline = (np.repeat(each, 8, axis=0) for each in drawn(50, better=0.03, seed=2))
    apart, whole = verdict(truth, model, baseline), verdict(truth, model, baseline, np.repeat(np.arange(50), 8))
    assert whole.p_value > 3 * apart.p_value
    assert whole.difference.high - whole.difference.low > 2 * (apart.difference.high - apart.difference.low)


def test_exact_sets_are_compared_as_single_labels_are():
    truth, model, baseline = drawn(better=0.05)
    right, right_baseline = ((answers == truth).all(axis=1) for answers in (model, baseline))
    groups = np.arange(len(truth))
    expected = compare_hits(right, right_baseline, groups, discordance=0.2)
    assert verdict(truth, model, baseline, measure="accuracy", spread=0.2) == expected


def test_the_spread_says_how_many_rows_a_difference_needs():
    rows = 4000
    spread = paired_spread(*drawn(rows, seed=5), np.arange(rows), measure="micro_f1")
    seen = [verdict(*drawn(300, seed=trial), resamples=200).difference.value / 100 for trial in range(60)]
    assert spread / np.sqrt(300) == pytest.approx(np.std(seen), rel=0.25)


def test_micro_f1_is_what_counts_unless_the_metric_says_otherwise():
    chosen = {metric: primary_measure(metric) for metric in ("log_loss", "micro_f1", "macro_f1", "accuracy")}
    assert chosen == {"log_loss": "micro_f1", "micro_f1": "micro_f1", "macro_f1": "macro_f1", "accuracy": "accuracy"}
