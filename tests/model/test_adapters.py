import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.deployment.adapter import write_adapter
from tagsmith.errors import SettingError
from tagsmith.evaluation.selection import selection_metric
from tagsmith.labels import Labels
from tagsmith.model.adapters import adapter_weights, attach, detach, is_adapted
from tagsmith.model.classifier import Scorer, build
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import tune

NAMES = Labels.of(["complaint", "praise"])
FAMILIES = ["llama", "gpt2", "bert", "modernbert"]
SETTINGS = {"rank": 4, "alpha": 8, "targets": ["all"]}


def classifier_of(folder):
    config = ModelConfig(max_tokens=48)
    return build(folder, config, labels=NAMES, layers=None, seed=0).eval().requires_grad_(False)


def parts_of(classifier, make_rows):
    parts = {}
    for name, count, seed in (("train", 80, 0), ("validation", 40, 1)):
        texts, labels = zip(*make_rows(count, seed=seed), strict=True)
        parts[name] = Part(classifier.encoder.encode(texts), NAMES.encode(labels))
    return parts


def learnt(backbone, *, seed=1):
    """Give attached adapters weights that are not zero."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in adapter_weights(backbone).items():
        if "magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.2, generator=random)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_answers_as_the_attached_one_did(family, dora, make_folder):
    classifier = classifier_of(make_folder(family))
    tokens = classifier.encoder.encode(["the room was lovely", "x", "the waiter was rude and the soup cold"])
    plain = Scorer(classifier).logits(tokens)
    attach(classifier.backbone, **SETTINGS, dora=dora, seed=0)
    np.testing.assert_allclose(Scorer(classifier).logits(tokens), plain, atol=1e-5)
    learnt(classifier.backbone)
    ids_BL, lengths_B = (torch.from_numpy(each) for each in tokens.padded(np.arange(3)))
    with torch.inference_mode():
        attached = classifier(ids_BL, lengths_B).numpy()
    assert np.abs(attached - plain).max() > 2e-4
    np.testing.assert_allclose(Scorer(classifier).logits(tokens), attached, atol=2e-5)
    adapter = detach(classifier.backbone, **SETTINGS, dora=dora)
    assert not any(map(is_adapted, classifier.modules()))
    np.testing.assert_allclose(Scorer(classifier).logits(tokens), attached, atol=2e-5)
    assert {weight.shape[0] for name, weight in adapter.weights.items() if name.endswith("lora_A.weight")} == {4}


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_only_the_weights_under_adapters_and_the_head_change(family, make_folder, make_rows):
    classifier = classifier_of(make_folder(family))
    before = {name: weight.clone() for name, weight in classifier.named_parameters()}
    targets = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}[family]
    tuning = {"method": "lora", "lora_rank": 2, "lora_targets": targets, "epochs": 1, "learning_rate": 1e-2}
    config = Config.of({"tuning": tuning | {"precision": "fp32"}})
    tuned = tune(classifier, parts_of(classifier, make_rows), config, metric=selection_metric("log_loss"))
    changed = {name for name, weight in classifier.named_parameters() if not torch.equal(before[name], weight)}
    assert set(before) == {name for name, _ in classifier.named_parameters()}
    assert {name.split(".")[-2] for name in changed} == {*targets, "score"}
    assert tuned.adapter is not None


def test_adapters_learn_the_toy_task(tiny_folder, make_rows):
    classifier = classifier_of(tiny_folder)
    tuning = {"method": "lora", "lora_rank": 8, "epochs": 8, "learning_rate": 2e-2, "precision": "fp32"}
    parts = parts_of(classifier, make_rows)
    tuned = tune(classifier, parts, Config.of({"tuning": tuning}), metric=selection_metric("log_loss"))
    assert tuned.curves[-1]["train_loss"] < tuned.curves[0]["train_loss"]
    assert min(point["validation_loss"] for point in tuned.curves) < 0.6


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_peft_loads_the_adapter_and_answers_the_same(tiny_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    classifier = classifier_of(tiny_folder)
    attach(classifier.backbone, **SETTINGS, dora=False, seed=0)
    learnt(classifier.backbone)
    adapter = detach(classifier.backbone, **SETTINGS, dora=False)
    write_adapter(tmp_path, adapter)
    trunk = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_folder), tmp_path / "adapter").eval()
    ids_BL = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected = classifier.backbone.trunk(input_ids=ids_BL, use_cache=False).last_hidden_state
        found = trunk(input_ids=ids_BL, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_unknown_target_names_the_layers_that_there_are(tiny_folder):
    classifier = classifier_of(tiny_folder)
    with pytest.raises(SettingError, match=r"names \['q_prj'\], which are no linear layers .* Known: \['down_proj', "):
        attach(classifier.backbone, rank=2, alpha=2, targets=["q_prj"], dora=False, seed=0)
