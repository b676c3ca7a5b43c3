import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig, TuningConfig
from tagsmith.errors import SettingError
from tagsmith.evaluation.selection import selection_metric
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning.averaging import Best
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import StoppedError, tune

NAMES = Labels.of(["complaint", "praise"])
METRIC = selection_metric("log_loss")


def one_weight():
    return torch.nn.Parameter(torch.zeros(2))


def best_of(weight, **tuning):
    return Best([("w", weight)], TuningConfig.model_validate(tuning))


def set_to(weight, value):
    with torch.no_grad():
        weight.fill_(value)


def settings(**tuning):
    quick = {"epochs": 3, "learning_rate": 5e-3, "head_learning_rate": 1e-2, "precision": "fp32", "method": "full"}
    return Config.of({"tuning": quick | tuning, "seed": 7})


@pytest.fixture
def ready(bert_folder, make_rows):
    """An untrained BERT, which has dropout, and its parts: 3 steps an epoch."""

    def make():
        classifier = build(bert_folder, ModelConfig(max_tokens=48), labels=NAMES, layers=2, seed=7)
        parts = {}
        for name, count in (("train", 48), ("validation", 24)):
            texts, names = zip(*make_rows(count, seed=count), strict=True)
            parts[name] = Part(classifier.encoder.encode(texts), NAMES.encode(names))
        return classifier, parts

    return make


def test_the_moving_average_follows_the_first_steps_faster():
    weight = one_weight()
    best = best_of(weight, average="ema", ema_decay=0.5)
    wanted, values = 0.0, [4.0, 8.0, 2.0, 6.0]
    for i, value in enumerate(values, start=1):
        set_to(weight, value)
        best.move()
        decay = min(0.5, (1 + i) / (10 + i))
        wanted = decay * wanted + (1 - decay) * value
    weights, name = best.average()
    np.testing.assert_allclose(weights["w"], wanted, rtol=1e-6)
    assert name == "the moving average of 4 steps"


def test_the_mean_is_that_of_the_best_evaluations_and_of_no_others():
    weight = one_weight()
    best = best_of(weight, average="best", average_of=3)
    was_best = []
    for step, score in enumerate([0.1, 0.5, float("nan"), 0.4, 0.5, 0.2], start=1):
        set_to(weight, step)
        was_best.append(best.score(score, step=step))
    assert was_best == [True, True, False, False, False, False]
    assert (best.best.step, best.best.weights["w"].tolist()) == (2, [2.0, 2.0])
    weights, name = best.average()
    np.testing.assert_allclose(weights["w"], (2 + 4 + 5) / 3)
    assert name == "the mean of the steps 2, 4, 5"


def test_one_evaluation_has_no_mean():
    best = best_of(one_weight(), average="best")
    assert best.average() is None
    best.score(1.0, step=1)
    assert best.average() is None


@pytest.mark.parametrize("average", ["ema", "best"])
def test_an_average_changes_nothing_but_what_remains(average, ready):
    classifier, parts = ready()
    plain = tune(classifier, parts, settings(), metric=METRIC)
    classifier, parts = ready()
    averaged = tune(classifier, parts, settings(average=average), metric=METRIC)
    assert averaged.curves == plain.curves
    assert averaged.best_step == plain.best_step
    assert plain.average is None


@pytest.mark.parametrize("average", ["ema", "best"])
@pytest.mark.parametrize(("last", "is_kept"), [(0.95, True), (0.9, False)])
def test_the_average_remains_where_it_scores_better_than_the_best_step(average, last, is_kept, ready, heard):
    classifier, parts = ready()
    scores = iter([0.5, 0.9, 0.6, last])
    plan = settings(average=average, epochs=3, evaluations_per_epoch=1)
    tuned = tune(classifier, parts, plan, metric=lambda truth, probs: next(scores), listen=heard.append)
    assert tuned.average["kept"] is is_kept
    assert tuned.average["score"] == last
    assert tuned.best_step == 6
    remaining = tuned.average if is_kept else tuned.curves[1]
    assert tuned.validated == {name: remaining[name] for name in ("validation_loss", "validation_accuracy")}
    seen = []
    tune(
        classifier,
        parts,
        settings(epochs=1, learning_rate=1e-12, head_learning_rate=1e-12, evaluations_per_epoch=1),
        metric=lambda truth, probs: seen.append(probs) or 0.0,
    )
    loss = -np.log(seen[0][np.arange(24), parts["validation"].truth]).mean()
    assert loss == pytest.approx(tuned.validated["validation_loss"], abs=1e-5), "these are the weights that remain"
    assert any("is kept" in str(event.values.get("text")) for event in heard) is is_kept


@pytest.mark.parametrize("average", ["ema", "best"])
@pytest.mark.parametrize("steps", [1, 5, 9])
def test_resuming_an_averaged_tuning_equals_not_stopping(average, steps, ready, tmp_path):
    plan = settings(average=average, average_of=2, ema_decay=0.7)
    classifier, parts = ready()
    unstopped = tune(classifier, parts, plan, metric=METRIC)
    wanted = {name: weight.detach().clone() for name, weight in classifier.named_parameters()}
    classifier, parts = ready()
    asked = iter(range(1, 99))
    with pytest.raises(StoppedError):
        tune(classifier, parts, plan, metric=METRIC, checkpoint=tmp_path / "c", stop=lambda: next(asked) == steps)
    classifier, parts = ready()
    resumed = tune(classifier, parts, plan, metric=METRIC, checkpoint=tmp_path / "c", resume=True)
    assert (resumed.average, resumed.curves) == (unstopped.average, unstopped.curves)
    assert all(torch.equal(weight, wanted[name]) for name, weight in classifier.named_parameters())


def test_a_probe_has_no_steps_to_average(ready):
    classifier, parts = ready()
    with pytest.raises(SettingError, match=r"tuning\.average is 'ema', but a linear head alone is fitted at once"):
        tune(classifier, parts, settings(average="ema", method="head"), metric=METRIC)
