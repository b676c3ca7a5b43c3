import pytest
import torch

from tagsmith.config import ModelConfig, TuningConfig
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning.methods import first_tuned_block, step_arithmetic, swapped, trainable


@pytest.fixture
def classifier(tiny_folder):
    return build(tiny_folder, ModelConfig(max_tokens=48), labels=Labels.of(["a", "b"]), layers=None, seed=0)


@pytest.mark.parametrize(
    ("settings", "start"),
    [({"method": "full"}, None), ({"method": "head"}, 3), ({"blocks": 1}, 2), ({"blocks": 3}, 0)],
)
def test_gradients_begin_at_the_lowest_block_that_learns(settings, start):
    assert first_tuned_block(TuningConfig(**settings), 3) == start


def test_with_all_blocks_the_embeddings_stay_frozen(classifier):
    names = [name for name, _ in trainable(classifier, TuningConfig(blocks=3))]
    assert not [name for name in names if "embed" in name]
    assert {name.split(".")[0] for name in names} == {"head", "final_norm", "blocks"}


@pytest.mark.parametrize("method", ["head", "last_layers", "full"])
def test_swapped_weights_come_back(method, classifier):
    config = TuningConfig(method=method)
    own = {name: weight.detach().clone() for name, weight in trainable(classifier, config)}
    others = {name: torch.full_like(weight, 2.0) for name, weight in own.items()}
    with swapped(classifier, others):
        assert all(bool((weight == 2.0).all()) for _, weight in trainable(classifier, config))
    assert all(torch.equal(weight, own[name]) for name, weight in trainable(classifier, config))


def test_swapped_weights_come_back_after_an_error(classifier):
    before = classifier.head.score.weight.detach().clone()
    with pytest.raises(RuntimeError), swapped(classifier, {"head.score.weight": torch.zeros_like(before)}):
        raise RuntimeError
    assert torch.equal(classifier.head.score.weight, before)


@pytest.mark.parametrize(
    ("settings", "depth", "fp32"),
    [
        ({"method": "head"}, 12, True),
        ({"method": "last_layers", "blocks": 1}, 12, True),
        ({"method": "last_layers", "blocks": 2}, 12, True),
        ({"method": "last_layers", "blocks": 3}, 12, False),
        ({"method": "lora"}, 2, True),
        ({"method": "lora"}, 3, False),
        ({"method": "full"}, 2, False),
    ],
)
def test_few_blocks_step_in_fp32_on_the_cpu(settings, depth, fp32, monkeypatch):
    monkeypatch.setattr("tagsmith.model.device.bf16_is_faster", lambda: True)
    here, there = torch.device("cpu"), torch.device("mps")
    config = TuningConfig(**settings)
    assert step_arithmetic(config, depth=depth, device=here) is (torch.float32 if fp32 else torch.bfloat16)
    asked = config.model_copy(update={"precision": "bf16"})
    assert step_arithmetic(asked, depth=depth, device=here) is torch.bfloat16
    assert step_arithmetic(asked, depth=depth, device=there) is torch.bfloat16
