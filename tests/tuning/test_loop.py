from dataclasses import replace

import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.errors import DataError, SettingError
from tagsmith.evaluation.selection import selection_metric
from tagsmith.labels import Labels
from tagsmith.model.classifier import Scorer, build
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import StoppedError, tune
from tagsmith.tuning.losses import held_out_loss

NAMES = Labels.of(["complaint", "praise"])
METRIC = selection_metric("log_loss")
QUICK = {"epochs": 3, "learning_rate": 5e-3, "head_learning_rate": 1e-2, "precision": "fp32"}


def settings(**tuning):
    return Config.of(
        {"tuning": QUICK | tuning, "seed": tuning.pop("seed", 7)}
        if "seed" in tuning
        else {"tuning": QUICK | tuning, "seed": 7}
    )


@pytest.fixture
def ready(tiny_folder, gpt2_folder, bert_folder, make_rows):
    """`ready(family)`: an untrained classifier and its parts, 120 rows to learn from and 40 to stop by."""
    folders = {"llama": tiny_folder, "gpt2": gpt2_folder, "bert": bert_folder}

    def make(family="llama", *, seed=7, rows=120, pooling="auto", head="linear"):
        config = ModelConfig(max_tokens=48, pooling=pooling, head=head)
        classifier = build(folders[family], config, labels=NAMES, layers=None, seed=seed)  # in the mode it comes in
        parts = {}
        for name, count, offset in (("train", rows, 0), ("validation", 40, 1)):
            texts, labels = zip(*make_rows(count, seed=offset), strict=True)
            parts[name] = Part(classifier.encoder.encode(texts), NAMES.encode(labels))
        return classifier, parts

    return make


def weights_of(classifier):
    return {name: weight.detach().clone() for name, weight in classifier.named_parameters()}


def assert_same_bits(one, other):
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def stop_after(steps):
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked == steps

    return stop


@pytest.mark.parametrize("method", ["last_layers", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_loss_falls(family, method, ready):
    classifier, parts = ready(family)
    tuned = tune(classifier, parts, settings(method=method, epochs=4), metric=METRIC)
    assert min(point["validation_loss"] for point in tuned.curves) < 0.69
    assert tuned.curves[-1]["train_loss"] < tuned.curves[0]["train_loss"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_linear_head_alone_is_fitted_as_a_probe(family, ready):
    """No steps: the best head for these states is computed. A random BERT's say next to nothing."""
    classifier, parts = ready(family)
    tuned = tune(classifier, parts, settings(method="head"), metric=METRIC)
    assert (tuned.steps, len(tuned.curves)) == (0, 1)
    probs = classifier.calibration.probabilities(Scorer(classifier).logits(parts["validation"].tokens))
    assert held_out_loss(parts["validation"].truth, probs) == pytest.approx(tuned.curves[0]["validation_loss"])
    assert tuned.curves[0]["train_loss"] < 0.69


@pytest.mark.parametrize("method", ["last_layers", "full"])
def test_tuning_that_starts_at_the_probe_begins_lower(method, ready):
    losses, still = {}, {"learning_rate": 1e-9, "head_learning_rate": 1e-9, "epochs": 1}
    for start in ("random", "probe"):
        classifier, parts = ready(rows=400)
        tuned = tune(classifier, parts, settings(method=method, start=start, **still), metric=METRIC)
        losses[start] = tuned.curves[0]["train_loss"]
    assert losses["probe"] < losses["random"] - 0.02


def test_a_probe_cannot_start_an_mlp_head(ready):
    classifier, parts = ready(head="mlp")
    with pytest.raises(SettingError, match=r"tuning\.start is 'probe', but the head is not linear"):
        tune(classifier, parts, settings(start="probe"), metric=METRIC)


def test_a_loss_that_is_no_number_stops_tuning_and_keeps_the_best(ready, heard):
    classifier, parts = ready()
    calls = 0

    def poisoned(*args, own=classifier.finish, **kwargs):
        nonlocal calls
        calls += classifier.training
        logits = own(*args, **kwargs)
        return logits * float("nan") if classifier.training and calls == 7 else logits

    classifier.finish = poisoned
    tuned = tune(classifier, parts, settings(), metric=METRIC, listen=heard.append)
    notes = [event.values["text"] for event in heard if event.name == "note"]
    assert len(notes) == 1
    assert notes[0].startswith("The loss of step 7 (training texts ")
    assert notes[0].endswith("the weights of step 4 are kept.")
    assert all(torch.isfinite(weight).all() for weight in classifier.parameters())
    assert tuned.best_step == 4


def test_a_loss_that_is_no_number_at_once_is_an_error_that_names_what_to_lower(ready):
    classifier, parts = ready()
    with torch.no_grad():
        classifier.backbone.blocks[-1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(SettingError, match=r"^The loss of step 1 .* lower tuning\.learning_rate \(0\.005\)"):
        tune(classifier, parts, settings(), metric=METRIC)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_toy_task_is_learnt(family, ready):
    classifier, parts = ready(family, rows=400)
    tuned = tune(classifier, parts, settings(method="full", epochs=6, learning_rate=1e-2), metric=METRIC)
    assert max(point["validation_accuracy"] for point in tuned.curves) >= 0.95


@pytest.mark.parametrize(
    ("method", "learning"),
    [
        ("head", ["head."]),
        ("last_layers", ["head.", "backbone.trunk.norm.", "backbone.trunk.layers.2."]),
        ("full", ["head.", "backbone."]),
    ],
)
def test_only_the_named_weights_change(method, learning, ready):
    classifier, parts = ready()
    before = weights_of(classifier)
    tune(classifier, parts, settings(method=method, blocks=1, epochs=1), metric=METRIC)
    after = weights_of(classifier)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    named = {name for name in before if name.startswith(tuple(learning))}
    assert changed == named


def test_more_blocks_than_there_are_is_refused(ready):
    classifier, parts = ready()
    with pytest.raises(SettingError, match=r"tuning\.blocks is 4, but the backbone was cut to 3 blocks"):
        tune(classifier, parts, settings(blocks=4), metric=METRIC)


def test_the_classifier_is_left_ready_to_answer(ready):
    classifier, parts = ready("bert")
    tune(classifier, parts, settings(epochs=1), metric=METRIC)
    assert not any(module.training for module in classifier.modules())
    assert not any(weight.requires_grad for weight in classifier.parameters())


@pytest.mark.parametrize("method", ["last_layers", "full"])
def test_the_budget_of_micro_batches_changes_nothing_beyond_rounding(method, ready):
    curves = []
    for budget in (32, 4096):
        classifier, parts = ready()
        tuned = tune(classifier, parts, settings(method=method, epochs=2, tokens_per_batch=budget), metric=METRIC)
        curves.append([[point[key] for key in ("train_loss", "validation_loss")] for point in tuned.curves])
    np.testing.assert_allclose(*curves, atol=1e-3)


@pytest.mark.parametrize("method", ["last_layers", "full"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_same_seed_gives_the_same_bits(family, method, ready):
    runs = []
    for noise in (1, 2):
        classifier, parts = ready(family)
        torch.manual_seed(noise)
        tuned = tune(classifier, parts, settings(method=method, epochs=2), metric=METRIC)
        runs.append((weights_of(classifier), tuned.curves, tuned.best_step))
    assert_same_bits(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


def test_another_seed_gives_another_head(ready):
    heads = []
    for seed in (1, 2):
        classifier, parts = ready(seed=seed)
        tune(classifier, parts, Config.of({"tuning": QUICK | {"epochs": 1}, "seed": seed}), metric=METRIC)
        heads.append(classifier.head.score.weight)
    assert not torch.equal(*heads)


# ---- Law 4: resume equals not stopping, bit for bit. 120 rows in steps of 16 are 8 steps an epoch.


@pytest.mark.parametrize(
    ("family", "method", "stops"),
    [("llama", "last_layers", stops) for stops in ([1], [5], [8], [9], [23], [24], [3, 4, 8])]
    + [("bert", "full", stops) for stops in ([5], [8], [3, 12])],
    ids=str,
)
def test_resuming_equals_not_stopping(family, method, stops, ready, tmp_path):
    plan = settings(method=method, epochs=3)
    classifier, parts = ready(family)
    unstopped = tune(classifier, parts, plan, metric=METRIC, checkpoint=tmp_path / "unstopped")
    wanted = weights_of(classifier)
    for i, steps in enumerate(stops):
        classifier, parts = ready(family)
        torch.manual_seed(i)
        with pytest.raises(StoppedError, match="A checkpoint is in"):
            tune(
                classifier, parts, plan, metric=METRIC, checkpoint=tmp_path / "c", resume=i > 0, stop=stop_after(steps)
            )
    classifier, parts = ready(family)
    torch.manual_seed(99)
    resumed = tune(classifier, parts, plan, metric=METRIC, checkpoint=tmp_path / "c", resume=True)
    assert_same_bits(weights_of(classifier), wanted)
    assert resumed.curves == unstopped.curves
    assert (resumed.best_step, resumed.steps) == (unstopped.best_step, unstopped.steps)


def test_resuming_keeps_the_patience_that_was_used_up(ready, tmp_path):
    plan = settings(epochs=9, patience=2, learning_rate=0.05, evaluations_per_epoch=4)
    classifier, parts = ready()
    unstopped = tune(classifier, parts, plan, metric=METRIC)
    assert unstopped.steps < 72, "the plan of this test must stop early"
    classifier, parts = ready()
    with pytest.raises(StoppedError):
        tune(classifier, parts, plan, metric=METRIC, checkpoint=tmp_path / "c", stop=stop_after(unstopped.steps - 1))
    classifier, parts = ready()
    resumed = tune(classifier, parts, plan, metric=METRIC, checkpoint=tmp_path / "c", resume=True)
    assert (resumed.curves, resumed.steps) == (unstopped.curves, unstopped.steps)


@pytest.fixture
def stopped(ready, tmp_path):
    """A checkpoint after step 10, which lies behind one of the first epoch."""
    classifier, parts = ready()
    with pytest.raises(StoppedError):
        tune(classifier, parts, settings(), metric=METRIC, checkpoint=tmp_path / "c", stop=stop_after(10))
    return tmp_path / "c"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"learning_rate": 1e-3}, r"tuning\.learning_rate was 0\.005 and is now 0\.001\. Expected"),
        (
            {"epochs": 4, "method": "full"},
            r'tuning\.method was "last_layers" and is now "full"; tuning\.epochs was 3 and is now 4\. Expected',
        ),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_settings_is_refused_and_they_are_named(other, named, ready, stopped):
    classifier, parts = ready()
    with pytest.raises(DataError, match=f"belongs to another run: {named}"):
        tune(classifier, parts, settings(**other), metric=METRIC, checkpoint=stopped, resume=True)


def test_a_checkpoint_of_other_rows_is_refused(ready, stopped):
    classifier, parts = ready()
    parts["train"] = Part(parts["train"].tokens, parts["train"].truth[::-1].copy())
    with pytest.raises(DataError, match=r"another run: the train rows are others\."):
        tune(classifier, parts, settings(), metric=METRIC, checkpoint=stopped, resume=True)


def test_a_checkpoint_of_another_backbone_is_refused(ready, stopped):
    classifier, parts = ready()
    with torch.no_grad():
        classifier.backbone.trunk.embed_tokens.weight.mul_(1.01)
    with pytest.raises(DataError, match=r"another run: the weights before tuning are others\."):
        tune(classifier, parts, settings(), metric=METRIC, checkpoint=stopped, resume=True)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.99])
def test_with_a_truncated_checkpoint_tuning_starts_anew_and_says_so(share, ready, stopped, heard):
    (file,) = stopped.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    classifier, parts = ready()
    tuned = tune(classifier, parts, settings(), metric=METRIC, checkpoint=stopped, resume=True, listen=heard.append)
    assert tuned.steps == 24
    assert any("starting anew" in str(event.values.get("text")) for event in heard)


def test_without_a_checkpoint_resuming_starts_anew_and_says_so(ready, tmp_path, heard):
    classifier, parts = ready()
    tune(classifier, parts, settings(), metric=METRIC, checkpoint=tmp_path / "c", resume=True, listen=heard.append)
    assert any("starting anew" in str(event.values.get("text")) for event in heard)


def test_stopping_without_a_checkpoint_says_so(ready):
    classifier, parts = ready()
    with pytest.raises(StoppedError, match="after step 2 of 24, without a checkpoint"):
        tune(classifier, parts, settings(), metric=METRIC, stop=stop_after(2))


# ---- Stopping, choosing, weighing


def test_the_best_step_is_restored(ready):
    classifier, parts = ready()
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.1, 0.0])
    seen = []

    def metric(truth, probs):
        seen.append(probs)
        return next(scores)

    tuned = tune(classifier, parts, settings(patience=3), metric=metric)
    assert tuned.best_step == 8
    assert tuned.steps == 20, "stopped early, after three evaluations without a better score"
    probs = classifier.calibration.probabilities(Scorer(classifier).logits(parts["validation"].tokens))
    np.testing.assert_allclose(probs, seen[1], atol=1e-5)


def test_stopping_early_is_said(ready, heard):
    classifier, parts = ready()
    tune(classifier, parts, settings(patience=1), metric=lambda truth, probs: 0.0, listen=heard.append)
    assert any("Stopped early" in str(event.values.get("text")) for event in heard)


def test_class_weights_pull_answers_towards_the_heavy_label(ready):
    shares = []
    for weights in ([1.0, 1.0], [0.05, 1.95]):
        classifier, parts = ready()
        plan = settings(epochs=1, schedule="constant", evaluations_per_epoch=1)
        tune(classifier, parts, plan, metric=METRIC, class_weights=np.array(weights))
        probs = classifier.calibration.probabilities(Scorer(classifier).logits(parts["validation"].tokens))
        shares.append(probs[:, 1].mean())
    assert shares[1] > shares[0] + 0.1


def test_tuning_that_diverges_leaves_the_weights_that_it_began_with(ready):
    classifier, parts = ready()
    before = weights_of(classifier)
    tuned = tune(classifier, parts, settings(epochs=1), metric=lambda truth, probs: float("nan"))
    assert tuned.best_step == 0
    assert_same_bits(weights_of(classifier), before)


def test_an_mlp_head_and_mean_pooling_learn_too(ready):
    classifier, parts = ready("llama", pooling="mean", head="mlp")
    tuned = tune(classifier, parts, settings(method="head"), metric=METRIC)
    assert tuned.curves[-1]["train_loss"] < tuned.curves[0]["train_loss"]


def test_events_count_steps_and_evaluations(ready, heard):
    classifier, parts = ready()
    tuned = tune(classifier, parts, settings(epochs=2), metric=METRIC, listen=heard.append)
    steps = [event for event in heard if (event.stage, event.name) == ("tuning", "step")]
    assert [event.step for event in steps] == list(range(1, 17))
    assert {event.total for event in steps} == {16}
    evaluated = [event for event in heard if event.name == "evaluated"]
    assert [event.step for event in evaluated] == [4, 8, 12, 16] == [point["step"] for point in tuned.curves]
    assert [event.name for event in heard][-1] == "done"
    frozen = [event.step for event in heard if event.name == "frozen"]
    assert frozen[-1] == 160


def test_kept_states_give_the_logits_of_the_whole_model(ready):
    """The frozen blocks run once, before the first step; what the loop scores by is what the model answers."""
    for method in ("head", "last_layers"):
        classifier, parts = ready()
        seen = []
        plan = settings(method=method, evaluations_per_epoch=1, epochs=1)
        tune(classifier, parts, plan, metric=lambda truth, probs, seen=seen: seen.append(probs) or 0.0)
        probs = classifier.calibration.probabilities(Scorer(classifier).logits(parts["validation"].tokens))
        np.testing.assert_allclose(probs, seen[0], atol=1e-5)


def test_bf16_tuning_gives_nearly_the_curves_of_fp32(ready):
    losses = []
    for precision in ("fp32", "bf16"):
        classifier, parts = ready()
        tuned = tune(classifier, parts, settings(precision=precision, epochs=2), metric=METRIC)
        losses.append([point["validation_loss"] for point in tuned.curves])
    np.testing.assert_allclose(*losses, atol=0.05)


def test_calibration_is_left_to_those_who_measure(ready):
    classifier, parts = ready()
    before = replace(classifier.calibration)
    tune(classifier, parts, settings(epochs=1), metric=METRIC)
    assert classifier.calibration == before


def test_a_full_disk_at_a_checkpoint_is_a_resource_error_and_keeps_the_old_one(ready, stopped, monkeypatch):
    monkeypatch.setattr("tagsmith.tuning.checkpoints.SECONDS_APART", 0)
    from safetensors import SafetensorError

    from tagsmith.errors import ResourceError

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    monkeypatch.setattr("safetensors.torch.save_file", full)
    classifier, parts = ready()
    with pytest.raises(ResourceError, match=r"Cannot write the checkpoint .*No space left on device"):
        tune(classifier, parts, settings(), metric=METRIC, checkpoint=stopped, resume=True)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before
    assert [path.name for path in stopped.parent.iterdir()] == ["c"]
