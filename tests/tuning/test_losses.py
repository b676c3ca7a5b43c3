import numpy as np
import pytest
import torch

from tagsmith.tuning.losses import held_out_accuracy, held_out_loss, right_rows, summed_loss

LOGITS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
SETS = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) < 0.4
IDS = torch.arange(20) % 4


def test_the_loss_of_label_sets_is_hugging_faces():
    expected = torch.nn.BCEWithLogitsLoss()(LOGITS, SETS.float())
    assert float(summed_loss(LOGITS, SETS, class_weights_C=None)) / 20 == pytest.approx(float(expected))


def test_a_weight_multiplies_the_loss_of_rows_that_have_the_label():
    weights = torch.tensor([1.0, 5.0, 1.0, 1.0])
    plain, weighted = (summed_loss(LOGITS, SETS, class_weights_C=w) for w in (None, weights))
    losses = torch.nn.functional.softplus(-LOGITS[:, 1][SETS[:, 1]])
    assert float(weighted - plain) == pytest.approx(float(4 * losses.sum() / 4), rel=1e-5)


@pytest.mark.parametrize("truth", [SETS, IDS])
def test_micro_batches_of_any_size_have_the_same_sum(truth):
    whole = float(summed_loss(LOGITS, truth, class_weights_C=None))
    parts = sum(float(summed_loss(LOGITS[i : i + 3], truth[i : i + 3], class_weights_C=None)) for i in range(0, 20, 3))
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("truth", [SETS, IDS])
def test_held_out_rows_are_judged_as_training_rows_are(truth):
    probs = (torch.sigmoid(LOGITS) if truth.ndim == 2 else LOGITS.softmax(-1)).double().numpy()
    loss = float(summed_loss(LOGITS, truth, class_weights_C=None)) / 20
    assert held_out_loss(truth.numpy(), probs) == pytest.approx(loss, rel=1e-5)
    assert held_out_accuracy(truth.numpy(), probs) == pytest.approx(float(right_rows(LOGITS, truth).double().mean()))


def test_a_set_is_right_when_all_of_it_is():
    truth = np.array([[True, False], [True, True], [False, False]])
    assert held_out_accuracy(truth, np.array([[0.9, 0.2], [0.9, 0.2], [0.1, 0.2]])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("focal_gamma", [0.0, 2.0])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 5.0, 1.0, 0.5])])
def test_shares_that_are_all_of_one_label_are_as_its_number(weights, focal_gamma):
    options = {"class_weights_C": weights, "focal_gamma": focal_gamma, "label_smoothing": 0.1 * (weights is None)}
    shares = torch.nn.functional.one_hot(IDS, 4).float()
    expected = float(summed_loss(LOGITS, IDS, **options))
    assert float(summed_loss(LOGITS, shares, **options)) == pytest.approx(expected, rel=1e-5)


def test_shares_are_learnt_and_not_the_likeliest_label():
    shares = torch.tensor([[0.7, 0.3]])
    losses = [float(summed_loss(probs.log(), shares)) for probs in torch.tensor([[[0.7, 0.3]], [[0.99, 0.01]]])]
    assert losses[0] < losses[1]
