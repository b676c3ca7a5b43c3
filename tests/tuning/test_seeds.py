import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.evaluation.selection import selection_metric
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.model.heads import begin_at
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import StoppedError, tune
from tagsmith.tuning.methods import copies, trainable
from tagsmith.tuning.seeds import tune_seeds

NAMES = Labels.of(["complaint", "praise"])
SEVERAL = Labels.of(["complaint", "praise"], multi_label=True)
METRIC = selection_metric("log_loss")
SEED = 7


def settings(*, seed=SEED, **tuning):
    quick = {"epochs": 2, "learning_rate": 5e-3, "head_learning_rate": 1e-2, "precision": "fp32"}
    return Config.of({"tuning": quick | tuning, "seed": seed})


@pytest.fixture
def ready(tiny_folder, bert_folder, make_rows):
    """`ready(family, seed=7)`: an untrained classifier and its parts, 48 rows to learn from and 24 to stop by."""
    folders = {"llama": tiny_folder, "bert": bert_folder}

    def make(family="llama", *, seed=SEED, labels=NAMES):
        classifier = build(folders[family], ModelConfig(max_tokens=48), labels=labels, layers=2, seed=seed)
        parts = {}
        for name, count in (("train", 48), ("validation", 24)):
            texts, names = zip(*make_rows(count, seed=count), strict=True)
            truth = labels.encode_sets([[each] for each in names]) if labels.multi_label else labels.encode(names)
            parts[name] = Part(classifier.encoder.encode(texts), truth)
        if labels.multi_label:
            begin_at(classifier.head, parts["train"].truth)
        return classifier, parts

    return make


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights_of(classifier):
    return copies(classifier.named_parameters())


def assert_same_bits(one, other):
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def tuned_seeds(classifier, parts, plan, **options):
    untuned = copies(trainable(classifier, plan.tuning))
    return tune_seeds(classifier, parts, plan, untuned=untuned, metric=METRIC, **options)


@pytest.mark.parametrize(
    ("family", "method"), [("llama", "last_layers"), ("llama", "lora"), ("llama", "head"), ("bert", "full")]
)
def test_each_seed_is_as_it_would_be_alone_and_the_first_one_remains(family, method, ready):
    plan = {"method": method, "blocks": 1}
    classifier, parts = ready(family)
    with threads(1):
        runs = tuned_seeds(classifier, parts, settings(seeds=3, **plan))
    assert [run.seed for run in runs] == [7, 8, 9]
    for i, run in enumerate(runs):
        alone, parts = ready(family, seed=run.seed)
        with threads(1):
            tuned = tune(alone, parts, settings(seed=run.seed, **plan), metric=METRIC)
        assert run.tuned.curves == tuned.curves
        assert_same_bits(run.weights, dict(trainable(alone, settings(**plan).tuning)))
        if i == 0:
            assert_same_bits(weights_of(classifier), weights_of(alone))
    assert runs[1].tuned.curves != runs[2].tuned.curves


@pytest.mark.parametrize(
    "plan", [{}, {"average": "ema"}, {"precision": "bf16", "gradient_checkpointing": True}], ids=str
)
def test_side_by_side_no_seed_knows_of_another(plan, ready):
    of_threads = []
    for number in (1, 3):
        classifier, parts = ready()
        with threads(number):
            of_threads.append(tuned_seeds(classifier, parts, settings(seeds=4, blocks=1, **plan)))
            assert torch.get_num_threads() == number
    for one, other in zip(*(runs[1:] for runs in of_threads), strict=True):
        assert (one.seed, one.tuned.curves) == (other.seed, other.tuned.curves)
        assert_same_bits(one.weights, other.weights)


def test_side_by_side_all_stop_when_asked_and_go_on(ready, tmp_path):
    plan = settings(seeds=3, blocks=1)
    with threads(2):
        classifier, parts = ready()
        unstopped = tuned_seeds(classifier, parts, plan)
        classifier, parts = ready()
        steps = itertools.count(1)
        with pytest.raises(StoppedError):
            tuned_seeds(classifier, parts, plan, checkpoint=tmp_path / "c", stop=lambda: next(steps) >= 10)
        assert len(list((tmp_path / "c").iterdir())) == 3
        classifier, parts = ready()
        resumed = tuned_seeds(classifier, parts, plan, checkpoint=tmp_path / "c", resume=True)
    for one, other in zip(resumed, unstopped, strict=True):
        assert one.tuned.curves == other.tuned.curves
        assert_same_bits(one.weights, other.weights)


def test_side_by_side_what_one_cannot_do_ends_all(ready):
    classifier, parts = ready()
    steps = []

    def listen(event):
        steps.append(event.name)
        if event.values.get("seed") == 8 and event.step == 2:
            raise ZeroDivisionError

    with threads(2), pytest.raises(ZeroDivisionError):
        tuned_seeds(classifier, parts, settings(seeds=5, blocks=1, epochs=20, patience=999), listen=listen)
    assert steps.count("step") < 200


def test_with_several_labels_a_row_each_seed_begins_at_their_odds(ready):
    plan = {"learning_rate": 1e-12, "head_learning_rate": 1e-12, "epochs": 1}
    classifier, parts = ready(labels=SEVERAL)
    odds = classifier.head.score.bias.detach().clone()
    runs = tune_seeds(
        classifier,
        parts,
        settings(seeds=2, **plan),
        untuned=copies(trainable(classifier, settings().tuning)),
        metric=selection_metric("log_loss", multi_label=True),
    )
    for run in runs:
        np.testing.assert_allclose(run.weights["head.score.bias"], odds, atol=1e-6)
    assert not torch.equal(runs[0].weights["head.score.weight"], runs[1].weights["head.score.weight"])


def test_the_frozen_blocks_run_once_for_all_seeds(ready, heard, tmp_path, monkeypatch):
    monkeypatch.setattr("tagsmith.tuning.loop.cache_folder", lambda: tmp_path)
    classifier, parts = ready()
    tuned_seeds(classifier, parts, settings(seeds=3, blocks=1, cache_gib=0), listen=heard.append)
    frozen = [event for event in heard if event.name == "frozen"]
    assert max(event.step for event in frozen) == 72
    assert len([event for event in frozen if event.step == 72]) == 1


def test_events_of_a_further_seed_say_so(ready, heard):
    classifier, parts = ready()
    tuned_seeds(classifier, parts, settings(seeds=2, blocks=1), listen=heard.append)
    steps = [event for event in heard if event.name == "step"]
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6] * 2
    assert [event.values.get("seed") for event in steps] == [None] * 6 + [8] * 6
    assert "Seed 8, 2 of 2." in [event.values.get("text") for event in heard]


@pytest.mark.parametrize("steps", [4, 6, 8, 14])
def test_resuming_equals_not_stopping_whichever_seed_was_at_work(steps, ready, tmp_path, heard):
    plan = settings(seeds=3, method="full")
    classifier, parts = ready("bert")
    unstopped, wanted = tuned_seeds(classifier, parts, plan), weights_of(classifier)
    classifier, parts = ready("bert")
    asked = iter(range(1, 99))
    with pytest.raises(StoppedError):
        tuned_seeds(classifier, parts, plan, checkpoint=tmp_path / "c", stop=lambda: next(asked) == steps)
    classifier, parts = ready("bert")
    torch.manual_seed(99)
    resumed = tuned_seeds(classifier, parts, plan, checkpoint=tmp_path / "c", resume=True, listen=heard.append)
    assert_same_bits(weights_of(classifier), wanted)
    for one, other in zip(resumed, unstopped, strict=True):
        assert one.tuned.curves == other.tuned.curves
        assert_same_bits(one.weights, other.weights)
    assert len([event for event in heard if event.name == "step"]) == 18 - steps, "ended seeds are not tuned again"


def test_more_seeds_may_be_asked_for_when_going_on(ready, tmp_path):
    classifier, parts = ready()
    tuned_seeds(classifier, parts, settings(seeds=2, blocks=1), checkpoint=tmp_path / "c")
    classifier, parts = ready()
    runs = tuned_seeds(classifier, parts, settings(seeds=3, blocks=1), checkpoint=tmp_path / "c", resume=True)
    assert [run.tuned.steps for run in runs] == [6, 6, 6]


def test_a_run_begun_anew_forgets_the_checkpoints_of_an_earlier_one(ready, tmp_path, heard):
    classifier, parts = ready()
    tuned_seeds(classifier, parts, settings(seeds=2, blocks=1), checkpoint=tmp_path / "c")
    asked = iter(range(1, 99))
    classifier, parts = ready()
    with pytest.raises(StoppedError):
        plan = settings(seeds=2, blocks=1, epochs=3)
        tuned_seeds(classifier, parts, plan, checkpoint=tmp_path / "c", stop=lambda: next(asked) == 2)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["seed-7.safetensors"]
