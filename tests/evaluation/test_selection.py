import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from tagsmith.evaluation.selection import selection_metric
from tagsmith.evaluation.thresholds import fit_thresholds

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 3, 200)
PROBS = RNG.dirichlet(np.ones(3), 200)
SETS = RNG.random((200, 3)) < [0.5, 0.3, 0.1]
CHANCES = np.clip(0.4 * SETS + 0.6 * RNG.random((200, 3)), 0.01, 0.99)


def test_scores_of_single_labels_are_scikit_learns():
    guess = PROBS.argmax(axis=1)
    expected = {
        "log_loss": -log_loss(TRUTH, PROBS),
        "accuracy": np.mean(guess == TRUTH),
        "macro_f1": f1_score(TRUTH, guess, average="macro"),
        "micro_f1": f1_score(TRUTH, guess, average="micro"),
    }
    for name, value in expected.items():
        assert selection_metric(name)(TRUTH, PROBS) == pytest.approx(value), name


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_f1_of_label_sets_is_that_of_fitted_thresholds(average):
    guess = fit_thresholds(CHANCES, SETS, metric=f"{average}_f1").values <= CHANCES
    found = selection_metric(f"{average}_f1", multi_label=True)(SETS, CHANCES)
    assert found == pytest.approx(f1_score(SETS, guess, average=average))


def test_log_loss_and_accuracy_of_label_sets():
    binary = [log_loss(SETS[:, j], CHANCES[:, j]) for j in range(3)]
    assert selection_metric("log_loss", multi_label=True)(SETS, CHANCES) == pytest.approx(-np.mean(binary))
    exact = ((CHANCES >= 0.5) == SETS).all(axis=1).mean()
    assert selection_metric("accuracy", multi_label=True)(SETS, CHANCES) == pytest.approx(exact)
