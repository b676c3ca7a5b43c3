"""Several tunings from one start, their weights averaged."""

import itertools

import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.errors import SettingError
from tagsmith.evaluation.selection import selection_metric
from tagsmith.labels import Labels
from tagsmith.model.classifier import Scorer, build
from tagsmith.pipeline import train
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import StoppedError, tune
from tagsmith.tuning.methods import copies, trainable
from tagsmith.tuning.soup import APART, require_soup, tune_soup

LABELS = Labels.of(["complaint", "praise"])
METRIC = selection_metric("log_loss")
SEED = 7


def settings(*, seed=SEED, **tuning):
    quick = {"epochs": 2, "learning_rate": 5e-3, "head_learning_rate": 1e-2, "precision": "fp32", "blocks": 1}
    return Config.of({"tuning": quick | tuning, "seed": seed})


@pytest.fixture
def ready(tiny_folder, bert_folder, make_rows):
    """`ready(family)`: an untrained classifier and its parts, 48 rows to learn from and 24 to stop by."""
    folders = {"llama": tiny_folder, "bert": bert_folder}

    def make(family="llama"):
        classifier = build(folders[family], ModelConfig(max_tokens=48), labels=LABELS, layers=2, seed=SEED)
        parts = {}
        for name, count in (("train", 48), ("validation", 24)):
            texts, names = zip(*make_rows(count, seed=count), strict=True)
            parts[name] = Part(classifier.encoder.encode(texts), LABELS.encode(names))
        return classifier, parts

    return make


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def always(score):
    """A metric that finds all weights equally good."""
    return lambda truth, probs: score


def weights_of(classifier):
    return copies(classifier.named_parameters())


def assert_same_bits(one, other):
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(("family", "method"), [("llama", "last_layers"), ("bert", "full")])
def test_a_soup_is_the_mean_of_tunings_from_one_start(family, method, ready):
    plan = settings(method=method, soup=3)
    classifier, parts = ready(family)
    tuned = tune_soup(classifier, parts, plan, metric=always(0.5))
    members = []
    for number in range(3):
        alone, parts = ready(family)
        one = settings(method=method, seed=SEED + number * APART)
        first = tune(alone, parts, one, metric=always(0.5))
        members.append(dict(trainable(alone, one.tuning)))
        if number == 0:
            assert tuned.curves == first.curves
    found = dict(trainable(classifier, plan.tuning))
    for name, weight in found.items():
        expected = torch.stack([each[name].double() for each in members]).mean(dim=0).float()
        torch.testing.assert_close(weight, expected, rtol=0, atol=3e-7)
        assert not members[0][name].equal(members[1][name]), "each has an order of its own"
    assert tuned.average is not None and tuned.average["of"] == "3 tunings from one start"
    logits = torch.from_numpy(Scorer(classifier).logits(parts["validation"].tokens))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(parts["validation"].truth)).item()
    assert tuned.validated["validation_loss"] == pytest.approx(loss, rel=1e-4), "what is told is of the mean"


def test_a_worse_mean_is_dropped(ready):
    classifier, parts = ready()
    falling = itertools.count()
    tuned = tune_soup(classifier, parts, settings(soup=2), metric=lambda truth, probs: -next(falling))
    alone, parts = ready()
    falling = itertools.count()
    first = tune(alone, parts, settings(), metric=lambda truth, probs: -next(falling))
    assert_same_bits(weights_of(classifier), weights_of(alone))
    assert tuned.average is None
    assert tuned.validated == first.validated


def test_the_same_seed_makes_the_same_bytes_and_one_is_no_soup(ready):
    made = []
    for _ in range(2):
        classifier, parts = ready()
        tune_soup(classifier, parts, settings(soup=2), metric=METRIC)
        made.append(weights_of(classifier))
    assert_same_bits(*made)
    one, parts = ready()
    tune_soup(one, parts, settings(soup=1), metric=METRIC)
    alone, parts = ready()
    tune(alone, parts, settings(), metric=METRIC)
    assert_same_bits(weights_of(one), weights_of(alone))


@pytest.mark.parametrize("at", [3, 8, 14])
def test_a_soup_that_was_stopped_goes_on(at, ready, tmp_path):
    plan = settings(soup=3)
    classifier, parts = ready()
    whole = tune_soup(classifier, parts, plan, metric=METRIC)
    unstopped = weights_of(classifier)
    classifier, parts = ready()
    steps = itertools.count(1)
    options = {"metric": METRIC, "checkpoint": tmp_path / "c"}
    with pytest.raises(StoppedError):
        tune_soup(classifier, parts, plan, **options, stop=lambda: next(steps) >= at)
    classifier, parts = ready()
    told = []
    resumed = tune_soup(classifier, parts, plan, **options, resume=True, listen=told.append)
    assert sum(event.name == "step" for event in told) == 18 - at, "a member that had ended is not tuned again"
    assert_same_bits(weights_of(classifier), unstopped)
    assert (resumed.curves, resumed.average) == (whole.curves, whole.average)


def test_steps_of_further_members_say_their_seed(ready):
    classifier, parts = ready()
    told = []
    tune_soup(classifier, parts, settings(soup=2), metric=METRIC, listen=told.append)
    steps = [event.values.get("seed") for event in told if event.name == "step"]
    assert np.unique([seed for seed in steps if seed is not None]).tolist() == [SEED + APART]
    assert steps.count(None) == len(steps) // 2
    assert sum(event.name == "evaluated" for event in told) == len({e.step for e in told if e.name == "evaluated"})


@pytest.mark.parametrize("method", ["head", "lora", "contrastive"])
def test_what_has_no_mean_is_refused(method):
    with pytest.raises(SettingError, match="soup"):
        require_soup(settings(method=method, soup=2))


def test_a_training_refuses_it_before_its_first_step(toy_csv, tmp_path, quick_config):
    told = []
    with pytest.raises(SettingError, match="tuning.soup is 2"):
        train(
            toy_csv, out=tmp_path / "b", config=quick_config(tuning={"method": "lora", "soup": 2}), listen=told.append
        )
    assert not [event for event in told if event.name == "step"]
    assert not (tmp_path / "b").exists()
