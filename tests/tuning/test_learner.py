import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.errors import ResourceError
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning.learner import Learner, Part
from tagsmith.tuning.loop import Loop, StoppedError, tune
from tagsmith.tuning.methods import copies, trainable

NAMES = Labels.of(["complaint", "praise"])


@pytest.fixture
def ready(tiny_folder, make_rows):
    """`ready()`: an untrained classifier and its parts."""

    def make():
        classifier = build(tiny_folder, ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=7)
        parts = {}
        for seed, (name, count) in enumerate({"train": 80, "validation": 20}.items()):
            texts, labels = zip(*make_rows(count, seed=seed), strict=True)
            parts[name] = Part(classifier.encoder.encode(texts), NAMES.encode(labels))
        return classifier, parts

    return make


def settings(**tuning):
    quick = {"epochs": 1, "learning_rate": 5e-3, "precision": "fp32", "tokens_per_batch": 128}
    return Config.of({"tuning": quick | tuning, "seed": 7})


def short_of_memory(monkeypatch, *, above, error=None):
    """Let micro-batches of more than so many tokens find no memory, half-way: some gradients are there already."""
    own = Learner._backward

    def backward(self, micro, *, rows_in_step):
        found = own(self, micro, rows_in_step=rows_in_step)
        if self.part.tokens.sizes[micro].sum() > above:
            raise error or RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 12 bytes."
            )
        return found

    monkeypatch.setattr(Learner, "_backward", backward)


def tuned(ready, config, **options):
    classifier, parts = ready()
    curves = tune(classifier, parts, config, metric=lambda truth, probs: float(probs[:, 0].mean()), **options).curves
    return copies(trainable(classifier, config.tuning)), [point["validation_loss"] for point in curves]


@pytest.mark.parametrize(
    "error", [None, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_micro_batches_are_halved_once_where_memory_runs_out(error, ready, monkeypatch, heard):
    _, expected = tuned(ready, settings())
    short_of_memory(monkeypatch, above=70, error=error)
    _, found = tuned(ready, settings(), listen=heard.append)
    notes = [event.values["text"] for event in heard if event.name == "note"]
    assert [note for note in notes if "micro-batches have 64 tokens from here on instead of 128" in note] == notes
    assert len(notes) == 1
    assert found == pytest.approx(expected, rel=1e-3)


def test_memory_that_runs_out_twice_says_what_needs_less(ready, monkeypatch):
    short_of_memory(monkeypatch, above=40)
    with pytest.raises(
        ResourceError, match=r"128 tokens .* and again with 64\. Take tuning\.tokens_per_batch = 32, or"
    ):
        tuned(ready, settings())


def test_another_failure_is_no_lack_of_memory(ready, monkeypatch):
    short_of_memory(monkeypatch, above=40, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        tuned(ready, settings())


def test_a_resumed_run_keeps_the_smaller_micro_batches(ready, monkeypatch, tmp_path):
    short_of_memory(monkeypatch, above=70)
    whole, _ = tuned(ready, settings())
    stops = iter([False, False, True])
    with pytest.raises(StoppedError):
        tuned(ready, settings(), checkpoint=tmp_path, stop=lambda: next(stops))
    monkeypatch.undo()
    resumed, _ = tuned(ready, settings(), checkpoint=tmp_path, resume=True)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_gradients_do_not_depend_on_the_size_of_micro_batches(ready):
    gradients = []
    for size in (32, 1024):
        classifier, parts = ready()
        config = settings(tokens_per_batch=size, clip=1e9).tuning
        weights = [weight for _, weight in trainable(classifier, config)]
        optimizer = torch.optim.SGD(weights, lr=0.0)
        options = {"class_weights_C": None, "states": None, "start": None}
        learner = Learner(classifier, parts["train"], config, weights=weights, optimizer=optimizer, **options)
        learner.step(np.arange(16))
        gradients.append([weight.grad for weight in weights])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("blocks", "dtype"), [(2, torch.float32), (3, torch.bfloat16)])
def test_few_blocks_learn_in_fp32_from_states_in_bf16(blocks, dtype, ready, monkeypatch):
    monkeypatch.setattr("tagsmith.model.device.bf16_is_faster", lambda: True)
    classifier, parts = ready()
    config = settings(method="last_layers", blocks=blocks, precision="auto")
    loop = Loop(classifier, parts, config, metric=lambda truth, probs: 0.0)
    for event in loop.events():
        if event.name == "step":
            break
    assert loop.learner.dtype is dtype
    assert all(states.hidden_TD.dtype is torch.bfloat16 for states in loop.tuned.states.values())
