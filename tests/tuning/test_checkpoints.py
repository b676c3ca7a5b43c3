import json
import math
import os
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.config import Config, ModelConfig
from tagsmith.errors import DataError
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning import checkpoints
from tagsmith.tuning.checkpoints import (
    Checkpoint,
    CheckpointFile,
    drop_checkpoint,
    load_checkpoint,
    origin_of,
    save_checkpoint,
)
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import tune
from tagsmith.tuning.losses import held_out_loss

NAMES = Labels.of(["complaint", "praise"])


def some(step=1):
    tensors = {
        "weight.a": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        "half": torch.full((3,), step, dtype=torch.bfloat16),
        "random_state": torch.get_rng_state(),
        "scalar": torch.tensor(float(step)),
    }
    return Checkpoint(tensors, {"step": step, "best_score": -math.inf, "curves": [{"score": 0.1 + 0.2}]})


def test_what_was_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "deep" / "c" / "seed-1.safetensors", some())
    found = load_checkpoint(tmp_path / "deep" / "c" / "seed-1.safetensors")
    assert found.state == some().state
    for name, tensor in some().tensors.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.tensors[name], tensor)


def test_there_is_none_where_none_was_saved(tmp_path):
    assert load_checkpoint(tmp_path / "c" / "seed-1.safetensors") is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("c") / "seed-1.safetensors"
    save_checkpoint(path, some())
    return path, path.read_bytes()


@given(place=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_one_altered_bit_anywhere_and_it_is_not_loaded(whole, place, bit):
    path, content = whole
    altered = bytearray(content)
    altered[int(place * len(content))] ^= 1 << bit
    path.write_bytes(altered)
    found = load_checkpoint(path)
    # Spaces that fill up the header mean nothing, and neither does the order in which names stand there.
    assert found is None or (found.state == some().state and torch.equal(found.tensors["half"], some().tensors["half"]))


@given(share=st.floats(0, 0.999999))
def test_a_truncated_one_is_not_loaded(whole, share):
    path, content = whole
    path.write_bytes(content[: int(share * len(content))])
    assert load_checkpoint(path) is None


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes_later(tmp_path):
    path = tmp_path / "seed-1.safetensors"
    save_checkpoint(path, some(step=1))
    left, fresh = tmp_path / f".{path.name}.4711", tmp_path / f".{path.name}.4712"
    for each in (left, fresh):
        each.write_bytes(path.read_bytes()[:100])
    os.utime(left, (time.time() - 7200,) * 2)
    assert load_checkpoint(path).state["step"] == 1
    save_checkpoint(path, some(step=2))
    assert load_checkpoint(path).state["step"] == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == [fresh.name, path.name], "another process may write that"
    drop_checkpoint(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_a_resource_error(tmp_path):
    from tagsmith.errors import ResourceError

    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError, match="Permission denied"):
        save_checkpoint(tmp_path / "c" / "seed-1.safetensors", some())


# ---- When


def test_a_checkpoint_is_due_by_time_and_less_often_where_writing_is_slow(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)

    def slow(path, checkpoint):
        nonlocal now
        now += 4

    monkeypatch.setattr(checkpoints, "save_checkpoint", slow)
    file = CheckpointFile(tmp_path / "c", {})
    for seconds, is_due in ((29, False), (1, True)):
        now += seconds
        assert file.is_due is is_due
    file.write(some())
    for seconds, is_due in ((30, False), (49, False), (1, True)):  # 4 seconds of 80 are 5 %
        now += seconds
        assert file.is_due is is_due


# ---- What it belongs to


class LostError(Exception):
    """What ends a process that nobody asked to stop."""


@pytest.fixture
def ready(tiny_folder, make_rows):
    def make():
        classifier = build(tiny_folder, ModelConfig(max_tokens=48), labels=NAMES, layers=2, seed=7)
        parts = {}
        for name, count in (("train", 64), ("validation", 24)):
            texts, names = zip(*make_rows(count, seed=count), strict=True)
            parts[name] = Part(classifier.encoder.encode(texts), NAMES.encode(names))
        return classifier, parts

    return make


def tuned(classifier, parts, folder, *, listen=lambda event: None, resume=False, **sections):
    plain = {"tuning": {"epochs": 2, "blocks": 1, "precision": "fp32"}, "seed": 7}
    config = Config.of(plain).with_settings(sections)
    metric = lambda truth, probs: -held_out_loss(truth, probs)  # noqa: E731
    return tune(classifier, parts, config, metric=metric, checkpoint=folder, resume=resume, listen=listen)


@pytest.fixture
def lost(ready, tmp_path, monkeypatch):
    """The folder of a run that ended without warning in its third step, of four an epoch."""
    monkeypatch.setattr(checkpoints, "SECONDS_APART", 0.0)
    monkeypatch.setattr(checkpoints, "MOST_SHARE", math.inf)

    def listen(event):
        if event.name == "step" and event.step == 3:
            raise LostError

    with pytest.raises(LostError):
        tuned(*ready(), tmp_path / "c", listen=listen)
    return tmp_path / "c"


def test_a_checkpoint_is_written_within_an_epoch(lost):
    assert load_checkpoint(lost / "seed-7.safetensors").state["step"] == 2


@pytest.mark.parametrize(
    "same",
    [
        {"evaluation": {"resamples": 500, "margin": 2.0}},
        {"deployment": {"tokens_per_batch": 1024}},
        {"tuning": {"seeds": 2, "cache_gib": 1.0}},
        {"data": {"near_duplicates": 0.9}},  # with the same rows in the same parts
    ],
    ids=str,
)
def test_settings_that_change_no_byte_of_a_tuning_may_change(same, lost, ready, heard):
    tuned(*ready(), lost, resume=True, listen=heard.append, **same)
    assert [event.step for event in heard if event.name == "step"] == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 7, "tuning": {"clip": 2.0}}, r"tuning\.clip was 1\.0 and is now 2\.0\. Expected"),
        ({"evaluation": {"metric": "accuracy"}}, r'evaluation\.metric was "log_loss" and is now "accuracy"\. Expected'),
        ({"model": {"max_tokens": 64}}, r"model\.max_tokens was 256 and is now 64\. Expected"),
    ],
    ids=str,
)
def test_settings_that_differ_are_named(other, named, lost, ready):
    with pytest.raises(DataError, match=f"belongs to another run: {named}"):
        tuned(*ready(), lost, resume=True, **other)


def test_where_the_rows_differ_so_may_the_settings_that_made_them(lost, ready):
    classifier, parts = ready()
    fewer = np.arange(len(parts["validation"].truth) - 1)
    parts["validation"] = Part(parts["validation"].tokens.of_texts(fewer), parts["validation"].truth[fewer])
    named = r"data\.clean was \[\] and is now \[\"html\"\]; the validation rows are others\. Expected"
    with pytest.raises(DataError, match=named):
        tuned(classifier, parts, lost, resume=True, data={"clean": ["html"]})


def test_another_number_of_threads_is_named(lost, ready):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(DataError, match=f"the number of threads was {threads} and is now {threads + 1}"):
            tuned(*ready(), lost, resume=True)
    finally:
        torch.set_num_threads(threads)


def test_an_origin_is_plain_data_and_the_same_for_the_same_run(ready):
    config = Config.of({"data": {"merge_labels": {"a": ["b", "c"]}}})
    (one, parts), (other, same) = ready(), ready()
    origin = origin_of(one, parts, config, class_weights_C=torch.ones(2))
    assert json.loads(json.dumps(origin)) == origin
    assert origin == origin_of(other, same, config, class_weights_C=torch.ones(2))
    assert origin != origin_of(other, same, config, class_weights_C=torch.tensor([1.0, 2.0]))
