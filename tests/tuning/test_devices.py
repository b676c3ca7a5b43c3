"""What tuning does on another device than the CPU, by a stand-in that refuses tensors of two devices; and in fp16."""

import copy
import json
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.deployment.bundle import load
from tagsmith.labels import Labels
from tagsmith.model.classifier import Scorer, build
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import StoppedError, tune
from tagsmith.tuning.losses import held_out_loss

NAMES = Labels.of(["complaint", "praise"])
PLAN = {"epochs": 1, "precision": "fp32", "cache_gib": 0, "learning_rate": 1e-3, "batch_size": 8}


@pytest.fixture(scope="module")
def stand_in():
    """tests/model/stand_in.py, which no test can import by its name."""
    spec = spec_from_file_location("stand_in", Path(__file__).parents[1] / "model" / "stand_in.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ready(tiny_folder, gpt2_folder, bert_folder, make_rows):
    """`ready(family, several=False, **model)`: an untrained classifier and its parts.

    It drops nothing: which numbers are zero is drawn by each kind of device in its own way.
    """
    folders = {"llama": tiny_folder, "gpt2": gpt2_folder, "bert": bert_folder}

    def make(family, *, several=False, **model):
        labels = Labels(NAMES.names, several)
        classifier = build(folders[family], ModelConfig(**{"max_tokens": 48} | model), labels=labels, layers=2, seed=7)
        for layer in classifier.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        parts = {}
        for name, count, offset in (("train", 36, 0), ("validation", 12, 1)):
            texts, names = zip(*make_rows(count, seed=offset), strict=True)
            truth = NAMES.encode(names)
            parts[name] = Part(classifier.encoder.encode(texts), np.eye(2, dtype=bool)[truth] if several else truth)
        return classifier, parts

    return make


def tuned_on(where, classifier, parts, **options):
    """Weights, validation losses and logits after a tuning of a copy, all on the CPU again."""
    plan = Config.of({"tuning": PLAN | options.pop("plan", {}), "seed": 7})
    with where as device:
        own = copy.deepcopy(classifier).to(device)
        tuned = tune(own, parts, plan, metric=lambda truth, probs: -held_out_loss(truth, probs), **options)
        logits = Scorer(own).logits(parts["validation"].tokens)
        own.cpu()
    assert {type(weight) for weight in own.state_dict().values()} == {torch.Tensor}
    return own.state_dict(), [point["validation_loss"] for point in tuned.curves], logits


def assert_alike(one, other):
    for name, weight in one[0].items():
        torch.testing.assert_close(weight, other[0][name], atol=2e-4, rtol=0)
    np.testing.assert_allclose(one[1], other[1], atol=1e-6)
    np.testing.assert_allclose(one[2], other[2], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "plan", "options"),
    [
        ("llama", {"method": "full", "average": "best", "average_of": 2}, {"class_weights": np.array([1.0, 2.0])}),
        ("llama", {"method": "last_layers", "blocks": 1, "start": "probe", "gradient_checkpointing": True}, {}),
        ("gpt2", {"method": "last_layers", "blocks": 1, "average": "ema"}, {}),
        ("bert", {"method": "full", "layer_decay": 0.5}, {}),
        ("llama", {"method": "lora", "lora_rank": 2}, {}),
        ("gpt2", {"method": "head"}, {}),
    ],
    ids=lambda value: value.get("method", "") if isinstance(value, dict) else value,
)
def test_another_device_learns_what_the_cpu_does(family, plan, options, ready, stand_in):
    classifier, parts = ready(family)
    alike = [
        tuned_on(where, classifier, parts, plan=plan, **options)
        for where in (nullcontext(torch.device("cpu")), stand_in.device())
    ]
    assert_alike(*alike)


@pytest.mark.parametrize(
    "model",
    [{"several": True}, {"max_tokens": 8, "long_texts": "windows"}, {"pooling": "mean", "head": "mlp"}],
    ids=str,
)
def test_so_do_several_labels_windows_and_other_heads(model, ready, stand_in):
    classifier, parts = ready("llama", **model)
    both = nullcontext(torch.device("cpu")), stand_in.device()
    assert_alike(*(tuned_on(where, classifier, parts, plan={"blocks": 1}) for where in both))


def test_a_stopped_tuning_goes_on_there(ready, stand_in, tmp_path):
    classifier, parts = ready("bert")
    plan = {"method": "full", "average": "ema"}
    whole = tuned_on(stand_in.device(), classifier, parts, plan=plan)
    asked = []
    options = {"plan": plan, "checkpoint": tmp_path / "c"}
    with pytest.raises(StoppedError):
        tuned_on(stand_in.device(), classifier, parts, stop=lambda: asked.append(0) or len(asked) == 3, **options)
    resumed = tuned_on(stand_in.device(), classifier, parts, resume=True, **options)
    assert_alike(whole, resumed)


def test_a_run_there_saves_and_measures_as_on_the_cpu(
    llama_bundle, toy_csv, quick_config, stand_in, monkeypatch, tmp_path
):
    from tagsmith.pipeline import train

    for place in ("tagsmith.model.device", "tagsmith.deployment.torch_engine"):
        monkeypatch.setattr(f"{place}.choose_device", lambda wanted: stand_in.DEVICE)
    with stand_in.device():
        train(toy_csv, out=tmp_path / "bundle", config=quick_config())
    monkeypatch.undo()
    ours, there = load(llama_bundle), load(tmp_path / "bundle")
    texts = ["the soup was lovely", "a dreadful, broken lamp"]
    np.testing.assert_allclose(ours.predict_proba(texts), there.predict_proba(texts), atol=1e-4)
    assert ours.report["test"]["accuracy"] == there.report["test"]["accuracy"]
    assert json.loads((tmp_path / "bundle" / "run.json").read_text())["environment"]["device"] == "meta"


def test_the_stand_in_refuses_tensors_of_two_devices(stand_in):
    with stand_in.device() as device:
        there = torch.ones(3, device=device)
        assert (there + there).cpu().tolist() == [2.0, 2.0, 2.0]
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="two devices"):
            there[torch.tensor([0, 1])]


# ---- fp16


def test_fp16_learns_as_fp32_does(ready):
    classifier, parts = ready("llama")
    here = nullcontext(torch.device("cpu"))
    losses = [tuned_on(here, classifier, parts, plan={"method": "full", "precision": p})[1] for p in ("fp32", "fp16")]
    np.testing.assert_allclose(*losses, atol=2e-3)


def test_steps_whose_gradients_overflow_move_nothing_and_are_told(ready, heard, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr("torch.amp.GradScaler", lambda kind, enabled: scaler(kind, enabled=enabled, init_scale=2.0**30))
    classifier, parts = ready("llama")
    before = copy.deepcopy(classifier.state_dict())
    plan = {"method": "full", "precision": "fp16", "batch_size": 18}
    after, _, _ = tuned_on(nullcontext(torch.device("cpu")), classifier, parts, plan=plan, listen=heard.append)
    told = [event.values["text"] for event in heard if event.name == "note"]
    assert told == ["2 steps moved nothing: gradients overflowed in fp16; their scale was lowered."]
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- compiling


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it compiles
def test_compiled_blocks_learn_the_same(ready):
    classifier, parts = ready("llama")
    here = nullcontext(torch.device("cpu"))
    plans = ({"method": "full", "compile": compiled} for compiled in (False, True))
    assert_alike(*(tuned_on(here, classifier, parts, plan=plan) for plan in plans))
