import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tagsmith.config import ModelConfig
from tagsmith.labels import Labels
from tagsmith.model.classifier import Scorer, build
from tagsmith.model.packing import PackedNorm, inference_copy, keep_few_kernels

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
GROWTH = """
import sys
import psutil
import torch
from tagsmith.model.device import processor_has_bf16
from tagsmith.model.packing import PackedNorm, inference_copy, keep_few_kernels

if not processor_has_bf16():
    print("none")
    raise SystemExit
torch.set_num_threads(1)
if sys.argv[1] == "few":
    keep_few_kernels()
weight = torch.randn(192, 192).bfloat16()
for tokens in range(64, 64 + 600):
    if tokens == 264:
        before = psutil.Process().memory_info().rss
    torch.nn.functional.linear(torch.randn(tokens, 192).bfloat16(), weight)
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def test_what_the_environment_says_of_kernels_is_left_alone(monkeypatch):
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.delenv(NAMES[1], raising=False)
    keep_few_kernels()
    assert [os.environ[name] for name in NAMES] == ["7", "128"]


def test_an_answer_is_the_same_on_one_core_and_on_two_but_for_rounding(make_folder):
    classifier = build(
        make_folder("llama"), ModelConfig(max_tokens=48), labels=Labels.of(["a", "b"]), layers=None, seed=0
    )
    scorer, found = Scorer(classifier, tokens_per_batch=16), []
    texts = classifier.encoder.encode(["lovely room " * n for n in range(1, 7)])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = [scorer.logits(texts.of_texts(np.array([row]))) for row in range(6)]
            found.append(np.concatenate([*alone, scorer.logits(texts)]))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6, rtol=0)


def test_many_shapes_of_batches_take_no_more_memory_than_a_few():
    plain = {key: value for key, value in os.environ.items() if key not in NAMES}
    grown = [
        subprocess.run(
            [sys.executable, "-c", GROWTH, kept], capture_output=True, text=True, check=True, env=plain
        ).stdout
        for kept in ("few", "all")
    ]
    if grown[0].strip() == "none":
        pytest.skip("this processor has no bf16 of its own, and PyTorch no kernels for each shape")
    few, every = map(float, grown)
    assert few < every / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_a_packed_norm_rounds_where_transformers_own_does(make_trunk, family, dtype):
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor packs no bf16 weights")
    block = make_trunk(family).layers[0].to(dtype)
    with torch.no_grad():
        block.input_layernorm.weight.copy_(torch.rand(32) + 0.5)
    packed = inference_copy([block], dtype=dtype)[0]
    assert isinstance(packed.input_layernorm, PackedNorm)
    rows = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = rows.clone()
    with torch.inference_mode():
        wanted, found = block.input_layernorm(rows), packed.input_layernorm(rows)
    assert torch.equal(rows, before)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted.float(), atol=1e-6 if dtype is torch.float32 else 0.02, rtol=1e-6)


def test_gemmas_norm_which_adds_one_to_its_weight_is_left_alone(make_trunk):
    block = make_trunk("gemma").layers[0]
    packed = inference_copy([block], dtype=torch.float32)[0]
    assert type(packed.input_layernorm) is type(block.input_layernorm)
