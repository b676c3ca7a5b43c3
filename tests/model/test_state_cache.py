import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tagsmith.config import ModelConfig
from tagsmith.events import listened, silent
from tagsmith.labels import Labels
from tagsmith.model.activations import FrozenBlocks, frozen_states
from tagsmith.model.classifier import build
from tagsmith.model.state_cache import DIGEST_BYTES, OLDEST_DAYS, StateCache, key_of

SHAPE = {"tokens": 50, "width": 8, "dtype": torch.float32}
ENTRY = 50 * 8 * 4 + DIGEST_BYTES
TEXTS = ["a lovely room", "x", "the waiter was rude and the soup was cold"]


@pytest.fixture
def cache(tmp_path):
    return StateCache(tmp_path / "states", most_bytes=3 * ENTRY)


def keep(cache, key, value=1.0, **shape):
    with cache.filling(key, **(SHAPE | shape)) as hidden_TD:
        if hidden_TD is not None:
            hidden_TD.fill_(value)
    return hidden_TD is not None


def entries(cache):
    return {path.stem for path in cache.folder.glob("*.states")}


def test_what_was_kept_is_found_bit_for_bit(cache):
    wanted = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with cache.filling("a", **(SHAPE | {"dtype": torch.bfloat16})) as hidden_TD:
        hidden_TD.copy_(wanted)
    assert torch.equal(cache.find("a", **(SHAPE | {"dtype": torch.bfloat16})), wanted)
    assert cache.find("b", **SHAPE) is None


@contextlib.contextmanager
def files_of_at_most(size):
    """The system refuses to let any file grow further, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_keeps_nothing_and_hinders_nothing(cache, make_folder):
    frozen, tokens = frozen_of(make_folder("llama"))
    wanted = listened(frozen_states(frozen, tokens), silent).hidden_TD
    roomy = replace(cache, most_bytes=2**20)
    with files_of_at_most(1024):
        found = listened(frozen_states(frozen, tokens, cache=roomy), silent).hidden_TD
    assert torch.equal(found, wanted)
    assert list(cache.folder.iterdir()) == []
    listened(frozen_states(frozen, tokens, cache=roomy), silent)
    assert len(entries(cache)) == 1


def test_a_disk_that_fails_at_the_last_moment_costs_the_entry_alone(cache, monkeypatch):
    def fails(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with cache.filling("a", **SHAPE) as hidden_TD:
        hidden_TD.fill_(3.0)
    assert torch.equal(hidden_TD, torch.full((50, 8), 3.0))
    assert list(cache.folder.iterdir()) == []


def test_a_look_says_what_is_kept(cache):
    assert cache.is_empty
    keep(cache, "a")
    assert not cache.is_empty
    assert cache.has("a", size=ENTRY - DIGEST_BYTES)
    assert not cache.has("a", size=ENTRY)
    assert not cache.has("b", size=ENTRY - DIGEST_BYTES)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_entry_is_not_found_and_goes(damage, cache):
    keep(cache, "a")
    path = cache.folder / "a.states"
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[77] ^= 4
    path.write_bytes({"truncated": content[:-5], "one bit": content, "empty": b""}[damage])
    assert cache.find("a", **SHAPE) is None
    assert entries(cache) == set()


def test_an_entry_that_was_not_finished_is_not_kept(cache):
    with pytest.raises(RuntimeError, match="stop"), cache.filling("a", **SHAPE) as hidden_TD:
        hidden_TD.fill_(1.0)
        raise RuntimeError("stop")
    assert list(cache.folder.iterdir()) == []


def test_those_used_longest_ago_make_room(cache):
    for age, key in enumerate("cba"):
        keep(cache, key)
        os.utime(cache.folder / f"{key}.states", (time.time() - 100 + age,) * 2)
    assert cache.find("c", **SHAPE) is not None  # used just now
    keep(cache, "d")
    assert entries(cache) == {"a", "c", "d"}


def test_an_old_entry_goes_though_there_is_room(cache):
    keep(cache, "a")
    old = time.time() - (OLDEST_DAYS + 1) * 86400
    os.utime(cache.folder / "a.states", (old, old))
    keep(cache, "b")
    assert entries(cache) == {"b"}


def test_what_is_larger_than_the_bound_is_not_kept_and_nothing_goes_for_it(cache):
    keep(cache, "a")
    assert not keep(cache, "b", tokens=50_000)
    assert entries(cache) == {"a"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_gone_without(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert not keep(StateCache(tmp_path / "closed" / "states", most_bytes=10 * ENTRY), "a")


def test_a_killed_process_leaves_nothing_that_is_read(tmp_path):
    script = textwrap.dedent(f"""
        import sys, time, torch
        from pathlib import Path
        from tagsmith.model.state_cache import StateCache
        cache = StateCache(Path({str(tmp_path)!r}), most_bytes=10**9)
        with cache.filling("a", tokens=1000, width=64, dtype=torch.float32) as hidden_TD:
            hidden_TD.fill_(1.0)
            print("filled", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "filled\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = StateCache(tmp_path, most_bytes=10**9)
    assert cache.find("a", tokens=1000, width=64, dtype=torch.float32) is None
    left = next(tmp_path.glob(".filling-*"))
    os.utime(left, (time.time() - 2 * 86400,) * 2)
    keep(cache, "b")
    assert not left.exists()


def frozen_of(folder, *, stop=2, layers=None):
    config = ModelConfig(max_tokens=48)
    classifier = build(folder, config, labels=Labels.of(["a", "b"]), layers=layers, seed=0).eval().requires_grad_(False)
    return FrozenBlocks(classifier.backbone, stop=stop, dtype=torch.float32), classifier.encoder.encode(TEXTS)


def key(frozen, tokens, **changes):
    settings = {"stop": frozen.stop, "dtype": torch.float32, "tokens_per_batch": 512} | changes
    return key_of(frozen.weights, tokens, architecture=frozen.architecture, **settings)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
def test_states_come_from_the_cache_and_are_the_same(family, make_folder, tmp_path):
    cache = StateCache(tmp_path / "states", most_bytes=10**8)
    folder = make_folder(family)
    frozen, tokens = frozen_of(folder)
    plain = listened(frozen_states(frozen, tokens), silent)
    heard = []
    for _ in range(2):
        states = listened(frozen_states(*frozen_of(folder), cache=cache), heard.append)
        assert torch.equal(states.hidden_TD, plain.hidden_TD)
    assert [event.values.get("from_cache", False) for event in heard] == [False] * (len(heard) - 1) + [True]


def test_the_key_says_all_that_states_depend_on(make_folder):
    folder = make_folder("llama")
    frozen, tokens = frozen_of(folder)
    own = key(frozen, tokens)
    assert own == key(*frozen_of(folder))
    assert own == key(*frozen_of(folder, layers=2))  # blocks above are none of its business
    others = [
        key(*frozen_of(folder, stop=1)),
        key(frozen, tokens, dtype=torch.bfloat16),
        key(frozen, tokens, tokens_per_batch=64),
        key(frozen, replace(tokens, ids=tokens.ids[::-1].copy())),
        key(frozen, replace(tokens, offsets=np.array([0, *tokens.offsets[1:-1] + 1, tokens.offsets[-1]]))),
        key(*frozen_of(make_folder("mistral"))),
    ]
    frozen.backbone.causal_mask = False
    others.append(key(frozen, tokens))
    frozen.backbone.causal_mask = True
    with torch.no_grad():
        frozen.backbone.blocks[1].mlp.down_proj.weight[0, 0] += 1e-3
    others.append(key(frozen, tokens))
    assert len({own, *others}) == len(others) + 1


def test_the_key_names_the_kinds_of_the_frozen_blocks_and_no_others(make_folder):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    folder = make_folder("gemma3_text", layer_types=kinds)
    own = key(*frozen_of(folder))
    for block, changes in ((2, False), (1, True), (0, True)):
        frozen, tokens = frozen_of(folder)
        frozen.backbone.config.layer_types[block] = "full_attention" if block != 1 else "sliding_attention"
        assert (key(frozen, tokens) != own) is changes
