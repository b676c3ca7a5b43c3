import numpy as np
import pytest

from tagsmith.evaluation.calibration import fit_vector, prior_offset
from tagsmith.evaluation.losses import row_losses
from tagsmith.evaluation.scaling import fit_scaling, with_prior
from tagsmith.model.calibration import Calibration


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def drawn(n, *, seed=0, classes=3, distort=lambda logits: logits):
    """Logits that a distortion has made wrong, and a truth by the right ones."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    truth = (softmax(logits).cumsum(axis=1) > rng.random(n)[:, None]).argmax(axis=1)
    return distort(logits), truth


def fitted(logits, truth, *, scaling="auto", offset=None, groups=None, **more):
    groups = np.arange(len(truth)) if groups is None else groups
    return fit_scaling(logits, truth, groups, offset=offset, scaling=scaling, seed=1, **more)


def test_overconfident_logits_get_a_temperature_and_lose_less_out_of_fold():
    found = fitted(*drawn(400, distort=lambda z: 3 * z))
    assert found.method == "temperature"
    assert found.calibration.temperature == pytest.approx(3, rel=0.2)
    assert found.after < found.before
    assert found.as_dict()["out_of_fold"]["folds"] == 5


def test_calibrated_logits_are_left_alone_or_nearly():
    found = fitted(*drawn(4000))
    assert found.calibration.temperature == pytest.approx(1, abs=0.15)
    assert found.after <= found.before


def test_a_vector_is_taken_where_labels_are_wrong_each_in_its_own_way():
    def distort(logits):
        return logits * [3.0, 1.0, 0.5] + [2.0, 0.0, -2.0]

    found = fitted(*drawn(800, distort=distort))
    assert found.method == "vector"
    logits, truth = drawn(4000, seed=5, distort=distort)
    right = row_losses(truth, softmax(drawn(4000, seed=5)[0])).mean()
    assert row_losses(truth, found.calibration.probabilities(logits)).mean() == pytest.approx(right, abs=0.02)


def test_a_vector_needs_rows_of_each_label():
    logits, truth = drawn(300, distort=lambda z: z * [3.0, 1.0, 0.5])
    truth[truth == 2] = 0
    truth[:10] = 2
    assert fitted(logits, truth).method != "vector"
    assert fitted(logits, truth, scaling="vector").method == "vector"


def test_the_vector_has_the_least_loss_near_it():
    logits, truth = drawn(200, distort=lambda z: z * [2.0, 1.0, 0.7] + [0.5, 0, 0])
    found = fit_vector(logits, truth)

    def penalised(scales, offset):
        calibration = Calibration(found.temperature, tuple(offset), scales=tuple(scales))
        loss = row_losses(truth, calibration.probabilities(logits)).sum()
        return loss + (((scales - 1) ** 2).sum() + ((offset / found.temperature) ** 2).sum()) / 2

    scales, offset = np.array(found.scales), np.array(found.offset)
    best, rng = penalised(scales, offset), np.random.default_rng(0)
    for _ in range(20):
        assert penalised(scales + 0.02 * rng.normal(size=3), offset + 0.02 * rng.normal(size=3)) >= best - 1e-4


def test_few_rows_fit_nothing_and_too_few_for_a_part_are_called_approximate():
    assert fitted(*drawn(20, distort=lambda z: 3 * z)).method == "none"
    found = fitted(*drawn(120, distort=lambda z: 3 * z), exact=False)
    assert found.note.startswith("approximate, no finite-sample guarantee")


def test_a_changed_prior_is_undone_before_the_temperature():
    offset = prior_offset(np.full(3, 1 / 3), np.array([0.8, 0.1, 0.1]))
    logits, truth = drawn(800, distort=lambda z: 2 * (z - offset))
    found = fitted(logits, truth, offset=2 * offset, scaling="temperature")
    assert found.calibration.offset == tuple((2 * offset).tolist())
    assert found.calibration.temperature == pytest.approx(2, rel=0.2)


def test_sets_of_labels_have_one_temperature():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(400, 3))
    truth = rng.random((400, 3)) < 1 / (1 + np.exp(-logits))
    found = fitted(3 * logits, truth)
    assert (found.method, found.calibration.multi_label) == ("temperature", True)
    assert found.calibration.temperature == pytest.approx(3, rel=0.2)


def test_copies_of_a_row_are_never_on_both_sides_of_a_fold():
    # Truth is noise: whoever sees copies believes that he knows.
    rng = np.random.default_rng(0)
    logits, truth, groups = rng.normal(size=(40, 3)), rng.integers(0, 3, 40), np.repeat(np.arange(40), 5)
    found = fitted(logits[groups] * 4, truth[groups], groups=groups)
    assert found.calibration.temperature > 4


def test_another_prior_multiplies_the_odds():
    calibration, logits = Calibration(2.5, (0.3, -0.3, 0.0)), drawn(50)[0]
    old, new = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    moved = with_prior(calibration, prior_offset(old, new)).probabilities(logits)
    expected = calibration.probabilities(logits) * new / old
    np.testing.assert_allclose(moved, expected / expected.sum(axis=1, keepdims=True), rtol=1e-9)
