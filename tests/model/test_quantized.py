import sys

import numpy as np
import pytest
import torch
from torch import nn

from tagsmith.config import Config, ModelConfig
from tagsmith.errors import SettingError
from tagsmith.labels import Labels
from tagsmith.model.adapters import adapted_layers, adapter_weights, attach, detach
from tagsmith.model.classifier import build
from tagsmith.model.quantized import is_quantized, quantize, restored
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import tune
from tagsmith.tuning.losses import held_out_loss

NAMES = Labels.of(["complaint", "praise"])
PLAN = {"method": "lora", "lora_bits": 4, "lora_rank": 4, "precision": "fp32", "epochs": 2}
RATES = {"learning_rate": 5e-3, "head_learning_rate": 1e-2}


@pytest.fixture
def llama(tiny_folder):
    return build(tiny_folder, ModelConfig(max_tokens=48), labels=NAMES, layers=2, seed=7).eval()


def logits_of(classifier, texts=("a lovely room", "the soup was stale")):
    ids_BL, lengths = classifier.encoder.encode(list(texts)).padded(np.arange(len(texts)))
    with torch.no_grad():
        return classifier(torch.from_numpy(ids_BL), torch.from_numpy(lengths))


def test_a_missing_library_names_the_extra(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SettingError, match=r"pip install \"tagsmith\[qlora\]\""):
        quantize(llama.backbone.trunk, adapted_layers(llama.backbone, ["all"]), dtype=torch.float32)


def test_layers_that_lie_the_other_way_round_are_refused(gpt2_folder):
    pytest.importorskip("bitsandbytes")
    gpt2 = build(gpt2_folder, ModelConfig(max_tokens=48), labels=NAMES, layers=1, seed=7)
    with pytest.raises(SettingError, match="is a Conv1D"):
        quantize(gpt2.backbone.trunk, adapted_layers(gpt2.backbone, ["all"]), dtype=torch.float32)


def test_a_weight_of_4_bits_is_near_the_one_that_it_was():
    pytest.importorskip("bitsandbytes")
    plain = nn.ModuleDict({"layer": nn.Linear(64, 32)})
    before = plain["layer"]
    quantize(plain, ["layer"], dtype=torch.float32)
    assert is_quantized(plain["layer"]) and not is_quantized(before)
    after = restored(plain["layer"])
    assert plain["layer"].weight.numel() * 2 == before.weight.numel()
    error = (after.weight - before.weight).abs().max() / before.weight.abs().max()
    assert 1e-3 < error < 0.16  # half of the widest gap between two of the 16 levels
    states = torch.randn(5, 64)
    torch.testing.assert_close(after(states), plain["layer"](states))


@pytest.mark.parametrize("dora", [False, True])
def test_merging_changes_no_answer(dora, llama):
    pytest.importorskip("bitsandbytes")
    settings = {"rank": 4, "alpha": 8, "targets": ["all"], "dora": dora}
    quantize(llama.backbone.trunk, adapted_layers(llama.backbone, ["all"]), dtype=torch.float32)
    attach(llama.backbone, **settings, seed=7)
    for name, weight in adapter_weights(llama.backbone).items():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    attached = logits_of(llama)
    detach(llama.backbone, **settings)
    assert {type(layer) for layer in adapted_layers(llama.backbone, ["all"]).values()} == {nn.Linear}
    assert {weight.dtype for weight in llama.parameters()} == {torch.float32}
    torch.testing.assert_close(logits_of(llama), attached, atol=1e-5, rtol=1e-4)


def test_adapters_learn_on_4_bits(llama, make_rows):
    pytest.importorskip("bitsandbytes")
    parts = {}
    for name, count, offset in (("train", 120, 0), ("validation", 40, 1)):
        texts, names = zip(*make_rows(count, seed=offset), strict=True)
        parts[name] = Part(llama.encoder.encode(texts), NAMES.encode(names))
    plan = Config.of({"tuning": PLAN | RATES, "seed": 7})
    tuned = tune(llama, parts, plan, metric=lambda truth, probs: -held_out_loss(truth, probs))
    assert min(point["validation_loss"] for point in tuned.curves) < 0.68
    assert tuned.adapter is not None
    assert not any(map(is_quantized, llama.modules()))
