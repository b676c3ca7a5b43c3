import pytest
import torch
from torch import nn

from tagsmith.config import TuningConfig
from tagsmith.tuning.losses import summed_cross_entropy
from tagsmith.tuning.optimizers import build_optimizer, set_rates


def optimizer_of(config):
    body, head = nn.Linear(3, 3), nn.Linear(3, 2, bias=False)
    named = [("head.weight", head.weight), ("blocks.0.weight", body.weight), ("blocks.0.bias", body.bias)]
    return build_optimizer(named, config)


def rates(config, total=100):
    optimizer = optimizer_of(config)
    found = []
    for step in range(total):
        set_rates(optimizer, step=step, total=total, config=config)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_rises_and_then_falls_in_a_line_to_nearly_zero():
    found = rates(TuningConfig(learning_rate=1.0, warmup=0.1))
    assert found[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert found[10:] == pytest.approx([(100 - i) / 90 for i in range(10, 100)])
    assert max(found) == 1.0


def test_a_constant_rate_stays_after_the_rise():
    found = rates(TuningConfig(learning_rate=1.0, warmup=0.1, schedule="constant"))
    assert found[10:] == [1.0] * 90


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert rates(TuningConfig(learning_rate=0.5, warmup=0.0))[0] == 0.5


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_plan_of_few_steps_learns_at_each(warmup, total):
    assert all(0 < rate <= 1 for rate in rates(TuningConfig(learning_rate=1.0, warmup=warmup), total))


def test_matrices_decay_and_norms_and_biases_do_not():
    groups = optimizer_of(TuningConfig(weight_decay=0.3)).param_groups
    assert {(group["weight_decay"], group["params"][0].ndim) for group in groups} == {(0.3, 2), (0.0, 1)}


@pytest.mark.parametrize(("own", "wanted"), [(0.7, 0.7), (None, 0.1)])
def test_the_head_has_its_own_rate_or_that_of_the_rest(own, wanted):
    groups = optimizer_of(TuningConfig(learning_rate=0.1, head_learning_rate=own)).param_groups
    assert [group["peak"] for group in groups] == [0.1, 0.1, wanted]


def test_the_loss_is_summed_over_rows_and_weighed_by_label():
    logits, truth = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])
    each = [float(summed_cross_entropy(logits[i : i + 1], truth[i : i + 1], class_weights_C=None)) for i in (0, 1)]
    assert float(summed_cross_entropy(logits, truth, class_weights_C=None)) == pytest.approx(sum(each))
    weights = torch.tensor([3.0, 1.0])
    assert float(summed_cross_entropy(logits, truth, class_weights_C=weights)) == pytest.approx(3 * sum(each))


def test_the_loss_is_computed_in_fp32():
    logits = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    assert summed_cross_entropy(logits, torch.tensor([0]), class_weights_C=None).dtype is torch.float32
