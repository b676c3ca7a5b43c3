import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaModel

from tagsmith.assets import Located, cached, intact, sha256
from tagsmith.errors import AssetError
from tagsmith.model.gguf import convert, ready_folder

WIDTH, HEADS, MLP = 64, 4, 128
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [*SPECIAL, *(bytes([i]).decode("latin1") for i in range(33, 127)), "he", "ll", "hell", "Ġ"]


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return LlamaModel(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=WIDTH,
            intermediate_size=MLP,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=64,
        )
    )


def as_llama_cpp_stores_it(weight):
    """Rows of q and k in the order of rotated pairs, the inverse of what a loader must do."""
    return weight.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH).swapaxes(1, 2).reshape(WIDTH, WIDTH)


def write_gguf(path, trunk):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(WORDS) - 3))
    writer.add_token_merges(["h e", "l l", "he ll"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in trunk.state_dict().items():
        weight = tensor.numpy().astype(np.float32)
        weight = as_llama_cpp_stores_it(weight) if name.endswith(("q_proj.weight", "k_proj.weight")) else weight
        writer.add_tensor(names.get_name(f"model.{name}", try_suffixes=(".weight",)), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def located(tmp_path, trunk, monkeypatch):
    monkeypatch.setenv("TAGSMITH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, trunk)
    return Located(path, "tiny", sha256(path), "folder")


def test_the_weights_come_out_as_they_went_in(located, trunk):
    found = load_file(ready_folder(located) / "model.safetensors")
    expected = trunk.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.bfloat16()), name


def test_the_folder_loads_as_a_plain_bf16_trunk_with_the_same_answers(located, trunk):
    model = AutoModel.from_pretrained(ready_folder(located))
    config = json.loads((ready_folder(located) / "config.json").read_text())
    assert type(model) is LlamaModel
    assert model.dtype == torch.bfloat16
    assert "quantization_config" not in config
    ids = torch.arange(12)[None] + 3
    with torch.inference_mode():
        answer = model.float()(ids).last_hidden_state
        expected = trunk.bfloat16().float().eval()(ids).last_hidden_state
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=0)


def test_the_tokenizer_is_the_one_that_transformers_reads_from_the_gguf(located):
    original = AutoTokenizer.from_pretrained(located.path.parent, gguf_file=located.path.name)
    kept = Tokenizer.from_file(str(ready_folder(located) / "tokenizer.json"))
    text = "hello <|im_end|> hell"
    assert kept.encode(text).ids == original(text)["input_ids"]
    assert kept.token_to_id("<|im_end|>") == original.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(ready_folder(located)).eos_token == "<|im_end|>"


def test_it_is_converted_once_and_again_when_a_file_was_altered(located, heard):
    folder = ready_folder(located, listen=heard.append)
    assert ready_folder(located, listen=heard.append) == folder
    assert len(heard) == 1
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(100)
    assert not intact(folder)
    assert intact(ready_folder(located, listen=heard.append))
    assert len(heard) == 2


def test_nothing_is_drawn_or_printed(located, capfd):
    ready_folder(located)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_gguf_is_named_and_leaves_nothing(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model")
    with pytest.raises(AssetError, match=r"bad\.gguf' cannot be converted"):
        convert(bad, tmp_path / "out" / "folder")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_is_ready_as_it_is(tmp_path):
    assert ready_folder(Located(tmp_path, "mine", "0" * 64, "folder")) == tmp_path


@pytest.mark.slow
def test_the_default_backbone_converts_and_continues_a_sentence():
    located = cached("smollm2-135m-instruct-q4")
    if located is None:
        pytest.skip("smollm2-135m-instruct-q4 is not in the cache; any training with it puts it there")
    folder = ready_folder(located)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        state = model(ids).last_hidden_state[0, -1]
        best = (model.get_input_embeddings().weight @ state).argmax()  # the embeddings are tied
    assert tokenizer.decode(best).strip() == "Paris"
