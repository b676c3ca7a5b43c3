import numpy as np
import pytest

from tagsmith.errors import SettingError
from tagsmith.evaluation.goals import Goal, reach_by_abstaining, reach_in_sets
from tagsmith.labels import Labels

ABC = Labels(("a", "b", "c"), multi_label=True)


def sets(n, *, seed, rates=(0.4, 0.3, 0.03)):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 3)) < np.array(rates)
    logits = 2.5 * (truth - 0.5) + rng.normal(size=(n, 3)) + np.log(np.array(rates))
    return truth, 1 / (1 + np.exp(-logits))


def reached(goal, *, seed=0, n=1500, otherwise=0.5):
    truth, probs = sets(n, seed=seed)
    beforehand = sets(n, seed=seed + 1000)[1]
    return reach_in_sets(goal, probs, truth, beforehand=beforehand, otherwise=np.full(3, otherwise))


@pytest.mark.parametrize("text", ["precision>=0.95", " recall >= .9 "])
def test_goals_are_read(text):
    assert Goal.parse(text).measure == text.split(">")[0].strip()


@pytest.mark.parametrize("text", ["precision>0.9", "f1>=0.9", "precision>=2", "precision>=0.95 and recall>=0.1"])
def test_other_goals_are_refused(text):
    with pytest.raises(SettingError, match="precision>=X or recall>=X"):
        Goal.parse(text)


def test_a_precision_is_reached_for_the_labels_that_have_rows():
    found = reached(Goal("precision", 0.9))
    assert found.proven.tolist() == [True, True, False]
    assert found.values[2] == 0.5
    truth, probs = sets(20_000, seed=5)
    for i in (0, 1):
        kept = probs[:, i] >= found.values[i]
        assert truth[kept, i].mean() >= 0.9
        assert kept.mean() > 0.05
    told = found.as_dict(ABC)
    assert (told["proven"], told["unproven"]) == (["a", "b"], ["c"])
    assert "confidence of 95 % for all of them together" in told["guarantee"]


def test_a_recall_is_reached():
    found = reached(Goal("recall", 0.9))
    truth, probs = sets(20_000, seed=6)
    for i in np.flatnonzero(found.proven):
        assert (probs[truth[:, i], i] >= found.values[i]).mean() >= 0.9
    assert found.proven[:2].all()
    assert found.values[0] > 0.05


def test_goals_for_all_labels_together_are_broken_no_more_often_than_promised():
    broken = 0
    truth, probs = sets(40_000, seed=99)
    for trial in range(80):
        found = reached(Goal("precision", 0.9), seed=trial, n=600)
        kept = probs >= found.values
        broken += any(truth[kept[:, i], i].mean() < 0.9 for i in np.flatnonzero(found.proven))
    assert broken <= 9  # 80 trials at 5 %


def test_labels_of_single_label_texts_are_answered_where_they_are_sure_enough():
    rng = np.random.default_rng(0)

    def texts(n):
        truth = rng.integers(0, 2, n)
        logits = rng.normal(size=(n, 2)) * [1.0, 1.0] + 3 * (truth[:, None] == np.arange(2))
        powers = np.exp(logits)
        return truth, powers / powers.sum(axis=1, keepdims=True)

    truth, probs = texts(800)
    found = reach_by_abstaining(Goal("precision", 0.95), probs, truth, beforehand=texts(800)[1])
    assert found.proven.all()
    with pytest.raises(SettingError, match="not their recall"):
        reach_by_abstaining(Goal("recall", 0.95), probs, truth, beforehand=probs)
    few = reach_by_abstaining(Goal("precision", 0.99), probs[:100], truth[:100], beforehand=probs)
    assert np.isinf(few.values).all()
    assert not few.proven.any()
