import errno
import shutil
import tempfile

import numpy as np
import pytest
import torch

from tagsmith.config import ModelConfig
from tagsmith.errors import ResourceError
from tagsmith.events import listened, silent
from tagsmith.labels import Labels
from tagsmith.model import activations
from tagsmith.model.activations import FrozenBlocks, frozen_states
from tagsmith.model.classifier import build, finish_states

TEXTS = ["lovely room", "a", "the waiter was rude and the soup was lukewarm " * 3, "Größe 12", "tasty bread and kettle"]


def ready(classifier, *, stop, dtype=torch.float32, **options):
    tokens = classifier.encoder.encode(TEXTS)
    return listened(frozen_states(FrozenBlocks(classifier.backbone, stop=stop, dtype=dtype), tokens, **options), silent)


@pytest.fixture(params=["llama", "mistral", "gpt2", "bert", "modernbert"])
def classifier(request, make_folder):
    folder = make_folder(request.param)
    config = ModelConfig(max_tokens=100)
    return build(folder, config, labels=Labels.of(["a", "b"]), layers=None, seed=0).eval().requires_grad_(False)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_kept_states_equal_those_of_each_text_alone(classifier, stop):
    states = ready(classifier, stop=stop)
    tokens = classifier.encoder.encode(TEXTS)
    assert len(states.lengths) == len(TEXTS)
    backbone = classifier.backbone
    for i in range(len(TEXTS)):
        ids_BL, lengths = tokens.padded(np.array([i]))
        hidden_BLD = backbone.embed(torch.from_numpy(ids_BL))
        context = backbone.context(hidden_BLD, torch.from_numpy(lengths))
        alone = backbone.run(hidden_BLD, context, start=0, stop=stop)[0]
        kept = states.hidden_TD[states.offsets[i] : states.offsets[i + 1]]
        torch.testing.assert_close(kept, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_finishing_kept_states_equals_the_whole_model(classifier, stop):
    tokens = classifier.encoder.encode(TEXTS)
    ids_BL, lengths = tokens.padded(np.arange(len(TEXTS)))
    whole = classifier(torch.from_numpy(ids_BL), torch.from_numpy(lengths)).numpy()
    logits = finish_states(classifier, ready(classifier, stop=stop), start=stop, tokens_per_batch=64)
    np.testing.assert_allclose(logits, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens_per_batch", [16, 60, 5000])
def test_the_budget_of_a_batch_changes_nothing(classifier, tokens_per_batch):
    torch.testing.assert_close(
        ready(classifier, stop=2, tokens_per_batch=tokens_per_batch).hidden_TD,
        ready(classifier, stop=2).hidden_TD,
        atol=1e-5,
        rtol=1e-5,
    )


def test_states_in_a_mapped_file_are_the_same(classifier, monkeypatch):
    in_memory = ready(classifier, stop=2)
    monkeypatch.setattr(activations, "BYTES_IN_MEMORY", 0)
    on_disk = ready(classifier, stop=2)
    assert torch.equal(on_disk.hidden_TD, in_memory.hidden_TD)


def test_the_mapped_file_has_no_name_once_it_is_mapped(classifier, monkeypatch, tmp_path):
    monkeypatch.setattr(activations, "BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    states = ready(classifier, stop=2)
    assert list(tmp_path.iterdir()) == []
    assert torch.isfinite(states.hidden_TD).all()


def test_too_little_disk_for_the_states_is_said_before_the_pass(classifier, monkeypatch):
    monkeypatch.setattr(activations, "BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ResourceError, match=r"need 0\.0 GiB; .* has 0\.0 GiB free\. Set TMPDIR"):
        ready(classifier, stop=2)


def test_a_disk_that_fills_meanwhile_is_a_resource_error(classifier, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(activations, "BYTES_IN_MEMORY", 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ResourceError, match="TMPDIR"):
        ready(classifier, stop=2)


def test_events_count_the_texts(classifier, heard):
    tokens = classifier.encoder.encode(TEXTS)
    frozen = FrozenBlocks(classifier.backbone, stop=1, dtype=torch.float32)
    work = frozen_states(frozen, tokens, tokens_per_batch=16, done=2, total=9)
    listened(work, heard.append)
    steps = [event.step for event in heard]
    assert steps == sorted(steps)
    assert steps[-1] == 2 + len(TEXTS)
    assert {(event.stage, event.name, event.total) for event in heard} == {("model", "frozen", 9)}


def test_equal_texts_are_computed_once_and_have_equal_states(classifier, monkeypatch):
    seen = []
    frozen = FrozenBlocks(classifier.backbone, stop=1, dtype=torch.float32)
    enter = frozen.enter
    monkeypatch.setattr(frozen, "enter", lambda ids, lengths: (seen.append(len(lengths)), enter(ids, lengths))[1])
    tokens = classifier.encoder.encode(["same text", "another one", "same text", "same text"])
    states = listened(frozen_states(frozen, tokens), silent)
    assert sum(seen) == 2
    for row in (2, 3):
        assert torch.equal(states.ragged(np.array([row]))[0], states.ragged(np.array([0]))[0])
    assert not torch.equal(states.ragged(np.array([1]))[0][:, :1], states.ragged(np.array([0]))[0][:, :1])


def test_kept_states_need_no_padding_to_be_gone_on_from(classifier):
    states = ready(classifier, stop=1)
    row, lengths_B = states.ragged(np.array([3, 0, 2]))
    assert row.shape[1] == lengths_B.sum()
    own = [states.hidden_TD[states.offsets[i] : states.offsets[i + 1]] for i in (3, 0, 2)]
    assert torch.equal(row[0], torch.cat(own))


@pytest.mark.parametrize("stop", [1, 2, 3])
@torch.no_grad()
def test_finishing_a_row_of_kept_states_equals_the_whole_model(classifier, stop):
    tokens, rows = classifier.encoder.encode(TEXTS), np.arange(len(TEXTS))
    ids_BL, lengths = tokens.padded(rows)
    whole = classifier(torch.from_numpy(ids_BL), torch.from_numpy(lengths))
    finished = classifier.finish(*ready(classifier, stop=stop).ragged(rows), start=stop)
    torch.testing.assert_close(finished, whole, atol=1e-5, rtol=1e-5)
    ids, lengths = (torch.from_numpy(each) for each in tokens.ragged(rows))
    torch.testing.assert_close(classifier(ids, lengths), whole, atol=1e-5, rtol=1e-5)


def test_texts_of_no_tokens_at_all_stop_nothing(make_folder):
    config = ModelConfig(max_tokens=100)
    classifier = build(make_folder("llama"), config, labels=Labels.of(["a", "b"]), layers=None, seed=0)
    frozen = FrozenBlocks(classifier.backbone, stop=2, dtype=torch.float32)
    states = listened(frozen_states(frozen, classifier.encoder.encode(["", ""])), silent)
    assert states.hidden_TD.shape == (0, 32)
    assert finish_states(classifier, states, start=2).shape == (2, 2)
