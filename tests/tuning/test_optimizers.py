import math

import pytest
import torch
from torch import nn

from tagsmith.config import ModelConfig, TuningConfig
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning.losses import summed_binary_cross_entropy, summed_cross_entropy
from tagsmith.tuning.methods import trainable
from tagsmith.tuning.optimizers import build_optimizer, set_rates

LABELS = Labels.of(["a", "b"])


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


def test_the_rate_of_the_backbone_is_given_back():
    config = TuningConfig(learning_rate=0.5, head_learning_rate=2.0, warmup=0.1)
    optimizer = optimizer_of(config)
    assert set_rates(optimizer, step=4, total=100, config=config) == optimizer.param_groups[0]["lr"] == 0.5 * 5 / 11


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


def test_a_cosine_rate_falls_by_half_a_wave():
    found = rates(TuningConfig(learning_rate=1.0, warmup=0.0, schedule="cosine"))
    assert found == pytest.approx([0.5 + 0.5 * math.cos(math.pi * i / 100) for i in range(100)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
def test_the_rate_falls_by_a_factor_from_block_to_block(family, make_folder):
    config = TuningConfig(method="full", learning_rate=1.0, head_learning_rate=7.0, layer_decay=0.5)
    classifier = build(make_folder(family), ModelConfig(max_tokens=48), labels=LABELS, layers=None, seed=0)
    rate_of = {
        id(weight): group["peak"]
        for group in build_optimizer(list(trainable(classifier, config)), config).param_groups
        for weight in group["params"]
    }
    backbone = classifier.backbone
    for height, block in enumerate(backbone.blocks):
        rates_of_block = {rate_of[id(weight)] for weight in block.parameters()}
        assert rates_of_block == {0.5 ** (backbone.depth - 1 - height)}
    assert {rate_of[id(weight)] for weight in backbone.final_norm.parameters()} <= {1.0}
    assert {rate_of[id(weight)] for weight in classifier.head.parameters()} == {7.0}
    below = [rate for weight, rate in rate_of.items() if rate == 0.5**backbone.depth]
    assert below  # the embeddings


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights_C", [None, torch.tensor([1.0, 3.0, 0.5])])
def test_each_loss_is_its_formula(gamma, smoothing, weights_C):
    random = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(5, 3, generator=random)
    truth_B = torch.tensor([0, 1, 2, 1, 1])
    expected = 0.0
    for logits_C, truth in zip(logits_BC, truth_B, strict=True):
        probs_C = logits_C.softmax(0)
        each_C = -probs_C.log() * (torch.ones(3) if weights_C is None else weights_C)
        loss = (1 - smoothing) * each_C[truth] + smoothing * each_C.mean()
        expected += float((1 - probs_C[truth]) ** gamma * loss)
    found = summed_cross_entropy(
        logits_BC, truth_B, class_weights_C=weights_C, focal_gamma=gamma, label_smoothing=smoothing
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_binary_loss_is_its_formula(gamma, smoothing):
    random = torch.Generator().manual_seed(0)
    logits_BC, truth_BC = torch.randn(4, 3, generator=random), torch.tensor([[True, False, True]] * 4)
    expected = 0.0
    for logit, truth in zip(logits_BC.flatten(), truth_BC.flatten(), strict=True):
        p = logit.sigmoid()
        target = float(truth) * (1 - smoothing) + smoothing / 2
        certain = p if truth else 1 - p
        expected += float((1 - certain) ** gamma * -(target * p.log() + (1 - target) * (1 - p).log())) / 3
    found = summed_binary_cross_entropy(logits_BC, truth_BC, focal_gamma=gamma, label_smoothing=smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-5)
